/* SPDX-License-Identifier: MIT
 *
 * Fuzz target: trace files in both formats, and the batches replayed from what was accepted. */
#include "../cli/pages.h"
#include "../cli/trace.h"
#include "../cli/workload.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)  \
	do {             \
		if (!(cond)) \
			abort(); \
	} while (0)

enum { MAX_BATCH = 8, MAX_STEPS = 64, PAGE = 96, MAX_TABLE = 1 << 16 };

/* Every page of a request is a number of the pool, and only those are. */
static void check_pages(const struct trace *t, const struct replay *r)
{
	int32_t lengths[MAX_BATCH];
	struct pages p;
	int64_t longest = 0;
	for (int i = 0; i < r->count; i++) {
		lengths[i] = r->slots[i].length;
		longest = lengths[i] > longest ? lengths[i] : longest;
	}
	if (longest > MAX_TABLE)
		return; /* valid, but slow to fuzz */
	CHECK(pages_assign(&p, lengths, r->count, PAGE, 1, t, r->slots));
	CHECK(p.distinct_tokens <= p.kv_tokens && p.distinct_tokens > 0);
	for (int i = 0; i < r->count; i++)
		for (int64_t j = 0; j < p.max_pages; j++) {
			const int32_t page = p.table[i * p.max_pages + j];
			CHECK(j * PAGE < lengths[i] ? page >= 0 && page < p.num_pages : page == -1);
		}
	pages_free(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct trace t;
	struct replay r;
	const bool accepted = trace_parse(&t, (const char *)data, size);
	CHECK(accepted == (t.error[0] == 0));
	if (accepted) {
		int32_t quantiles[WORKLOAD_KNOTS];
		workload_quantiles(&t, quantiles);
		for (int k = 1; k < WORKLOAD_KNOTS; k++)
			CHECK(quantiles[k] >= quantiles[k - 1]);
		CHECK(replay_start(&r, &t, MAX_BATCH, size % 2 ? 30 : 0));
		for (int step = 0; step < MAX_STEPS && replay_step(&r); step++) {
			CHECK(r.count > 0 && r.count <= MAX_BATCH);
			for (int i = 0; i < r.count; i++) {
				const struct trace_request *q = &t.requests[r.slots[i].request];
				CHECK(r.slots[i].length > q->input && r.slots[i].length < q->input + q->output);
			}
			if (step % 16 == 0)
				check_pages(&t, &r);
		}
		replay_free(&r);
	}
	trace_free(&t);
	return 0;
}
