/*
 * DPDK's memory, for comparison with the library's. DPDK runs by itself: no devices, no other process, no files.
 *
 * Orders, each with the answer in nanoseconds, of the thread's work unless told otherwise:
 *   open huge|no-huge MIB   starts DPDK with so much memory; the answer is 0. It has to come first, but for `start`.
 *   pairs COUNT SIZE        COUNT times rte_malloc of SIZE bytes, then rte_free of them
 *   grow COUNT SIZE         rte_malloc of COUNT blocks of SIZE bytes, for each of which the heap has to grow; then,
 *                           beyond the answer, they are freed
 *   pool COUNT BURST        COUNT times rte_mempool_get_bulk of BURST elements, then rte_mempool_put_bulk of them
 *   start MIB               rte_eal_init with so much memory in hugepages, in a process of its own; in time that goes by
 */
#define _GNU_SOURCE
#include <libgen.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_malloc.h>
#include <rte_mempool.h>

#define MOST_BLOCKS 4096
#define MOST_BURST 512

/* The pool of bench/memory.ts. */
#define POOL_ELEMENTS 8192
#define POOL_ELEMENT_SIZE 2048
#define POOL_CACHE 256

static clockid_t clock_id;
static struct timespec began;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, rte_strerror(rte_errno));
	exit(1);
}

/* CLOCK_THREAD_CPUTIME_ID for work, CLOCK_MONOTONIC for what also waits. */
static void begin(clockid_t id)
{
	clock_id = id;
	clock_gettime(clock_id, &began);
}

static long long nanoseconds(void)
{
	struct timespec now;
	clock_gettime(clock_id, &now);
	return (now.tv_sec - began.tv_sec) * 1000000000ll + now.tv_nsec - began.tv_nsec;
}

static void answer(long long number)
{
	printf("%lld\n", number);
	fflush(stdout);
}

/*
 * Starts DPDK with one thread, this one, and lets it run where it might before. Returns the time of that. Without
 * hugepages DPDK does not take --in-memory.
 */
static long long start_dpdk(const char *mode, char *mib)
{
	const int huge = strcmp(mode, "huge") == 0;
	char cpu[16], in_memory[] = "--in-memory", no_huge[] = "--no-huge";
	char *arguments[] = {"bench",    "-l",          cpu,           "-m",           mib,
	                     "--no-pci", "--no-shconf", "--log-level", "*:error",      "--no-telemetry",
	                     huge ? in_memory : no_huge, NULL};
	int count = 0;
	long long ns;
	cpu_set_t cpus;

	if (sched_getaffinity(0, sizeof cpus, &cpus) != 0) fail("sched_getaffinity");
	while (!CPU_ISSET(count, &cpus)) count++;
	snprintf(cpu, sizeof cpu, "%d", count);
	for (count = 0; arguments[count] != NULL; count++) continue;
	begin(CLOCK_MONOTONIC);
	if (rte_eal_init(count, arguments) < 0) fail("rte_eal_init");
	ns = nanoseconds();
	if (sched_setaffinity(0, sizeof cpus, &cpus) != 0) fail("sched_setaffinity");
	return ns;
}

/* What DPDK has taken goes with its process; that one answers by itself. */
static void start_elsewhere(const char *mib)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		execl("/proc/self/exe", "dpdk-memory", mib, NULL);
		_exit(1);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status != 0) exit(1);
}

static long long pairs(unsigned count, unsigned size)
{
	begin(CLOCK_THREAD_CPUTIME_ID);
	for (unsigned i = 0; i < count; i++) {
		void *block = rte_malloc(NULL, size, 0);
		if (block == NULL) fail("rte_malloc");
		rte_free(block);
	}
	return nanoseconds();
}

static long long grow(unsigned count, unsigned size)
{
	static void *blocks[MOST_BLOCKS];
	long long ns;

	begin(CLOCK_THREAD_CPUTIME_ID);
	for (unsigned i = 0; i < count; i++)
		if ((blocks[i] = rte_malloc(NULL, size, 0)) == NULL) fail("rte_malloc");
	ns = nanoseconds();
	for (unsigned i = 0; i < count; i++) rte_free(blocks[i]);
	return ns;
}

static long long pool(unsigned count, unsigned burst)
{
	static struct rte_mempool *elements;
	static void *taken[MOST_BURST];

	if (elements == NULL)
		elements = rte_mempool_create("bench", POOL_ELEMENTS, POOL_ELEMENT_SIZE, POOL_CACHE, 0, NULL, NULL, NULL, NULL,
		                              SOCKET_ID_ANY, 0);
	if (elements == NULL) fail("rte_mempool_create");
	begin(CLOCK_THREAD_CPUTIME_ID);
	for (unsigned i = 0; i < count; i++) {
		if (rte_mempool_get_bulk(elements, taken, burst) != 0) fail("rte_mempool_get_bulk");
		rte_mempool_put_bulk(elements, taken, burst);
	}
	return nanoseconds();
}

int main(int count_of_arguments, char **arguments)
{
	char line[128], order[16], mode[16], mib[16];
	unsigned count, size;

	if (count_of_arguments > 1) {
		answer(start_dpdk("huge", arguments[1]));
		return 0;
	}
	/* Without --in-memory DPDK makes a directory, which here goes with the program's own. */
	setenv("RUNTIME_DIRECTORY", dirname(strdup(arguments[0])), 1);
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (sscanf(line, "open %15s %15s", mode, mib) == 2) {
			start_dpdk(mode, mib);
			answer(0);
		} else if (sscanf(line, "start %15s", mib) == 1) {
			start_elsewhere(mib);
		} else if (sscanf(line, "%15s %u %u", order, &count, &size) != 3) {
			return 1;
		} else if (strcmp(order, "pairs") == 0) {
			answer(pairs(count, size));
		} else if (strcmp(order, "grow") == 0 && count <= MOST_BLOCKS) {
			answer(grow(count, size));
		} else if (strcmp(order, "pool") == 0 && size <= MOST_BURST) {
			answer(pool(count, size));
		} else {
			return 1;
		}
	}
	return 0;
}
