/* SPDX-License-Identifier: MIT */
#include "pages.h"

#include "workload.h"

#include <stdlib.h>
#include <string.h>

/* Open addressing; a page is known by its place in the prompt and by the hash that ends its prefix. */
struct shared_page {
	int64_t hash, index;
	int32_t page; /* -1: free entry */
};

struct page_map {
	struct shared_page *entries;
	size_t mask;
};

static struct shared_page *map_find(const struct page_map *map, int64_t hash, int64_t index)
{
	uint64_t h = ((uint64_t)hash * 0x9e3779b97f4a7c15u ^ (uint64_t)index) * 0xd6e8feb86659fd93u;
	size_t at = (size_t)(h >> 32) & map->mask;
	while (map->entries[at].page >= 0 && (map->entries[at].hash != hash || map->entries[at].index != index))
		at = (at + 1) & map->mask;
	return &map->entries[at];
}

static bool map_create(struct page_map *map, int64_t total)
{
	size_t size = 64;
	while (size < 2 * (size_t)total)
		size *= 2;
	map->mask = size - 1;
	map->entries = malloc(size * sizeof(*map->entries));
	for (size_t i = 0; map->entries && i < size; i++)
		map->entries[i].page = -1;
	return map->entries != NULL;
}

/* The hash that ends the prefix up to and including page j, if the whole page lies in the hashed prompt. */
static bool page_hash(const struct trace *t, uint32_t request, int64_t j, int64_t page, int64_t *hash)
{
	const struct trace_request *r = &t->requests[request];
	const int64_t end = (j + 1) * page, block = (end - 1) / TRACE_HASH_TOKENS;
	if (end > r->input || block >= r->num_hashes)
		return false;
	*hash = t->hashes[r->first_hash + (size_t)block];
	return true;
}

static void shuffle_numbers(int32_t *table, int64_t entries, int32_t *numbers, int64_t count, uint64_t seed)
{
	for (int64_t i = 0; i < count; i++)
		numbers[i] = (int32_t)i;
	shuffle(numbers, count, seed);
	for (int64_t i = 0; i < entries; i++)
		if (table[i] >= 0)
			table[i] = numbers[table[i]];
}

bool pages_assign(struct pages *p, const int32_t *lengths, int64_t b, int64_t page, uint64_t seed,
                  const struct trace *trace, const struct replay_slot *slots)
{
	int64_t total = 0;
	memset(p, 0, sizeof(*p));
	p->max_pages = 1;
	for (int64_t i = 0; i < b; i++) {
		const int64_t n = (lengths[i] + page - 1) / page;
		total += n;
		p->kv_tokens += lengths[i];
		if (n > p->max_pages)
			p->max_pages = n;
	}
	if (total > INT32_MAX)
		return false;
	const int64_t entries = b * p->max_pages;
	struct page_map map = {0};
	p->table = malloc((size_t)(entries + 1) * sizeof(*p->table));
	int32_t *numbers = malloc((size_t)(total + 1) * sizeof(*numbers));
	if (!p->table || !numbers || (trace && !map_create(&map, total))) {
		free(numbers);
		pages_free(p);
		return false;
	}
	p->distinct_tokens = p->kv_tokens;
	for (int64_t i = 0; i < b; i++)
		for (int64_t j = 0; j < p->max_pages; j++) {
			int64_t hash;
			int32_t *const entry = &p->table[i * p->max_pages + j];
			*entry = -1;
			if (j * page >= lengths[i])
				continue;
			if (!trace || !page_hash(trace, slots[i].request, j, page, &hash)) {
				*entry = (int32_t)p->num_pages++;
				continue;
			}
			struct shared_page *const known = map_find(&map, hash, j);
			if (known->page >= 0)
				p->distinct_tokens -= page;
			else
				*known = (struct shared_page){hash, j, (int32_t)p->num_pages++};
			*entry = known->page;
		}
	shuffle_numbers(p->table, entries, numbers, p->num_pages, seed);
	free(map.entries);
	free(numbers);
	return true;
}

void pages_free(struct pages *p)
{
	free(p->table);
	p->table = NULL;
}
