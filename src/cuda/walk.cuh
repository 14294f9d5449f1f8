/* SPDX-License-Identifier: MIT
 *
 * walk.cuh - stage 2 inside the decode kernel: every CTA finds its own part from the live lengths, then walks it.
 *
 * There is no plan to go stale: one read of cache_seqlens, a prefix sum over the CTA's threads, and plan_core.h's
 * closed forms give the two borders of the part.  Producer, Q loader and consumers each step their own `struct walk`.
 */
#ifndef FMLA_WALK_CUH
#define FMLA_WALK_CUH

#include "kernels.h"
#include "ptx.cuh"

DEV int request_tokens(const struct decode_params &p, int req)
{
	return p.cu_seqlens_q ? p.cu_seqlens_q[req + 1] - p.cu_seqlens_q[req] : p.s_q;
}

DEV int64_t request_len(const struct decode_params &p, int req)
{
	const int64_t len = p.cache_seqlens[req];
	return len < 0 ? 0 : len < p.max_len ? len : p.max_len;
}

DEV struct blocks request_blocks(const struct decode_params &p, int req)
{
	return plan_blocks(request_len(p, req), request_tokens(p, req), p.window);
}

/* What a CTA works on. */
struct part_borders {
	struct border begin, end; /* begin.req PLAN_IDLE: no work                      */
	struct split split;       /* the split request that the part starts, pieces 0: none */
};

/* Shared memory of find_part. */
struct schedule {
	struct part_borders borders;
	int64_t warp_sum[32];
	int32_t warp_max[32];
};

/* Sets the borders that lie in request i, whose start on the axis is S. */
DEV void set_borders(struct plan_axis axis, int part, int64_t begin, int64_t end, int i, int64_t S, struct blocks r,
                     struct part_borders &b)
{
	const int64_t next = S + plan_cost(axis, r);
	if (part > 0 && begin >= S && begin < next)
		b.begin = plan_cut(axis, begin, i, S, r);
	if (part + 1 < axis.active && end >= S && end < next) {
		b.end = plan_cut(axis, end, i, S, r);
		if (axis.chunk == 0 && b.end.block > 0) {
			const struct border_range inner = plan_inner_borders(axis, S, r);
			if (inner.first == part + 1)
				b.split = (struct split){i, part, (int)(inner.end - inner.first) + 1};
		}
	}
}

/* Up to 256 requests: every warp finds the part for itself, without a barrier; a lane has eight requests. */
DEV struct part_borders find_part_in_warp(const struct decode_params &p, int part)
{
	enum { EACH = 8 };
	const int lane = threadIdx.x & 31, each = (p.b + 31) >> 5;
	struct blocks r[EACH];
	int mine = 0, longest = 0;
#pragma unroll
	for (int k = 0; k < EACH; k++) {
		const int i = lane * each + k;
		r[k] = (struct blocks){0, 0};
		if (k < each && i < p.b)
			r[k] = request_blocks(p, i);
	}
#pragma unroll
	for (int k = 0; k < EACH; k++) {
		mine += (int)(r[k].end - r[k].begin);
		longest = max(longest, (int)(r[k].end - r[k].begin));
	}
	int before = mine;
	for (int d = 1; d < 32; d <<= 1) {
		const int left = __shfl_up_sync(0xffffffff, before, d);
		before += lane >= d ? left : 0;
	}
	const int total = __shfl_sync(0xffffffff, before, 31);
	before -= mine;
	longest = __reduce_max_sync(0xffffffff, longest);
	const struct plan_axis axis = plan_axis(total, longest, p.b, p.num_parts, p.costs);
	struct part_borders b = {{part < axis.active ? 0 : PLAN_IDLE, 0}, {p.b, 0}, {0, 0, 0}};
	const int64_t begin = plan_position(axis, part), end = plan_position(axis, part + 1);
	bool hit_begin = false, hit_end = false;
	if (part < axis.active) {
#pragma unroll 1
		for (int k = 0; k < each; k++) {
			const int i = lane * each + k;
			if (i >= p.b)
				break;
			struct blocks rk = r[0];
#pragma unroll
			for (int n = 1; n < EACH; n++)
				rk = n == k ? r[n] : rk;
			const int64_t S = axis.whole ? i : before + (int64_t)i * axis.overhead, next = S + plan_cost(axis, rk);
			set_borders(axis, part, begin, end, i, S, rk, b);
			hit_begin |= begin >= S && begin < next;
			hit_end |= end >= S && end < next;
			before += (int)(rk.end - rk.begin);
		}
	}
	/* The lane that holds a border tells the others; without one (first, last part) all agree already. */
	const unsigned begins = __ballot_sync(0xffffffff, hit_begin), ends = __ballot_sync(0xffffffff, hit_end);
	const int from = begins ? __ffs(begins) - 1 : 0, to = ends ? __ffs(ends) - 1 : 0;
	b.begin.req = __shfl_sync(0xffffffff, (int)b.begin.req, from);
	b.begin.block = __shfl_sync(0xffffffff, (int)b.begin.block, from);
	b.end.req = __shfl_sync(0xffffffff, (int)b.end.req, to);
	b.end.block = __shfl_sync(0xffffffff, (int)b.end.block, to);
	b.split.req = __shfl_sync(0xffffffff, b.split.req, to);
	b.split.first_part = __shfl_sync(0xffffffff, b.split.first_part, to);
	b.split.pieces = __shfl_sync(0xffffffff, b.split.pieces, to);
	return b;
}

/* Exclusive sum of x over the CTA's threads; *total and *top get the sum and the maximum of y over all. */
DEV int64_t block_scan(struct schedule &sh, int64_t x, int32_t y, int64_t *total, int32_t *top)
{
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
	int64_t sum = x;
	for (int d = 1; d < 32; d <<= 1) {
		const int64_t left = __shfl_up_sync(0xffffffff, sum, d);
		sum += lane >= d ? left : 0;
	}
	y = __reduce_max_sync(0xffffffff, y);
	if (lane == 31) {
		sh.warp_sum[warp] = sum;
		sh.warp_max[warp] = y;
	}
	__syncthreads();
	int64_t before = 0, all = 0;
#pragma unroll 1
	for (int w = 0; w < warps; w++) {
		before += w < warp ? sh.warp_sum[w] : 0;
		all += sh.warp_sum[w];
		y = max(y, sh.warp_max[w]);
	}
	__syncthreads(); /* sh may be written again */
	*total = all;
	*top = y;
	return before + sum - x;
}

/* Any number of requests, by all threads of the CTA: one round for the axis, one for the borders. */
DEV struct part_borders find_part_in_block(const struct decode_params &p, int part, struct schedule &sh)
{
	int64_t mine = 0, total;
	int32_t longest = 0;
#pragma unroll 1
	for (int i = threadIdx.x; i < p.b; i += blockDim.x) {
		const struct blocks r = request_blocks(p, i);
		mine += r.end - r.begin;
		longest = max(longest, (int)(r.end - r.begin));
	}
	block_scan(sh, mine, longest, &total, &longest);
	const struct plan_axis axis = plan_axis(total, longest, p.b, p.num_parts, p.costs);
	const bool idle = part >= axis.active;
	if (threadIdx.x == 0)
		sh.borders = (struct part_borders){{idle ? PLAN_IDLE : 0, 0}, {p.b, 0}, {0, 0, 0}};
	__syncthreads();
	const int64_t begin = plan_position(axis, part), end = plan_position(axis, part + 1);
	int64_t start = 0; /* of this round's first request on the axis */
#pragma unroll 1
	for (int base = 0; base < p.b && !idle && start <= end; base += blockDim.x) {
		const int i = base + threadIdx.x;
		const struct blocks none = {0, 0}, r = i < p.b ? request_blocks(p, i) : none;
		int64_t sum;
		int32_t ignored;
		const int64_t S = start + block_scan(sh, i < p.b ? plan_cost(axis, r) : 0, 0, &sum, &ignored);
		if (i < p.b)
			set_borders(axis, part, begin, end, i, S, r, sh.borders);
		start += sum;
	}
	__syncthreads();
	return sh.borders;
}

/* The part of a CTA; called by all its threads. */
DEV struct part_borders find_part(const struct decode_params &p, int part, struct schedule &sh)
{
	return p.b <= 256 && p.small ? find_part_in_warp(p, part) : find_part_in_block(p, part, sh);
}

/* A piece: consecutive blocks of one request that one CTA turns into one result. */
struct piece {
	int32_t req;
	int32_t begin, end;  /* absolute blocks; begin == end: an empty request              */
	int32_t len, tokens; /* keys and query tokens of the request                         */
	int32_t slot;        /* -1: the whole request, straight to out; else a partial slot  */
};

struct walk {
	int32_t req, block;         /* next piece starts here; block relative, 0: the request's first      */
	int32_t end_req, end_block; /* the part's second border                                            */
	int32_t part;
	int32_t next_len; /* length of `req`, read ahead */
};

DEV struct walk walk_begin(const struct decode_params &p, int part, const struct part_borders &b)
{
	struct walk w;
	w.req = (int32_t)b.begin.req;
	w.block = (int32_t)b.begin.block;
	w.end_req = w.req == PLAN_IDLE ? 0 : (int32_t)b.end.req;
	w.end_block = w.req == PLAN_IDLE ? 0 : (int32_t)b.end.block;
	w.part = part;
	w.next_len = w.req < p.b ? (int32_t)request_len(p, w.req) : 0;
	return w;
}

/* The next piece with rows in tile `row_tile`; false at the end of the part. */
DEV bool walk_next(const struct decode_params &p, struct walk &w, int row_tile, struct piece &piece)
{
	while (w.req < w.end_req || (w.req == w.end_req && w.block < w.end_block)) {
		piece.req = w.req;
		piece.len = w.next_len;
		piece.tokens = request_tokens(p, w.req);
		const struct blocks r = plan_blocks(piece.len, piece.tokens, p.window);
		const int begin = (int)r.begin, end = (int)r.end;
		piece.begin = begin + w.block;
		piece.end = w.req == w.end_req ? begin + w.end_block : end;
		if (p.costs.chunk > 0) { /* one piece a chunk, whoever computes it */
			const int chunk = piece.begin / p.costs.chunk, chunk_end = (chunk + 1) * p.costs.chunk;
			if (chunk_end < piece.end)
				piece.end = chunk_end;
			piece.slot = end <= chunk_end && begin >= chunk * p.costs.chunk ? -1 : piece.req * p.max_chunks + chunk;
		} else {
			piece.slot = piece.begin == begin && piece.end == end ? -1 : 2 * w.part + (piece.begin == begin);
		}
		if (piece.end < end) {
			w.block = piece.end - begin;
		} else {
			w.req++;
			w.block = 0;
			if (w.req < p.b)
				w.next_len = (int32_t)request_len(p, w.req);
		}
		if (row_tile * p.tile_rows < piece.tokens * p.group)
			return true;
	}
	return false;
}

#endif
