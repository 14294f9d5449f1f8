/* SPDX-License-Identifier: MIT
 *
 * plan_core.h - stage 2: the schedule, as pure functions that gcc and nvcc both compile.
 *
 * All requests are laid end to end on one axis of cost.  Request i takes `overhead + n_i` units: the start of a request
 * (fetch q, write out) and its n_i visible blocks of BLOCK tokens.  The axis is cut into `active` equal pieces, one per
 * part, so the planner needs a prefix sum and no search, and any part finds its own borders alone:
 *
 *        S_i          S_i + overhead                               S_i + overhead + n_i = S_i+1
 *     ----|--- start ------|---- block 0 ---- block 1 ---- ... ---------|----
 *                                        ^ border j at floor(j * total / active)
 *
 * A border that falls into the start of a request, or closer than `snap` blocks to either end of it, moves to that end:
 * a split costs a partial result written and read again, which a few blocks are not worth.  Because total / active >=
 * overhead + 2 * snap (plan_axis sees to it), no two borders move to the same place: no part is empty while another has
 * two requests or two blocks to share (except with `chunk`, where borders are coarser by wish). */
#ifndef FMLA_PLAN_CORE_H
#define FMLA_PLAN_CORE_H

/* src/portable/dialect.h defines PLAN_FN, and the integer types with it, for compilers without stdint.h. */
#ifndef PLAN_FN
#include <stdint.h>
#ifdef __CUDACC__
#define PLAN_FN static __host__ __device__ __forceinline__
#else
#define PLAN_FN static inline
#endif
#endif
#include "plan_types.h"

/* What everything here counts in.  walk.cuh takes these functions a second time, in 32 bits. */
#ifndef PLAN_INT
#define PLAN_INT int64_t
#endif
typedef PLAN_INT plan_int;

/* A divisor with its reciprocal: on the card a 64-bit integer division is a subroutine of a hundred dependent
 * instructions.  In double it is exact too, for 0 <= n < 2^50: n + 0.5 keeps the quotient off every integer. */
struct divisor {
	plan_int d;
#ifndef PLAN_NO_DOUBLE /* OpenCL devices need not have it */
	double inverse;    /* used on the card */
#endif
};

PLAN_FN struct divisor plan_divisor(plan_int d)
{
	struct divisor x;
	x.d = d;
#ifdef __CUDA_ARCH__
	const double exact = (double)d;
	asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(x.inverse) : "d"(exact)); /* 20 bits, doubled twice */
	x.inverse = fma(x.inverse, fma(-exact, x.inverse, 1.0), x.inverse);
	x.inverse = fma(x.inverse, fma(-exact, x.inverse, 1.0), x.inverse);
#elif !defined(PLAN_NO_DOUBLE)
	x.inverse = 0;
#endif
	return x;
}

/* floor(n / x) */
PLAN_FN plan_int plan_divide(plan_int n, struct divisor x)
{
#ifdef __CUDA_ARCH__
	return (plan_int)(((double)n + 0.5) * x.inverse);
#else
	return n / x.d;
#endif
}

struct plan_axis {
	plan_int total;  /* cost of everything                        */
	plan_int active; /* parts with work, 1 <= active <= num_parts */
	int32_t overhead, snap, chunk;
	/* 0: cut anywhere.  Else requests are dealt out evenly, and each takes this many units of the axis: 1, it is not
	 * split; more, it is cut into as many equal pieces, each for a part of its own. */
	int32_t pieces;
	struct divisor by_total, by_active, by_pieces;
};

struct blocks {
	plan_int begin, end; /* the visible blocks of a request; begin == end: none */
};

/* A border lies before block `block` (relative to the request's first visible block) of request `req`. */
struct border {
	plan_int req, block;
};

/* The blocks that hold the visible keys of a request of `len` keys and s_q query tokens. */
PLAN_FN struct blocks plan_blocks(plan_int len, plan_int s_q, plan_int window)
{
	struct blocks r = {0, (len + BLOCK - 1) / BLOCK};
	if (len <= 0 || s_q <= 0) {
		r.end = 0;
		return r;
	}
	if (window > 0 && len - s_q + 1 > window) /* first key that the first query token sees */
		r.begin = (len - s_q + 1 - window) / BLOCK;
	return r;
}

/* How many pieces a request is cut into when b requests of min_blocks to max_blocks blocks are dealt out evenly, and what
 * the costliest part costs then. */
struct plan_deal {
	plan_int each, pieces; /* requests a part, or pieces a request; one of them is 1 */
	plan_int most;
};

PLAN_FN struct plan_deal plan_deal(plan_int max_blocks, plan_int min_blocks, plan_int b, plan_int num_parts,
                                   plan_int active, plan_int overhead, struct divisor by_parts, struct plan_costs c)
{
	struct plan_deal d = {1, 1, max_blocks + overhead};
	if (b > num_parts) {
		d.each = plan_divide(b + num_parts - 1, by_parts);
		d.most *= d.each;
	} else if (c.even && c.chunk == 0 && b > 1 && 2 * b <= active) {
		const plan_int pieces = plan_divide(active, plan_divisor(b));
		if (pieces <= min_blocks) {
			d.pieces = pieces;
			d.most = plan_divide(max_blocks + pieces - 1, plan_divisor(pieces)) + overhead;
		}
	}
	return d;
}

/* The axis for `total_blocks` blocks in b requests of min_blocks to max_blocks blocks. */
PLAN_FN struct plan_axis plan_axis(plan_int total_blocks, plan_int max_blocks, plan_int min_blocks, plan_int b,
                                   plan_int num_parts, struct plan_costs c)
{
	struct plan_axis x;
	const struct divisor by_parts = plan_divisor(num_parts);
	plan_int active = num_parts;
	x.by_active = by_parts;
	if (total_blocks < num_parts * c.min_blocks) {
		active = plan_divide(total_blocks, plan_divisor(c.min_blocks));
		if (active < 1)
			active = 1;
		x.by_active = plan_divisor(active);
	}
	const plan_int share = plan_divide(total_blocks, x.by_active); /* blocks of an average part */
	const plan_int overhead = c.overhead < share / 2 ? c.overhead : share / 2;
	const plan_int snap = c.max_snap < share / 4 ? c.max_snap : share / 4;
	x.active = active;
	x.overhead = (int32_t)overhead;
	x.snap = (int32_t)snap;
	x.chunk = c.chunk;
	x.total = total_blocks + b * overhead;
	x.pieces = 0;
	x.by_pieces = by_parts;
	const struct plan_deal deal = plan_deal(max_blocks, min_blocks, b, num_parts, active, overhead, by_parts, c);
	const plan_int more = share * c.whole_16ths / 16;
	if (total_blocks > 0 && deal.most <= plan_divide(x.total, x.by_active) + (more > c.whole ? more : c.whole)) {
		x.pieces = (int32_t)deal.pieces;
		x.total = x.active = b * deal.pieces;
		if (deal.each > 1)
			x.active = plan_divide(b + deal.each - 1, plan_divisor(deal.each));
		else if (deal.pieces > 1)
			x.by_pieces = plan_divisor(deal.pieces);
		x.by_active = plan_divisor(x.active);
	}
	x.by_total = plan_divisor(x.total > 0 ? x.total : 1);
	return x;
}

/* What a request takes of the axis. */
PLAN_FN plan_int plan_cost(struct plan_axis x, struct blocks r)
{
	return x.pieces ? x.pieces : x.overhead + (r.end - r.begin);
}

/* Where border j, 0 <= j <= active, lies on the axis. */
PLAN_FN plan_int plan_position(struct plan_axis x, plan_int j)
{
	return plan_divide(j * x.total, x.by_active);
}

/* The border at position `at` inside request `req`, whose start is at S and which has n visible blocks from `begin`. */
PLAN_FN struct border plan_cut(struct plan_axis x, plan_int at, plan_int req, plan_int S, struct blocks r)
{
	const plan_int n = r.end - r.begin;
	const plan_int snap = x.pieces ? 0 : x.snap;
	plan_int k = x.pieces == 1 ? 0 : x.pieces ? plan_divide((at - S) * n, x.by_pieces) : at - S - x.overhead;
	if (x.chunk > 0)
		k = (r.begin + k) / x.chunk * x.chunk - r.begin;
	struct border cut = {req, k};
	if (k <= 0 || k < snap)
		cut.block = 0;
	else if (n - k < snap || k >= n) {
		cut.req = req + 1;
		cut.block = 0;
	}
	return cut;
}

/* The borders strictly inside a request, as a range of border numbers: first <= j < end.  A request with none is not
 * split; otherwise parts first - 1 .. end - 1 share it, and part first - 1 + s computes its split number s.  (Not with
 * chunk, where plan_chunks() says how a request is split.) */
struct border_range {
	plan_int first, end;
};

PLAN_FN plan_int plan_border_at_or_after(struct plan_axis x, plan_int at)
{
	return plan_divide(at * x.active + x.total - 1, x.by_total); /* smallest j with floor(j * total / active) >= at */
}

PLAN_FN struct border_range plan_inner_borders(struct plan_axis x, plan_int S, struct blocks r)
{
	const plan_int n = r.end - r.begin, near = x.snap > 1 ? x.snap : 1;
	struct border_range in = {0, 0};
	if (x.pieces > 1) {
		in.first = S + 1; /* a border lies at each unit */
		in.end = S + x.pieces;
		return in;
	}
	if (x.pieces || x.total <= 0 || n < 2 * near)
		return in;
	in.first = plan_border_at_or_after(x, S + x.overhead + near);
	in.end = plan_border_at_or_after(x, S + x.overhead + n - near + 1);
	if (in.first < 1)
		in.first = 1;
	if (in.end > x.active)
		in.end = x.active;
	if (in.end <= in.first)
		in.first = in.end = 0;
	return in;
}

/* Batch-invariant mode: a request's blocks are cut at multiples of `chunk`, whoever works on them, so that its sums do
 * not depend on its batchmates.  Split s of a request is its chunk number r.begin / chunk + s; a part may hold several.
 */
PLAN_FN plan_int plan_chunks(int32_t chunk, struct blocks r)
{
	return r.end > r.begin ? (r.end - 1) / chunk - r.begin / chunk + 1 : 1;
}

/* The row of the part between two borders.  r_from: blocks of request from.req; r_last: blocks of the last request that
 * the part works on, which is to.req when to.block > 0 and to.req - 1 otherwise; split: how many borders of from.req
 * lie before or at `from`, which is 0 when from.block is (ignored with chunk). */
PLAN_FN struct part plan_row(struct plan_axis x, struct border from, struct blocks r_from, plan_int split,
                             struct border to, struct blocks r_last)
{
	struct part row = {PLAN_IDLE, 0, 0, 0, 0, 0, 0, PLAN_TAG};
	if (from.req == to.req && from.block == to.block)
		return row;
	const int inside = to.block > 0; /* `to` lies inside the last request */
	const plan_int last = inside ? to.req : to.req - 1;
	row.begin_req = (int32_t)from.req;
	row.end_req = (int32_t)last;
	row.begin_block = (int32_t)(r_from.begin + from.block);
	row.end_block = (int32_t)(inside ? r_last.begin + to.block : r_last.end);
	if (x.chunk > 0) {
		row.begin_split = (int32_t)(row.begin_block / x.chunk - r_from.begin / x.chunk);
		row.first_split = plan_chunks(x.chunk, r_from) > 1;
		row.last_split = plan_chunks(x.chunk, r_last) > 1;
	} else {
		row.begin_split = (int32_t)split;
		row.first_split = from.block > 0 || (inside && from.req == last);
		row.last_split = inside || (from.block > 0 && from.req == last);
	}
	return row;
}

#endif
