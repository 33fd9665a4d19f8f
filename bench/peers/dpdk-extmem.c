/*
 * Memory of the program's own made known to DPDK and mapped for a device, for comparison with the library's.
 *
 * Orders, each with the answer in nanoseconds unless told otherwise:
 *   version                 the answer is DPDK's, a line of text
 *   open ADDRESS            starts DPDK with this PCI device, which one of its drivers linked in must take; the answer is 0
 *   memory LENGTH PATH      maps the file (a memfd, through /proc) in place of the one before, and touches its pages; the
 *                           answer is 0
 *   pairs COUNT LENGTH      COUNT times, of the first LENGTH bytes: rte_extmem_register, rte_dev_dma_map, rte_dev_dma_unmap,
 *                           rte_extmem_unregister, with ordinary pages and IOVAs that are VAs
 */
#define _GNU_SOURCE
/* rte_dev_dma_map is such a call. */
#define ALLOW_EXPERIMENTAL_API
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_memory.h>
#include <rte_version.h>

#define PAGE 4096

static struct rte_device *device;
static char *memory;
static size_t memory_length;

static void need(int success, const char *what, int error)
{
	if (success) return;
	fprintf(stderr, "%s: %s\n", what, rte_strerror(error));
	exit(1);
}

static void start_dpdk(char *address)
{
	char cpu[16];
	char *arguments[] = {"bench", "-l", cpu,           "-m",      "32",          "--in-memory",
	                     "-a",    address, "--iova-mode", "va", "--log-level", "*:error", "--no-telemetry", NULL};
	int count = 0;
	cpu_set_t cpus;
	uint16_t port;
	struct rte_eth_dev_info info;

	need(sched_getaffinity(0, sizeof cpus, &cpus) == 0, "sched_getaffinity", errno);
	while (!CPU_ISSET(count, &cpus)) count++;
	snprintf(cpu, sizeof cpu, "%d", count);
	for (count = 0; arguments[count] != NULL; count++) continue;
	need(rte_eal_init(count, arguments) >= 0, "rte_eal_init", rte_errno);
	need(sched_setaffinity(0, sizeof cpus, &cpus) == 0, "sched_setaffinity", errno);
	need(rte_eth_dev_get_port_by_name(address, &port) == 0, "DPDK's drivers linked in", ENODEV);
	need(rte_eth_dev_info_get(port, &info) == 0, "rte_eth_dev_info_get", EIO);
	device = info.device;
}

static void open_memory(const char *path, size_t length)
{
	int file = open(path, O_RDWR | O_CLOEXEC);

	need(file >= 0, path, errno);
	if (memory != NULL) munmap(memory, memory_length);
	memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	need(memory != MAP_FAILED, "mmap", errno);
	memory_length = length;
	close(file);
	for (size_t at = 0; at < length; at += PAGE) *(volatile char *)(memory + at) = 1;
}

static long long pairs(unsigned count, size_t length)
{
	struct timespec from, to;
	const uint64_t iova = (uintptr_t)memory;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (unsigned i = 0; i < count; i++) {
		need(rte_extmem_register(memory, length, NULL, 0, PAGE) == 0, "rte_extmem_register", rte_errno);
		need(rte_dev_dma_map(device, memory, iova, length) == 0, "rte_dev_dma_map", rte_errno);
		need(rte_dev_dma_unmap(device, memory, iova, length) == 0, "rte_dev_dma_unmap", rte_errno);
		need(rte_extmem_unregister(memory, length) == 0, "rte_extmem_unregister", rte_errno);
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	return (to.tv_sec - from.tv_sec) * 1000000000ll + to.tv_nsec - from.tv_nsec;
}

int main(int count_of_arguments, char **arguments)
{
	char line[512], name[256];
	unsigned count;
	unsigned long long length;

	(void)count_of_arguments;
	/* Whatever DPDK keeps in files goes with the program's own directory. */
	setenv("RUNTIME_DIRECTORY", dirname(strdup(arguments[0])), 1);
	while (fgets(line, sizeof line, stdin) != NULL) {
		long long ns = 0;
		if (strcmp(line, "version\n") == 0) {
			puts(rte_version());
			fflush(stdout);
			continue;
		}
		if (sscanf(line, "open %31s", name) == 1) start_dpdk(name);
		else if (sscanf(line, "memory %llu %255s", &length, name) == 2) open_memory(name, length);
		else if (sscanf(line, "pairs %u %llu", &count, &length) == 2 && length <= memory_length) ns = pairs(count, length);
		else return 1;
		printf("%lld\n", ns);
		fflush(stdout);
	}
	return 0;
}
