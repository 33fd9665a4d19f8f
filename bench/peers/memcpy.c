/*
 * memcpy in C, for comparison with the copy engine.
 *
 * Orders:  BYTES    Answer: nanoseconds for one copy of so many bytes
 */
#include "peer.h"

int main(void)
{
	char line[64], *from = NULL, *to = NULL;
	size_t length = 0;

	while (fgets(line, sizeof line, stdin) != NULL) {
		long long start;
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
		start = nanoseconds(CLOCK_MONOTONIC);
		memcpy(to, from, length);
		__asm__ volatile("" : : "r"(to) : "memory"); /* somebody looks at it */
		answer(nanoseconds(CLOCK_MONOTONIC) - start);
	}
	return 0;
}
