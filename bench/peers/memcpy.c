/*
 * memcpy in C, for comparison with the copy engine.
 *
 * Orders:  BYTES    Answer: nanoseconds for one copy of so many bytes
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int main(void)
{
	char line[64], *from = NULL, *to = NULL;
	size_t length = 0;

	while (fgets(line, sizeof line, stdin) != NULL) {
		struct timespec start, end;
		size_t wanted = strtoul(line, NULL, 10);
		if (wanted != length) {
			free(from);
			free(to);
			from = malloc(wanted);
			to = malloc(wanted);
			if (wanted == 0 || from == NULL || to == NULL) return 1;
			memset(from, 1, wanted);
			memset(to, 2, wanted);
			length = wanted;
		}
		clock_gettime(CLOCK_MONOTONIC, &start);
		memcpy(to, from, length);
		__asm__ volatile("" : : "r"(to) : "memory"); /* somebody looks at it */
		clock_gettime(CLOCK_MONOTONIC, &end);
		printf("%lld\n", (end.tv_sec - start.tv_sec) * 1000000000ll + end.tv_nsec - start.tv_nsec);
		fflush(stdout);
	}
	return 0;
}
