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

/* Inclusive sum over the CTA's threads; `warp_sums` is shared memory of one value a warp.  Ends with a barrier. */
DEV int64_t block_scan(int64_t x, int64_t *warp_sums, int64_t *total)
{
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
	for (int d = 1; d < 32; d <<= 1) {
		const int64_t y = __shfl_up_sync(0xffffffff, x, d);
		if (lane >= d)
			x += y;
	}
	if (lane == 31)
		warp_sums[warp] = x;
	__syncthreads();
	int64_t before = 0, all = 0;
	for (int w = 0; w < warps; w++) {
		before += w < warp ? warp_sums[w] : 0;
		all += warp_sums[w];
	}
	__syncthreads();
	*total = all;
	return x + before;
}

/* Shared memory of find_part. */
struct schedule {
	struct border border[2]; /* of the part; border[0].req PLAN_IDLE: no work    */
	struct split split;      /* the split request that the part starts, if any   */
	int64_t warp_sums[32];
	int32_t longest;
};

DEV struct blocks request_blocks(const struct decode_params &p, int req)
{
	return plan_blocks(request_len(p, req), request_tokens(p, req), p.window);
}

/* The axis of the live batch; called by all threads of the CTA. */
DEV struct plan_axis live_axis(const struct decode_params &p, struct schedule &sh)
{
	int64_t mine = 0, total;
	int longest = 0;
	if (threadIdx.x == 0)
		sh.longest = 0;
	for (int i = threadIdx.x; i < p.b; i += blockDim.x) {
		const struct blocks r = request_blocks(p, i);
		mine += r.end - r.begin;
		longest = max(longest, (int)(r.end - r.begin));
	}
	__syncthreads();
	longest = __reduce_max_sync(0xffffffff, longest);
	if ((threadIdx.x & 31) == 0)
		atomicMax(&sh.longest, longest);
	block_scan(mine, sh.warp_sums, &total);
	return plan_axis(total, sh.longest, p.b, p.num_parts, p.costs);
}

/* The borders of part `part`; called by all threads of the CTA, ends with a barrier. */
DEV void find_part(const struct decode_params &p, int part, struct schedule &sh)
{
	const struct plan_axis axis = live_axis(p, sh);
	const bool idle = part >= axis.active;
	if (threadIdx.x == 0) {
		sh.border[0] = (struct border){idle ? PLAN_IDLE : 0, 0};
		sh.border[1] = (struct border){p.b, 0};
		sh.split.pieces = 0;
	}
	__syncthreads();
	if (idle)
		return;
	const int64_t at[2] = {plan_position(axis, part), plan_position(axis, part + 1)};
	int64_t start = 0; /* of the first request of this round on the axis */
	for (int base = 0; base < p.b && start <= at[1]; base += blockDim.x) {
		const int i = base + threadIdx.x;
		struct blocks r = {0, 0};
		int64_t cost = 0, sum;
		if (i < p.b) {
			r = request_blocks(p, i);
			cost = plan_cost(axis, r);
		}
		const int64_t S = start + block_scan(cost, sh.warp_sums, &sum) - cost;
		start += sum;
		for (int side = 0; side < 2; side++) {
			if (at[side] < S || at[side] >= S + cost || part + side == 0 || part + side == axis.active)
				continue;
			sh.border[side] = plan_cut(axis, at[side], i, S, r);
			const struct border_range inner = plan_inner_borders(axis, S, r);
			if (side == 1 && inner.first == part + 1 && axis.chunk == 0)
				sh.split = (struct split){i, part, (int)(inner.end - inner.first) + 1};
		}
	}
	__syncthreads();
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

DEV struct walk walk_begin(const struct decode_params &p, int part, const struct border *border)
{
	struct walk w;
	w.req = (int32_t)border[0].req;
	w.block = (int32_t)border[0].block;
	w.end_req = w.req == PLAN_IDLE ? 0 : (int32_t)border[1].req;
	w.end_block = w.req == PLAN_IDLE ? 0 : (int32_t)border[1].block;
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
