/*
 * A stand-in for an NVMe target behind libvfio-user: a region whose second page has doorbells and can be mapped, and completions that are
 * written to the client's memory.
 *
 *   doorbells SOCKET MICROSECONDS
 *
 * It looks at its doorbell all the time, and at its socket, for one message, every so many microseconds, as SPDK's target does. When
 * the doorbell has a new value, that value is stored at the beginning of the memory that was mapped first. It ends with its client.
 */
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "libvfio-user.h"

#define BAR_SIZE 0x2000
#define DOORBELLS 0x1000

static char *bar;
static volatile uint32_t *memory;
static uint64_t memory_iova;

static ssize_t access_bar(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write) {
  (void)ctx;
  if (offset < 0 || (size_t)offset + count > BAR_SIZE) {
    errno = EINVAL;
    return -1;
  }
  if (is_write)
    memcpy(bar + offset, buf, count);
  else
    memcpy(buf, bar + offset, count);
  return (ssize_t)count;
}

static void mapped(vfu_ctx_t *ctx, vfu_dma_info_t *info) {
  (void)ctx;
  if (memory != NULL || info->vaddr == NULL) return;
  memory = info->vaddr;
  memory_iova = (uint64_t)(uintptr_t)info->iova.iov_base;
}

static void unmapped(vfu_ctx_t *ctx, vfu_dma_info_t *info) {
  (void)ctx;
  if ((uint64_t)(uintptr_t)info->iova.iov_base == memory_iova) memory = NULL;
}

static uint64_t microseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void must(bool ok, const char *what) {
  if (ok) return;
  perror(what);
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const uint64_t every = strtoul(argv[2], NULL, 10);

  const int fd = memfd_create("bar", 0);
  must(fd >= 0 && ftruncate(fd, BAR_SIZE) == 0, "memfd");
  bar = mmap(NULL, BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  must(bar != MAP_FAILED, "mmap");

  vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
  must(ctx != NULL, "vfu_create_ctx");
  must(vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) == 0, "vfu_pci_init");
  vfu_pci_set_id(ctx, 0x1af4, 0x10f2, 0, 0);
  struct iovec doorbells = {.iov_base = (void *)DOORBELLS, .iov_len = BAR_SIZE - DOORBELLS};
  must(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, access_bar, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM,
                        &doorbells, 1, fd, 0) == 0,
       "vfu_setup_region");
  must(vfu_setup_device_dma(ctx, mapped, unmapped) == 0, "vfu_setup_device_dma");
  must(vfu_realize_ctx(ctx) == 0, "vfu_realize_ctx");
  while (vfu_attach_ctx(ctx) != 0) {
    must(errno == EAGAIN || errno == EWOULDBLOCK, "vfu_attach_ctx");
    usleep(1000);
  }

  volatile uint32_t *doorbell = (volatile uint32_t *)(bar + DOORBELLS);
  uint32_t seen = 0;
  uint64_t looked = 0;
  for (;;) {
    const uint64_t now = microseconds();
    if (now - looked >= every) {
      looked = now;
      if (vfu_run_ctx(ctx) < 0 && errno != EAGAIN && errno != EINTR) break;
    }
    const uint32_t value = *doorbell;
    if (value != seen && memory != NULL) {
      seen = value;
      *memory = value;
    } else {
      sched_yield();
    }
  }
  vfu_destroy_ctx(ctx);
  return 0;
}
