/* SPDX-License-Identifier: MIT
 *
 * pages.h - which page of the pool holds which tokens of which request.
 *
 * Every request owns its pages, except that requests of a trace with prefix hashes share the pages which lie entirely
 * in an equal prefix of their prompts (later pages receive generated tokens and are private).  Page numbers are
 * shuffled, as in a pool that has served for a while. */
#ifndef CLI_PAGES_H
#define CLI_PAGES_H

#include "trace.h"

#include <stdbool.h>
#include <stdint.h>

struct pages {
	int32_t *table; /* [b, max_pages]; -1 behind the last page of a request */
	int64_t max_pages, num_pages;
	int64_t kv_tokens;       /* sum of the lengths                             */
	int64_t distinct_tokens; /* the same with every shared page counted once  */
};

/* trace and slots: the batch of a replay, whose prefixes may be shared; both NULL: nothing is shared.
 * false: out of memory, or more pages than an int32 can name. */
bool pages_assign(struct pages *p, const int32_t *lengths, int64_t b, int64_t page, uint64_t seed,
                  const struct trace *trace, const struct replay_slot *slots);
void pages_free(struct pages *p);

#endif
