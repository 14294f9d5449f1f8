/* SPDX-License-Identifier: MIT
 *
 * mma_plan.cuh - stage 2 inside of decode_mma.cu: every CTA finds its own part from the lengths, by the algorithm of
 * plan_core.h, so that small batches need no plan kernel before.  CTA 0 also lists the split requests for combine. */
#ifndef FMLA_PORTABLE_MMA_PLAN_CUH
#define FMLA_PORTABLE_MMA_PLAN_CUH

#include "schedule.h"

/* The split requests of this thread's `first` ... `end` - 1, the first of which starts at `at` on the axis. */
template <int THREADS>
DEV void list_splits(const struct pk_shape &p, const struct mma_buffers &g, const struct plan_axis &axis, int first,
                     int end, int64_t at, int64_t *counts, int64_t *sums)
{
	struct pk_split *const list = (struct pk_split *)(g.splits + 1);
	const int t = threadIdx.x;
	for (int pass = 0; pass < 2; pass++) {
		int64_t n = pass ? pk_sum_before(counts, sums, t) : 0, start = at;
		for (int i = first; i < end; i++) {
			const struct blocks r = pk_blocks(&p, g.lens, g.cu, i);
			const struct pk_pieces pieces = pk_count_pieces(axis, start, r);
			start += plan_cost(axis, r);
			if (pieces.count < 2)
				continue;
			if (pass)
				list[n] = {i, pieces.count, pieces.first};
			n++;
		}
		if (pass)
			break;
		__syncthreads(); /* nobody reads the counts of before any more */
		counts[t] = n;
		__syncthreads();
		if (t < 16)
			sums[t] = 16 * t < THREADS ? pk_sum_of_16(counts + 16 * t) : 0;
		__syncthreads();
	}
	if (t == 0)
		*g.splits = (int32_t)pk_sum_of_16(sums);
}

/* Row `number` of the plan, by thread 0, without its begin_split, which only matters to a host.  In shared memory: the
 * borders before and after the part, and 2 * THREADS + 32 words of scratch. */
template <int THREADS>
DEV void plan_part(const struct pk_shape &p, const struct mma_buffers &g, int number, int64_t *scratch,
                   struct border (&cut)[2], struct part &part)
{
	int64_t *const blocks = scratch, *const longest = blocks + THREADS, *const sums = longest + THREADS,
	               *const tops = sums + 16;
	const int t = threadIdx.x, run = (p.b + THREADS - 1) / THREADS;
	const int first = t * run < p.b ? t * run : p.b, end = first + run < p.b ? first + run : p.b;
	int64_t mine = 0, top = 0;
	for (int i = first; i < end; i++) {
		const struct blocks r = pk_blocks(&p, g.lens, g.cu, i);
		mine += r.end - r.begin;
		top = r.end - r.begin > top ? r.end - r.begin : top;
	}
	blocks[t] = mine;
	longest[t] = top;
	__syncthreads();
	if (t < 16) {
		sums[t] = 16 * t < THREADS ? pk_sum_of_16(blocks + 16 * t) : 0;
		tops[t] = 16 * t < THREADS ? pk_top_of_16(longest + 16 * t) : 0;
	}
	__syncthreads(); /* the sums are there */
	const struct plan_axis axis = plan_axis(pk_sum_of_16(sums), pk_top_of_16(tops), 0, p.b, p.num_parts, p.costs);
	const int64_t start = axis.pieces ? first : pk_sum_before(blocks, sums, t) + (int64_t)first * axis.overhead;
	const int64_t position[2] = {plan_position(axis, number), plan_position(axis, number + 1)};
	if (t == 0) { /* the ends of the axis; other borders are found by whoever has the request */
		if (number == 0)
			cut[0] = {0, 0};
		if (number + 1 >= axis.active)
			cut[1] = {p.b, 0};
	}
	__syncthreads();
	int64_t at = start;
	for (int i = first; i < end; i++) {
		const struct blocks r = pk_blocks(&p, g.lens, g.cu, i);
		const int64_t next = at + plan_cost(axis, r);
		for (int side = 0; side < 2; side++) {
			const int j = number + side;
			if (j == 0 || j >= axis.active || position[side] < at || position[side] >= next)
				continue;
			cut[side] = plan_cut(axis, position[side], i, at, r);
		}
		at = next;
	}
	if (blockIdx.x == 0)
		list_splits<THREADS>(p, g, axis, first, end, start, blocks, sums);
	__syncthreads();
	if (t > 0)
		return;
	if (number >= axis.active) {
		part.begin_req = PLAN_IDLE;
		return;
	}
	const struct blocks none = {0, 0};
	const struct border from = cut[0], to = cut[1];
	const int64_t last = to.block > 0 ? to.req : to.req - 1;
	part = plan_row(axis, from, from.req < p.b ? pk_blocks(&p, g.lens, g.cu, (int)from.req) : none, 0, to,
	                last >= 0 ? pk_blocks(&p, g.lens, g.cu, (int)last) : none);
}

#endif
