/*
 * DPDK's rings and pools between two threads and two processes, for comparison with the library's. DPDK runs by itself: no devices, no
 * files, ordinary pages, which a child has as well.
 *
 * Orders, each with the answer in nanoseconds that went by:
 *   ring one|many alone COUNT BURST           COUNT times rte_ring_enqueue_burst and then rte_ring_dequeue_burst of BURST, in one thread
 *   ring one|many thread|process COUNT BURST  COUNT bursts go from this thread to another thread or process
 *   pool - alone|thread|process COUNT BURST   COUNT times rte_mempool_get_bulk and then _put_bulk of BURST; the other one does the same meanwhile
 * The first argument of the program is the CPU of this thread, the second that of the other one.
 */
#include "peer.h"
#include <libgen.h>
#include <pthread.h>
#include <signal.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_mempool.h>
#include <rte_ring.h>

/* Those of bench/rings.ts. */
#define SLOTS 1024
#define ELEMENTS 8192
#define CACHE 256
#define MOST_BURST 512

enum { THREAD, PROCESS, WHERES };
enum { ONE, MANY, KINDS };

/* What this thread tells another one, in memory that both have. A round begins with `go`. */
struct side {
	volatile unsigned go __attribute__((aligned(64)));
	volatile unsigned ready __attribute__((aligned(64)));
	volatile unsigned done __attribute__((aligned(64)));
	volatile unsigned over __attribute__((aligned(64)));
	volatile int is_pool;
	volatile unsigned kind, count, burst;
};

static struct side *sides;
static struct rte_ring *rings[KINDS];
static struct rte_mempool *elements;
static int cpus[2];

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	need(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

static void use_pool(unsigned burst)
{
	void *taken[MOST_BURST];

	need(rte_mempool_get_bulk(elements, taken, burst) == 0, "rte_mempool_get_bulk");
	rte_mempool_put_bulk(elements, taken, burst);
}

static void take(struct rte_ring *ring, unsigned count, unsigned burst)
{
	void *taken[MOST_BURST];

	for (unsigned long left = (unsigned long)count * burst; left > 0;) {
		unsigned n = rte_ring_dequeue_burst(ring, taken, burst, NULL);
		if (n == 0) rte_pause();
		left -= n;
	}
}

/* The other one. */
static void serve(struct side *side)
{
	for (unsigned round = 0;; round++) {
		while (side->go == round) usleep(100);
		side->ready = round + 1;
		if (side->is_pool)
			while (side->over != round + 1) use_pool(side->burst);
		else
			take(rings[side->kind], side->count, side->burst);
		side->done = round + 1;
	}
}

static void *serve_thread(void *side)
{
	pin(cpus[1]);
	need(rte_thread_register() == 0, "rte_thread_register");
	serve(side);
	return NULL;
}

static void send_bursts(struct rte_ring *ring, unsigned count, unsigned burst)
{
	void *sent[MOST_BURST] = {NULL};

	for (unsigned i = 0; i < count; i++)
		for (unsigned n = 0; n < burst;) {
			unsigned went = rte_ring_enqueue_burst(ring, sent, burst - n, NULL);
			if (went == 0) rte_pause();
			n += went;
		}
}

static void alone(struct rte_ring *ring, unsigned count, unsigned burst)
{
	void *numbers[MOST_BURST] = {NULL};

	for (unsigned i = 0; i < count; i++) {
		rte_ring_enqueue_burst(ring, numbers, burst, NULL);
		rte_ring_dequeue_burst(ring, numbers, burst, NULL);
	}
}

static long long with_other(struct side *side, int is_pool, unsigned kind, unsigned count, unsigned burst)
{
	const unsigned round = side->go + 1;
	long long start, end;

	side->is_pool = is_pool;
	side->kind = kind;
	side->count = count;
	side->burst = burst;
	side->go = round;
	while (side->ready != round) rte_pause();
	start = nanoseconds(CLOCK_MONOTONIC);
	if (is_pool) {
		for (unsigned i = 0; i < count; i++) use_pool(burst);
		end = nanoseconds(CLOCK_MONOTONIC);
		side->over = round;
		while (side->done != round) rte_pause();
		return end - start;
	}
	send_bursts(rings[kind], count, burst);
	while (side->done != round) rte_pause();
	return nanoseconds(CLOCK_MONOTONIC) - start;
}

static long long round_of(const char *what, const char *where, unsigned kind, unsigned count, unsigned burst)
{
	const int is_pool = strcmp(what, "pool") == 0;
	long long start;

	if (strcmp(where, "alone") != 0) return with_other(&sides[strcmp(where, "process") == 0 ? PROCESS : THREAD], is_pool, kind, count, burst);
	start = nanoseconds(CLOCK_MONOTONIC);
	if (!is_pool)
		alone(rings[kind], count, burst);
	else
		for (unsigned i = 0; i < count; i++) use_pool(burst);
	return nanoseconds(CLOCK_MONOTONIC) - start;
}

static void *shared(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED, "mmap");
	return memory;
}

static void start(char *program, char *cpu)
{
	char *arguments[] = {"bench", "-l", cpu, "-m", "128", "--no-pci", "--no-shconf", "--log-level", "*:error", "--no-telemetry", "--no-huge", NULL};
	pthread_t thread;
	pid_t child;

	/* DPDK makes a directory, which here goes with the program's own. */
	setenv("RUNTIME_DIRECTORY", dirname(strdup(program)), 1);
	need(rte_eal_init(11, arguments) >= 0, "rte_eal_init");
	for (unsigned kind = 0; kind < KINDS; kind++) {
		rings[kind] = shared(rte_ring_get_memsize(SLOTS));
		need(rte_ring_init(rings[kind], "bench", SLOTS, kind == ONE ? RING_F_SP_ENQ | RING_F_SC_DEQ : 0) == 0, "rte_ring_init");
	}
	elements = rte_mempool_create("bench", ELEMENTS, 2048, CACHE, 0, NULL, NULL, NULL, NULL, SOCKET_ID_ANY, 0);
	need(elements != NULL, "rte_mempool_create");
	sides = shared(WHERES * sizeof *sides);
	child = fork();
	need(child >= 0, "fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pin(cpus[1]);
		/* A thread of its own, with its own cache. */
		RTE_PER_LCORE(_lcore_id) = RTE_MAX_LCORE - 1;
		serve(&sides[PROCESS]);
	}
	need(pthread_create(&thread, NULL, serve_thread, &sides[THREAD]) == 0, "pthread_create");
	pin(cpus[0]);
}

int main(int count_of_arguments, char **arguments)
{
	char line[128], what[16], kind[16], where[16];
	unsigned count, burst;

	if (count_of_arguments != 3) return 1;
	cpus[0] = atoi(arguments[1]);
	cpus[1] = atoi(arguments[2]);
	start(arguments[0], arguments[1]);
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (sscanf(line, "%15s %15s %15s %u %u", what, kind, where, &count, &burst) != 5 || burst > MOST_BURST) return 1;
		answer(round_of(what, where, strcmp(kind, "many") == 0 ? MANY : ONE, count, burst));
	}
	return 0;
}
