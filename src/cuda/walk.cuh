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

DEV int request_len(const struct decode_params &p, int req)
{
	return max(0, min(p.cache_seqlens[req], p.max_len));
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
	int64_t warp_sum[16]; /* CTAs have up to 512 threads */
	int32_t warp_max[16];
};

/* The split request that the part starts, if the part ends inside request i and has its first piece. */
DEV struct split find_split(struct plan_axis axis, int part, int i, int64_t S, struct blocks r, struct border end)
{
	struct split none = {0, 0, 0};
	if (axis.chunk > 0 || end.block == 0)
		return none;
	const struct border_range inner = plan_inner_borders(axis, S, r);
	return inner.first == part + 1 ? (struct split){i, part, (int)(inner.end - inner.first) + 1} : none;
}

/* Sets the borders that lie in request i, whose start on the axis is S. */
DEV void set_borders(struct plan_axis axis, int part, int64_t begin, int64_t end, int i, int64_t S, struct blocks r,
                     struct part_borders &b)
{
	const int64_t next = S + plan_cost(axis, r);
	if (part > 0 && begin >= S && begin < next)
		b.begin = plan_cut(axis, begin, i, S, r);
	if (part + 1 < axis.active && end >= S && end < next) {
		b.end = plan_cut(axis, end, i, S, r);
		b.split = find_split(axis, part, i, S, r, b.end);
	}
}

/* Up to 256 requests: every warp finds the part for itself, without a barrier; a lane has EACH consecutive requests.
 * This code runs once in a CTA, at the speed at which instructions are fetched: what counts is how few there are. */

/* Which request holds position `at` of the axis, and where that request starts; n: blocks of the lane's requests, S:
 * where the first of them starts, first: its number.  No request does (first lane's first): `at` is the axis' end. */
struct place {
	int req, S;
};

template <int EACH> DEV struct place locate(int at, const int (&n)[EACH], int overhead, int S, int first, int b)
{
	struct place here = {first, S};
	bool mine = false;
#pragma unroll
	for (int k = 0; k < EACH; k++) {
		const int cost = first + k < b ? n[k] + overhead : 0;
		if (at >= S && at < S + cost) {
			here.req = first + k;
			here.S = S;
			mine = true;
		}
		S += n[k] + overhead;
	}
	const unsigned owner = __ballot_sync(0xffffffff, mine);
	const int from = owner ? __ffs(owner) - 1 : 0;
	here.req = __shfl_sync(0xffffffff, here.req, from);
	here.S = __shfl_sync(0xffffffff, here.S, from);
	return here;
}

template <int EACH> DEV struct part_borders find_part_in_warp(const struct decode_params &p, int part)
{
	const int lane = threadIdx.x & 31, each = EACH == 1 ? 1 : (p.b + 31) >> 5, first = lane * each;
	int n[EACH], mine = 0, longest = 0;
#pragma unroll
	for (int k = 0; k < EACH; k++) { /* all loads at once: past the end, the last request's again */
		const struct blocks r = request_blocks(p, min(first + k, p.b - 1));
		n[k] = k < each && first + k < p.b ? (int)(r.end - r.begin) : 0;
	}
#pragma unroll
	for (int k = 0; k < EACH; k++) {
		mine += n[k];
		longest = max(longest, n[k]);
	}
	int before = mine;
#pragma unroll
	for (int d = 1; d < 32; d <<= 1) {
		const int left = __shfl_up_sync(0xffffffff, before, d);
		before += lane >= d ? left : 0;
	}
	longest = __reduce_max_sync(0xffffffff, longest);
	const int total = __shfl_sync(0xffffffff, before, 31);
	const struct plan_axis axis = plan_axis(total, longest, p.b, p.num_parts, p.costs);
	struct part_borders b = {{part < axis.active ? 0 : PLAN_IDLE, 0}, {p.b, 0}, {0, 0, 0}};
	const int begin = (int)plan_position(axis, part), end = (int)plan_position(axis, part + 1);
	if (part >= axis.active)
		return b;
	if (axis.whole) { /* a unit of the axis is a request */
		b.begin.req = begin;
		b.end.req = end;
		return b;
	}
	const int S = before - mine + first * axis.overhead;
	const int limit = min(first + each, p.b);
	if (part > 0) {
		const struct place at = locate(begin, n, axis.overhead, S, first, limit);
		b.begin = plan_cut(axis, begin, at.req, at.S, request_blocks(p, at.req));
	}
	if (part + 1 < axis.active) {
		const struct place at = locate(end, n, axis.overhead, S, first, limit);
		const struct blocks r = request_blocks(p, at.req);
		b.end = plan_cut(axis, end, at.req, at.S, r);
		b.split = find_split(axis, part, at.req, at.S, r, b.end);
	}
	return b;
}

/* Exclusive sum of x over the CTA's threads; *total and *top get the sum and the maximum of y over all. */
DEV int64_t block_scan(int64_t *warp_sum, int32_t *warp_max, int64_t x, int32_t y, int64_t *total, int32_t *top)
{
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
	int64_t sum = x;
	for (int d = 1; d < 32; d <<= 1) {
		const int64_t left = __shfl_up_sync(0xffffffff, sum, d);
		sum += lane >= d ? left : 0;
	}
	y = __reduce_max_sync(0xffffffff, y);
	if (lane == 31) {
		warp_sum[warp] = sum;
		warp_max[warp] = y;
	}
	__syncthreads();
	int64_t before = 0, all = 0;
#pragma unroll 1
	for (int w = 0; w < warps; w++) {
		before += w < warp ? warp_sum[w] : 0;
		all += warp_sum[w];
		y = max(y, warp_max[w]);
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
	block_scan(sh.warp_sum, sh.warp_max, mine, longest, &total, &longest);
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
		const int64_t S =
		    start + block_scan(sh.warp_sum, sh.warp_max, i < p.b ? plan_cost(axis, r) : 0, 0, &sum, &ignored);
		if (i < p.b)
			set_borders(axis, part, begin, end, i, S, r, sh.borders);
		start += sum;
	}
	__syncthreads();
	return sh.borders;
}

/* Before grid_wait(), while the kernel before us ends: asks L2 for the lengths and the page table, whose misses would
 * otherwise follow each other at the start of every CTA.  Hints only; the values are read after grid_wait().  Tables
 * too wide to be worth it are left alone. */
DEV void prefetch_inputs(const struct decode_params &p)
{
	enum { LINE = 128, MOST = 1 << 18 };
	const int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * LINE;
	if (at < p.b * (int64_t)sizeof(int32_t))
		prefetch_l2((const char *)p.cache_seqlens + at);
	if (p.b * p.table_stride <= MOST && at < ((p.b - 1) * p.table_stride + 1) * (int64_t)sizeof(int32_t))
		prefetch_l2((const char *)p.block_table + at);
}

/* The part of a CTA; called by all its threads. */
DEV struct part_borders find_part(const struct decode_params &p, int part, struct schedule &sh)
{
	if (p.b > 256 || !p.small)
		return find_part_in_block(p, part, sh);
	return p.b <= 32    ? find_part_in_warp<1>(p, part)
	       : p.b <= 128 ? find_part_in_warp<4>(p, part)
	                    : find_part_in_warp<8>(p, part);
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
	w.next_len = w.req < p.b ? request_len(p, w.req) : 0;
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
				w.next_len = request_len(p, w.req);
		}
		if (row_tile * p.tile_rows < piece.tokens * p.group)
			return true;
	}
	return false;
}

#endif
