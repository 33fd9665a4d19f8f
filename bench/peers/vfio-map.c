/*
 * Mapping through VFIO with nothing around it, for comparison with the library: the same calls of the kernel, the same memory.
 *
 * Orders, each with the answer in nanoseconds unless told otherwise:
 *   version                 the compiler; the answer is a line of text
 *   type1 GROUP             opens a container of type1 v2 with the IOMMU group /dev/vfio/GROUP; the answer is 0
 *   iommufd NAME            opens /dev/vfio/devices/NAME in an address space of iommufd; the answer is 0
 *   memory LENGTH PATH      maps the file (a memfd, through /proc) and touches its pages; the answer is 0
 *   pairs COUNT LENGTH IOVA COUNT times maps the first LENGTH bytes at this IOVA, and unmaps them
 *   close                   lets go of the device and of the memory; the answer is 0
 */
#include "peer.h"
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* What headers of Linux before 6.2 and 6.13 do not have. */
struct bind_iommufd {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t devid;
};
struct attach_iommufd {
	uint32_t argsz, flags, pt_id;
};
struct ioas_alloc {
	uint32_t size, flags, id;
};
struct ioas_map_file {
	uint32_t size, flags, ioas;
	int32_t fd;
	uint64_t start, length, iova;
};
struct ioas_unmap {
	uint32_t size, ioas;
	uint64_t iova, length;
};
#define BIND_IOMMUFD _IO(';', 100 + 18)
#define ATTACH_IOMMUFD _IO(';', 100 + 19)
#define IOAS_ALLOC _IO(';', 0x81)
#define IOAS_MAP_FILE _IO(';', 0x8f)
#define IOAS_UNMAP _IO(';', 0x86)
enum { FIXED_IOVA = 1, WRITEABLE = 2, READABLE = 4 };

static int container = -1, group = -1, device = -1, iommu = -1, file = -1;
static uint32_t ioas;
static char *memory;
static size_t memory_length;

static void open_type1(const char *name)
{
	char path[512];

	container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	need(container >= 0, "/dev/vfio/vfio");
	snprintf(path, sizeof path, "/dev/vfio/%s", name);
	group = open(path, O_RDWR | O_CLOEXEC);
	need(group >= 0, path);
	need(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0, "VFIO_GROUP_SET_CONTAINER");
	need(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0, "VFIO_SET_IOMMU");
}

static void open_iommufd(const char *name)
{
	char path[512];
	struct bind_iommufd bind = {.argsz = sizeof bind};
	struct attach_iommufd attach = {.argsz = sizeof attach};
	struct ioas_alloc alloc = {.size = sizeof alloc};

	iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	need(iommu >= 0, "/dev/iommu");
	snprintf(path, sizeof path, "/dev/vfio/devices/%s", name);
	device = open(path, O_RDWR | O_CLOEXEC);
	need(device >= 0, path);
	bind.iommufd = iommu;
	need(ioctl(device, BIND_IOMMUFD, &bind) == 0, "VFIO_DEVICE_BIND_IOMMUFD");
	need(ioctl(iommu, IOAS_ALLOC, &alloc) == 0, "IOMMU_IOAS_ALLOC");
	attach.pt_id = ioas = alloc.id;
	need(ioctl(device, ATTACH_IOMMUFD, &attach) == 0, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

static void open_memory(const char *path, size_t length)
{
	file = open(path, O_RDWR | O_CLOEXEC);
	need(file >= 0, path);
	memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	need(memory != MAP_FAILED, "mmap");
	memory_length = length;
	for (size_t at = 0; at < length; at += 4096) *(volatile char *)(memory + at) = 1;
}

static void close_all(void)
{
	int *all[] = {&device, &group, &container, &iommu, &file};

	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		if (*all[i] >= 0) close(*all[i]);
		*all[i] = -1;
	}
	if (memory != NULL) munmap(memory, memory_length);
	memory = NULL;
}

static void pairs_type1(unsigned count, uint64_t length, uint64_t iova)
{
	for (unsigned i = 0; i < count; i++) {
		struct vfio_iommu_type1_dma_map map = {
		    .argsz = sizeof map,
		    .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		    .vaddr = (uintptr_t)memory,
		    .iova = iova,
		    .size = length,
		};
		struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = iova, .size = length};
		need(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0, "VFIO_IOMMU_MAP_DMA");
		need(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0 && unmap.size == length, "VFIO_IOMMU_UNMAP_DMA");
	}
}

static void pairs_iommufd(unsigned count, uint64_t length, uint64_t iova)
{
	for (unsigned i = 0; i < count; i++) {
		struct ioas_map_file map = {
		    .size = sizeof map,
		    .flags = FIXED_IOVA | WRITEABLE | READABLE,
		    .ioas = ioas,
		    .fd = file,
		    .length = length,
		    .iova = iova,
		};
		struct ioas_unmap unmap = {.size = sizeof unmap, .ioas = ioas, .iova = iova, .length = length};
		need(ioctl(iommu, IOAS_MAP_FILE, &map) == 0, "IOMMU_IOAS_MAP_FILE");
		need(ioctl(iommu, IOAS_UNMAP, &unmap) == 0 && unmap.length == length, "IOMMU_IOAS_UNMAP");
	}
}

int main(void)
{
	char line[512], name[32], path[256];
	unsigned count;
	unsigned long long length, iova;

	while (fgets(line, sizeof line, stdin) != NULL) {
		long long ns = 0;
		if (strcmp(line, "version\n") == 0) {
			puts("gcc " __VERSION__);
			fflush(stdout);
			continue;
		}
		if (sscanf(line, "type1 %31s", name) == 1) {
			open_type1(name);
		} else if (sscanf(line, "iommufd %31s", name) == 1) {
			open_iommufd(name);
		} else if (sscanf(line, "memory %llu %255s", &length, path) == 2) {
			open_memory(path, length);
		} else if (strcmp(line, "close\n") == 0) {
			close_all();
		} else if (sscanf(line, "pairs %u %llu %llu", &count, &length, &iova) == 3 && length <= memory_length) {
			const long long start = nanoseconds(CLOCK_MONOTONIC);
			if (container >= 0) pairs_type1(count, length, iova);
			else pairs_iommufd(count, length, iova);
			ns = nanoseconds(CLOCK_MONOTONIC) - start;
		} else {
			return 1;
		}
		answer(ns);
	}
	return 0;
}
