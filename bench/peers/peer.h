/* What the peers share: clocks, answers, and ending with the reason. Include it first. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* CLOCK_THREAD_CPUTIME_ID for work, CLOCK_MONOTONIC for what also waits. */
static inline long long nanoseconds(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static inline void answer(long long number)
{
	printf("%lld\n", number);
	fflush(stdout);
}

/* Evaluates CALL, a sum, PASSES times, each pass anew; answers the nanoseconds of work, and the sum. */
#define ANSWER_PASSES(passes, call)                                                               \
	do {                                                                                      \
		unsigned long long sum_ = 0;                                                      \
		const long long start_ = nanoseconds(CLOCK_THREAD_CPUTIME_ID);                    \
		for (unsigned long long pass_ = 0; pass_ < (passes); pass_++) {                   \
			sum_ = (call);                                                            \
			__asm__ volatile("" : "+r"(sum_) : : "memory");                           \
		}                                                                                 \
		printf("%lld %llu\n", nanoseconds(CLOCK_THREAD_CPUTIME_ID) - start_, sum_);       \
		fflush(stdout);                                                                   \
	} while (0)

static inline void need(int success, const char *what)
{
	if (success) return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}
