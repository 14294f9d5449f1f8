/* SPDX-License-Identifier: MIT
 *
 * mma_plan.cuh - stage 2 inside of decode_mma.cu: every CTA finds its own part from the lengths, by the algorithm of
 * plan_core.h, so that small batches need no plan kernel before.  CTA 0 also lists the split requests for combine.
 *
 * Where requests are dealt out evenly, all that a part depends on is the sum of the blocks, the longest and the shortest
 * request: one warp finds it, without a barrier.  Otherwise all threads look for the part's borders.  Before that, all
 * threads of a plain kernel guess the first piece as if all requests were equal, and send for its first tiles. */
#ifndef FMLA_PORTABLE_MMA_PLAN_CUH
#define FMLA_PORTABLE_MMA_PLAN_CUH

#include "schedule.h"

struct guess {
	int req, start, stop;
};

/* The axis, by a whole warp. */
DEV struct plan_axis axis_of(const struct pk_shape &p, const struct mma_buffers &g)
{
	int sum = 0, top = 0, least = 1 << 25; /* of 32 lengths at most */
#pragma unroll 4                           /* loads at once */
	for (int i = threadIdx.x & 31; i < p.b; i += 32) {
		const struct blocks r = pk_blocks(&p, g.lens, g.cu, i);
		const int n = (int)(r.end - r.begin);
		sum += n;
		top = n > top ? n : top;
		least = n < least ? n : least;
	}
	const int64_t total = warp_sum(sum & 0xffff) + ((int64_t)warp_sum(sum >> 16) << 16);
	struct plan_axis axis = plan_axis(total, warp_max(top), -warp_max(-least), p.b, p.num_parts, p.costs);
	if (p.b == 1 && !axis.pieces && p.costs.chunk == 0 && axis.active > 1) { /* one request: equal pieces as well */
		axis.pieces = (int32_t)axis.active;
		axis.total = axis.active;
		axis.by_pieces = axis.by_active;
	}
	return axis;
}

/* Part `number` of an axis whose requests are dealt out evenly, and its first piece; 0: it has none. */
DEV int run_of(const struct pk_shape &p, const struct mma_buffers &g, const struct plan_axis &axis, int number,
               struct part &part, struct pk_piece &piece)
{
	part.begin_req = PLAN_IDLE;
	if (number >= axis.active)
		return 0;
	const bool whole = axis.pieces == 1;
	const int unit = (int)plan_position(axis, number), until = (int)plan_position(axis, number + 1);
	const int req = whole ? unit : (int)plan_divide(unit, axis.by_pieces), run = unit - req * axis.pieces;
	const struct blocks r = pk_blocks(&p, g.lens, g.cu, req);
	piece.req = req;
	piece.begin = (int)(r.begin + (whole ? 0 : plan_divide(run * (r.end - r.begin), axis.by_pieces)));
	piece.end = (int)(whole ? r.end : r.begin + plan_divide((run + 1) * (r.end - r.begin), axis.by_pieces));
	piece.length = pk_length(&p, g.lens, req);
	piece.tokens = pk_tokens(&p, g.cu, req);
	piece.slot = whole ? -1 : 2 * number + (run == 0);
	if (whole && until - unit > 1) { /* there are more */
		part.begin_req = req;
		part.end_req = until - 1;
		part.begin_block = piece.begin;
		part.end_block = (int)pk_blocks(&p, g.lens, g.cu, until - 1).end;
	}
	return 1;
}

/* The first piece of part `number` if all requests are as long as the first one.  Only a guess: it is rounded, too. */
DEV bool guess_piece(const struct pk_shape &p, const struct mma_buffers &g, int number, struct guess &x)
{
	const int first = (pk_length(&p, g.lens, 0) + BLOCK - 1) / BLOCK;
	const float runs = fmaxf(fminf(g.guess_runs, (float)first), 1);
	x.req = g.guess_each ? number * g.guess_each : (int)__fdividef((float)number + 0.5f, runs);
	if (x.req >= p.b)
		return false;
	const int length = pk_length(&p, g.lens, x.req), blocks = (length + BLOCK - 1) / BLOCK;
	const float run = (float)number - (float)x.req * runs, each = __fdividef((float)blocks, runs);
	const bool whole = g.guess_each || runs < 2;
	x.start = whole ? 0 : (int)(run * each + 0.001f) * BLOCK;
	x.stop = whole ? length : (int)((run + 1) * each + 0.001f) * BLOCK;
	x.stop = x.stop < length ? x.stop : length;
	return x.start < x.stop;
}

/* The list for combine when requests are dealt out evenly, by all threads of a CTA. */
template <int THREADS> DEV void list_runs(const struct pk_shape &p, const struct mma_buffers &g, int pieces)
{
	struct pk_split *const list = (struct pk_split *)(g.splits + 1);
#pragma unroll 1
	for (int i = threadIdx.x; i < p.b && pieces > 1; i += THREADS)
		list[i] = {i, pieces, i * pieces};
	if (threadIdx.x == 0)
		*g.splits = pieces > 1 ? p.b : 0;
}

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

/* Row `number` of the plan, by thread 0, without its begin_split, which only matters to a host; where requests are not dealt
 * out evenly.  In shared memory: the borders before and after the part, and 2 * THREADS + 32 words of scratch. */
template <int THREADS>
COLD void plan_part(const struct pk_shape &p, const struct mma_buffers &g, int number, int64_t *scratch,
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
	const int64_t start = pk_sum_before(blocks, sums, t) + (int64_t)first * axis.overhead;
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
