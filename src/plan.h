/* SPDX-License-Identifier: MIT
 *
 * Stage 2 on the host: what a request is to the planner, the plan in host memory, and the walk of one part.  The
 * algorithm itself is plan_core.h, which host and device share. */
#ifndef FMLA_PLAN_H
#define FMLA_PLAN_H

#include "plan_core.h"
#include "problem.h"

#include <stdbool.h>
#include <stddef.h>

/* ---- a request ------------------------------------------------------------------------------------------------- */

struct keys {
	int64_t begin, end; /* begin == end: none */
};

/* Query tokens before request i, and of request i. */
static inline int64_t request_q_begin(const struct problem *p, int64_t i)
{
	return p->cu_seqlens_q ? p->cu_seqlens_q[i] : i * p->s_q;
}

static inline int64_t request_s_q(const struct problem *p, int64_t i)
{
	return p->cu_seqlens_q ? (int64_t)p->cu_seqlens_q[i + 1] - p->cu_seqlens_q[i] : p->s_q;
}

/* The keys that query token s of request i sees. */
static inline struct keys row_keys(const struct problem *p, int64_t i, int64_t s)
{
	const int64_t len = p->cache_seqlens[i], self = len - request_s_q(p, i) + s;
	struct keys k = {0, p->causal && self + 1 < len ? self + 1 : len};
	if (p->window > 0 && self + 1 > p->window)
		k.begin = self + 1 - p->window;
	if (k.end < k.begin) /* a row before the first key, or an empty request */
		k.end = k.begin;
	return k;
}

/* The keys that some query token of request i may see. */
static inline struct keys request_keys(const struct problem *p, int64_t i)
{
	const int64_t len = p->cache_seqlens[i], s_q = request_s_q(p, i);
	if (len <= 0 || s_q <= 0)
		return (struct keys){0, 0};
	return (struct keys){row_keys(p, i, 0).begin, len};
}

static inline struct blocks request_blocks(const struct problem *p, int64_t i)
{
	return plan_blocks(p->cache_seqlens[i], request_s_q(p, i), p->window);
}

/* ---- the plan -------------------------------------------------------------------------------------------------- */

/* Writes a plan for `num_parts` workers into rows [num_rows >= num_parts] (the rest idle) and splits [b + 1]. */
void plan_build(const struct problem *p, struct plan_costs costs, int64_t num_parts, struct part *rows,
                int64_t num_rows, int32_t *splits);

/* Is this a plan of this very batch for at most max_parts workers?  Every block once, in order, every field right. */
bool plan_fits(const struct problem *p, struct plan_costs costs, int64_t max_parts, const struct part *rows,
               int64_t num_rows, const int32_t *splits);

/* The caller's plan where it fits, a new one otherwise, into rows [num_parts] and splits [b + 1]. */
void plan_ready(const struct problem *p, struct plan_costs costs, int64_t num_parts, struct part *rows,
                int32_t *splits);

/* ---- pieces ---------------------------------------------------------------------------------------------------- */

/* Consecutive blocks of one request that one part sums up in one go.  The piece of a whole (unsplit) request goes to
 * `out`; a piece of a split one leaves s_q * h_q partial rows, in order [s, h], from partial row `row` on. */
struct piece {
	int64_t req;
	int64_t begin, end; /* blocks */
	int64_t row;        /* -1: whole */
};

/* Partial rows that pieces of num_parts parts may need, from shapes alone. */
int64_t plan_partial_rows(const struct problem *p, int32_t chunk, int64_t num_parts);

/* The next piece of part number `part_no`; start with a piece {.req = -1}. */
bool plan_next_piece(const struct problem *p, int32_t chunk, const struct part *row, int64_t part_no,
                     struct piece *piece);

/* The pieces of a split request in order: piece j begins at partial row j == 0 ? first : second + (j - 1) * step. */
struct pieces {
	int64_t req, n;
	int64_t first, second, step;
};

/* The split request that part number `part_no` starts and leaves to others to finish; false: none.  (Not with chunk.)
 */
bool plan_started(const struct problem *p, const struct part *row, int64_t part_no, const int32_t *splits,
                  struct pieces *pieces);

/* The chunks of request i; n is 1 when it is whole. */
struct pieces plan_chunked(const struct problem *p, int32_t chunk, int64_t i);

#endif
