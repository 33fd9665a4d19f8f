/*
 * From an address to its lkey in C, for comparison with the library's key cache, in two ways:
 *
 *   mlx5  what the mlx5 driver of DPDK has for each queue: the entry that was hit last, then eight entries one after the
 *         other, then a binary search in the queue's own sorted table, whose answer takes the place of the eight in turn;
 *         then the table of the device, whose answer is put into that of the queue. A generation of the device, looked at
 *         first, empties both. It looks at the first byte only. The queue's table is full from the start, as a driver
 *         fills it when a port is started.
 *   spdk  what SPDK has for each protection domain: a directory of 1 GiB slots, tables of 2 MiB slots below it, and tables
 *         of 4 KiB slots below those that are not of one piece. It looks at the whole of the I/O.
 *
 * Regions, which it calls areas, and addresses are made as bench/lkey.ts makes them.
 *
 * Orders:  WAY PAGE AREAS sequential|random|hot PASSES    Answer: nanoseconds of work, sum of the keys of one pass
 */
#include "peer.h"
#include <stdint.h>

#define BASE (1ull << 46)
#define ADDRESSES 65536
#define IO 512
#define HOT 8
#define SLOTS 512
#define DIRECTORY (1 << 18)
#define LINEAR 8
#define NO_KEY UINT32_MAX
#define ORDERS 3

/* --- mlx5 --- */

struct entry {
	uintptr_t start, end; /* [start, end) */
	uint32_t lkey;
};

struct sorted {
	uint32_t length, capacity;
	struct entry *entries; /* the first is a stop: it begins at 0 and has no byte */
};

struct queue {
	const uint32_t *generation; /* of the device */
	uint32_t seen;
	uint16_t last, victim;
	struct entry linear[LINEAR];
	struct sorted own;
};

/* --- spdk --- */

struct small {
	uint64_t keys[SLOTS]; /* of 4 KiB each; 0: none */
};

struct slot {
	uint64_t key; /* 0: none */
	struct small *small;
};

struct gib {
	struct slot slots[SLOTS];
};

/* What is measured, for one page size and number of areas. */
struct set {
	uint64_t page, areas, *starts;
	uint64_t *traces[ORDERS];
	uint32_t generation;
	struct sorted global;
	struct queue queue;
	struct gib **directory;
};

static const char *const orders[ORDERS] = {"sequential", "random", "hot"};
static struct set sets[16];
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

static uint32_t search(const struct sorted *table, uintptr_t va, uint32_t *at)
{
	const struct entry *entries = table->entries;
	uint32_t base = 0, n = table->length;

	do {
		uint32_t half = n >> 1;
		if (va < entries[base + half].start) {
			n = half;
		} else {
			base += half;
			n -= half;
		}
	} while (n > 1);
	*at = base;
	return va < entries[base].end ? entries[base].lkey : NO_KEY;
}

static void insert(struct sorted *table, struct entry entry)
{
	uint32_t at;

	if (search(table, entry.start, &at) != NO_KEY) return;
	if (table->length == table->capacity) {
		table->capacity *= 2;
		table->entries = realloc(table->entries, table->capacity * sizeof *table->entries);
		if (table->entries == NULL) exit(1);
	}
	at++;
	memmove(&table->entries[at + 1], &table->entries[at], (table->length - at) * sizeof *table->entries);
	table->entries[at] = entry;
	table->length++;
}

static void empty(struct sorted *table, uint32_t capacity)
{
	table->capacity = capacity;
	table->entries = zeroed(capacity * sizeof *table->entries);
	table->entries[0].lkey = NO_KEY;
	table->length = 1;
}

static __attribute__((noinline)) void flush(struct queue *queue)
{
	queue->last = queue->victim = 0;
	memset(queue->linear, 0, sizeof queue->linear);
	queue->own.length = 1;
	queue->seen = *queue->generation;
}

static __attribute__((noinline)) uint32_t key_mlx5_slow(struct set *set, uintptr_t va)
{
	struct queue *queue = &set->queue;
	uint32_t at, lkey = search(&queue->own, va, &at);

	if (lkey == NO_KEY) {
		lkey = search(&set->global, va, &at);
		if (lkey == NO_KEY) return NO_KEY;
		insert(&queue->own, set->global.entries[at]);
		search(&queue->own, va, &at);
	}
	queue->linear[queue->victim] = queue->own.entries[at];
	queue->last = queue->victim;
	queue->victim = (queue->victim + 1) % LINEAR;
	return lkey;
}

static inline uint32_t key_mlx5(struct set *set, uintptr_t va)
{
	struct queue *queue = &set->queue;
	const struct entry *hit = &queue->linear[queue->last];

	if (__builtin_expect(*queue->generation != queue->seen, 0)) flush(queue);
	if (__builtin_expect(va >= hit->start && va < hit->end, 1)) return hit->lkey;
	for (int i = 0; i < LINEAR && queue->linear[i].start != 0; i++) {
		if (va >= queue->linear[i].start && va < queue->linear[i].end) {
			queue->last = i;
			return queue->linear[i].lkey;
		}
	}
	return key_mlx5_slow(set, va);
}

/* The key at an address, and how many bytes from there on have it at least. */
static inline uint64_t key_at(const struct set *set, uintptr_t va, uint64_t *bytes)
{
	const struct gib *gib;
	const struct slot *slot;

	*bytes = 0;
	if (__builtin_expect(va >> 48 != 0, 0)) return 0;
	gib = set->directory[va >> 30];
	if (__builtin_expect(gib == NULL, 0)) return 0;
	slot = &gib->slots[(va >> 21) % SLOTS];
	if (slot->small == NULL) {
		*bytes = (1 << 21) - va % (1 << 21);
		return slot->key;
	}
	*bytes = (1 << 12) - va % (1 << 12);
	return slot->small->keys[(va >> 12) % SLOTS];
}

static inline uint32_t key_spdk(const struct set *set, uintptr_t va, uint64_t length)
{
	uint64_t bytes, done, key = key_at(set, va, &bytes);

	if (__builtin_expect(key == 0, 0)) return NO_KEY;
	for (done = bytes; done < length; done += bytes)
		if (key_at(set, va + done, &bytes) != key || bytes == 0) return NO_KEY;
	return key;
}

/* --- both --- */

static void add(struct set *set, uint64_t va, uint32_t lkey)
{
	struct entry entry = {va, va + set->page, lkey};
	struct gib **gib = &set->directory[va >> 30];
	struct slot *slot;

	insert(&set->global, entry);
	insert(&set->queue.own, entry);
	if (*gib == NULL) *gib = zeroed(sizeof **gib);
	slot = &(*gib)->slots[(va >> 21) % SLOTS];
	if (set->page == 4096) {
		if (slot->small == NULL) slot->small = zeroed(sizeof *slot->small);
		slot->small->keys[(va >> 12) % SLOTS] = lkey;
	} else {
		slot->key = lkey;
	}
}

static uint64_t area_of(const char *order, uint64_t areas, uint64_t i)
{
	if (order[0] == 's') return i * areas / ADDRESSES;
	if (order[0] == 'h' && random_below(10) > 0) return random_below(HOT) * areas / HOT;
	return random_below(areas);
}

static struct set *set_of(uint64_t page, uint64_t areas)
{
	struct set *set = sets;
	while (set->page != 0 && (set->page != page || set->areas != areas)) set++;
	if (set->page != 0) return set;
	set->page = page;
	set->areas = areas;
	set->starts = zeroed(areas * sizeof *set->starts);
	set->directory = zeroed(DIRECTORY * sizeof *set->directory);
	set->queue.generation = &set->generation;
	empty(&set->global, 512);
	empty(&set->queue.own, 256);
	state = 1;
	for (uint64_t i = 0, va = BASE; i < areas; i++, va += page * (1 + random_below(3))) {
		set->starts[i] = va;
		add(set, va, i + 1);
	}
	for (int order = 0; order < ORDERS; order++) {
		uint64_t *trace = set->traces[order] = zeroed(ADDRESSES * sizeof *trace);
		state = 1;
		for (uint64_t i = 0; i < ADDRESSES; i++) {
			uint64_t area = area_of(orders[order], areas, i);
			trace[i] = set->starts[area] + random_below(page - IO + 1);
		}
	}
	return set;
}

static uint64_t sum_mlx5(struct set *set, const uint64_t *trace)
{
	uint64_t sum = 0;
	for (int i = 0; i < ADDRESSES; i++) sum += key_mlx5(set, trace[i]);
	return sum;
}

static uint64_t sum_spdk(const struct set *set, const uint64_t *trace)
{
	uint64_t sum = 0;
	for (int i = 0; i < ADDRESSES; i++) sum += key_spdk(set, trace[i], IO);
	return sum;
}

int main(void)
{
	char line[256], way[16], order[16];
	unsigned long long page, areas, passes;

	while (fgets(line, sizeof line, stdin) != NULL) {
		int which = 0;
		if (sscanf(line, "%15s %llu %llu %15s %llu", way, &page, &areas, order, &passes) != 5) return 1;
		while (which < ORDERS && strcmp(orders[which], order) != 0) which++;
		if (which == ORDERS) return 1;
		struct set *set = set_of(page, areas);
		const uint64_t *trace = set->traces[which];
		ANSWER_PASSES(passes, way[0] == 'm' ? sum_mlx5(set, trace) : sum_spdk(set, trace));
	}
	return 0;
}
