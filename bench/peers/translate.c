/*
 * VA to IOVA in C, for comparison with the library's translation table: a radix table of two levels (1 GiB, 2 MiB) for
 * pages of 2 MiB, of three (1 GiB, 2 MiB, 4 KiB) for pages of 4 KiB. Areas and addresses are made as bench/translate.ts
 * makes them.
 *
 * Orders:  PAGE AREAS random|sequential PASSES    Answer: nanoseconds of work, sum of the IOVAs of one pass
 */
#include "peer.h"
#include <stdint.h>

#define BASE (1ull << 46)
#define ADDRESSES 65536
#define SLOTS 512
#define DIRECTORY (1 << 18)

struct entry {
	uint64_t delta; /* IOVA - VA; in the middle of three levels: the address of the next leaf */
	uint64_t key;
};

struct table {
	uint64_t page, areas, *starts;
	struct entry **directory;
	uint64_t *traces[2];
};

static struct entry empty[SLOTS];
static struct table tables[16];
static uint32_t state;

static uint64_t random_below(uint64_t limit)
{
	state = state * 1664525u + 1013904223u;
	return (state * limit) >> 32;
}

static void *zeroed(size_t size)
{
	void *memory = calloc(1, size);
	if (memory == NULL) exit(1);
	return memory;
}

static void add(struct table *t, uint64_t va, uint64_t iova)
{
	struct entry **leaf = &t->directory[va >> 30], *entry;
	if (*leaf == empty) *leaf = zeroed(sizeof empty);
	entry = &(*leaf)[(va >> 21) % SLOTS];
	if (t->page == 4096) {
		if (entry->delta == 0) entry->delta = (uintptr_t)zeroed(sizeof empty);
		entry = &((struct entry *)(uintptr_t)entry->delta)[(va >> 12) % SLOTS];
	}
	entry->delta = iova - va;
	entry->key = 1;
}

static struct table *table_of(uint64_t page, uint64_t areas)
{
	struct table *t = tables;
	while (t->page != 0 && (t->page != page || t->areas != areas)) t++;
	if (t->page != 0) return t;
	t->page = page;
	t->areas = areas;
	t->starts = zeroed(areas * sizeof *t->starts);
	t->directory = zeroed(DIRECTORY * sizeof *t->directory);
	for (int i = 0; i < DIRECTORY; i++) t->directory[i] = empty;
	state = 1;
	for (uint64_t i = 0, va = BASE; i < areas; i++, va += page * (1 + random_below(3))) {
		t->starts[i] = va;
		add(t, va, i * page);
	}
	for (int is_random = 0; is_random < 2; is_random++) {
		uint64_t *trace = t->traces[is_random] = zeroed(ADDRESSES * sizeof *trace);
		state = 1;
		for (uint64_t i = 0; i < ADDRESSES; i++) {
			uint64_t area = is_random ? random_below(areas) : i * areas / ADDRESSES;
			trace[i] = t->starts[area] + random_below(page);
		}
	}
	return t;
}

static uint64_t sum_2m(const struct table *t, const uint64_t *trace)
{
	uint64_t sum = 0;
	for (int i = 0; i < ADDRESSES; i++) {
		uint64_t va = trace[i];
		sum += va + t->directory[va >> 30][(va >> 21) % SLOTS].delta;
	}
	return sum;
}

static uint64_t sum_4k(const struct table *t, const uint64_t *trace)
{
	uint64_t sum = 0;
	for (int i = 0; i < ADDRESSES; i++) {
		uint64_t va = trace[i];
		const struct entry *leaf = (struct entry *)(uintptr_t)t->directory[va >> 30][(va >> 21) % SLOTS].delta;
		sum += va + leaf[(va >> 12) % SLOTS].delta;
	}
	return sum;
}

int main(void)
{
	char line[256], order[16];
	unsigned long long page, areas, passes;

	while (fgets(line, sizeof line, stdin) != NULL) {
		if (sscanf(line, "%llu %llu %15s %llu", &page, &areas, order, &passes) != 4) return 1;
		const struct table *t = table_of(page, areas);
		const uint64_t *trace = t->traces[strcmp(order, "random") == 0];
		ANSWER_PASSES(passes, page == 4096 ? sum_4k(t, trace) : sum_2m(t, trace));
	}
	return 0;
}
