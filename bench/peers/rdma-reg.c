/*
 * Registering memory for an RDMA device with nothing around it, for comparison with the library: the same calls of libibverbs,
 * the same memory.
 *
 * Orders, each with the answer in nanoseconds unless told otherwise:
 *   version             the compiler; the answer is a line of text
 *   open DEVICE         opens the device, with a protection domain; the answer is 0
 *   memory LENGTH PATH  maps the file (a memfd, through /proc) and touches its pages; the answer is 0
 *   pairs COUNT LENGTH  COUNT times registers the first LENGTH bytes, and deregisters them
 *   close               lets go of the device and of the memory; the answer is 0
 */
#include "peer.h"
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

static struct ibv_context *context;
static struct ibv_pd *domain;
static int access_flags;
static char *memory;
static size_t memory_length;

static void open_device(const char *name)
{
	struct ibv_device_attr attributes;
	struct ibv_device **list = ibv_get_device_list(NULL);

	need(list != NULL, "ibv_get_device_list");
	for (int i = 0; list[i] != NULL && context == NULL; i++)
		if (strcmp(ibv_get_device_name(list[i]), name) == 0) context = ibv_open_device(list[i]);
	ibv_free_device_list(list);
	need(context != NULL, name);
	domain = ibv_alloc_pd(context);
	need(domain != NULL, "ibv_alloc_pd");
	need((errno = ibv_query_device(context, &attributes)) == 0, "ibv_query_device");
	/* What the library asks for, for memory that the device may read and write. */
	access_flags = IBV_ACCESS_LOCAL_WRITE | (attributes.max_mw > 0 ? IBV_ACCESS_MW_BIND : 0);
}

static void map_memory(size_t length, const char *path)
{
	int file = open(path, O_RDWR | O_CLOEXEC);

	need(file >= 0, path);
	memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	need(memory != MAP_FAILED, "mmap");
	close(file);
	memory_length = length;
	for (size_t at = 0; at < length; at += 4096)
		*(volatile char *)(memory + at) = 1;
}

static long long pairs(long count, size_t length)
{
	const long long start = nanoseconds(CLOCK_MONOTONIC);

	while (count-- > 0) {
		struct ibv_mr *region = ibv_reg_mr(domain, memory, length, access_flags);

		need(region != NULL, "ibv_reg_mr");
		need((errno = ibv_dereg_mr(region)) == 0, "ibv_dereg_mr");
	}
	return nanoseconds(CLOCK_MONOTONIC) - start;
}

int main(void)
{
	char line[4096], text[4096];
	size_t length;
	long count;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin) != NULL) {
		long long ns = 0;

		if (strcmp(line, "version\n") == 0) {
			printf("C compiled by %s\n", __VERSION__);
			continue;
		} else if (sscanf(line, "open %4095s", text) == 1) {
			open_device(text);
		} else if (sscanf(line, "memory %zu %4095s", &length, text) == 2) {
			map_memory(length, text);
		} else if (sscanf(line, "pairs %ld %zu", &count, &length) == 2) {
			ns = pairs(count, length);
		} else if (strcmp(line, "close\n") == 0) {
			if (memory != NULL) munmap(memory, memory_length);
			need((errno = ibv_dealloc_pd(domain)) == 0, "ibv_dealloc_pd");
			need((errno = ibv_close_device(context)) == 0, "ibv_close_device");
			context = NULL;
			memory = NULL;
		} else {
			fprintf(stderr, "not an order: %s", line);
			return 1;
		}
		answer(ns);
	}
	return 0;
}
