/* SPDX-License-Identifier: MIT
 *
 * schedule.h - what the plan kernel (plan.h) and CTAs that plan for themselves (mma_plan.cuh) share. */
#ifndef FMLA_PORTABLE_SCHEDULE_H
#define FMLA_PORTABLE_SCHEDULE_H

#include "walk.h"

/* What work-item t needs of a scan of x over the group, after all have stored x in x[] and met a barrier: the sum of
 * those before it.  In two steps of at most 16: sums of 16 each, then single values. */
PK_FN int64_t pk_sum_before(const PK_LOCAL int64_t *x, const PK_LOCAL int64_t *sums_of_16, int t)
{
	int64_t sum = 0;
	for (int i = 0; i < t / 16; i++)
		sum += sums_of_16[i];
	for (int i = t & ~15; i < t; i++)
		sum += x[i];
	return sum;
}

PK_FN int64_t pk_sum_of_16(const PK_LOCAL int64_t *x)
{
	int64_t sum = 0;
	for (int i = 0; i < 16; i++)
		sum += x[i];
	return sum;
}

PK_FN int64_t pk_top_of_16(const PK_LOCAL int64_t *x)
{
	int64_t top = x[0];
	for (int i = 1; i < 16; i++)
		top = x[i] > top ? x[i] : top;
	return top;
}

/* How many pieces a request is split into that starts at `at` on the axis, and (not with chunk) which part has the
 * first of several. */
struct pk_pieces {
	int count, first;
};

PK_FN struct pk_pieces pk_count_pieces(struct plan_axis axis, int64_t at, struct blocks r)
{
	struct pk_pieces n = {1, 0};
	if (axis.chunk > 0) {
		n.count = (int)plan_chunks(axis.chunk, r);
	} else {
		const struct border_range inner = plan_inner_borders(axis, at, r);
		n.count = (int)(inner.end - inner.first) + 1;
		n.first = (int)inner.first - 1;
	}
	return n;
}

#endif
