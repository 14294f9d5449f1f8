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

/* plan_core.h once more, in 32 bits: a CTA's start is a chain of its instructions, and half as many do. */
namespace narrow
{
#undef FMLA_PLAN_CORE_H
#undef PLAN_INT
#define PLAN_INT int32_t
#include "plan_core.h"
#undef PLAN_INT
#define PLAN_INT int64_t
} // namespace narrow

/* Lengths come from L2: what L1 holds may be from before grid_wait(). */
DEV int request_tokens(const struct decode_params &p, int req)
{
	return p.cu_seqlens_q ? load_relaxed(p.cu_seqlens_q + req + 1) - load_relaxed(p.cu_seqlens_q + req) : p.s_q;
}

DEV int request_len(const struct decode_params &p, int req)
{
	return max(0, min(load_relaxed(p.cache_seqlens + req), p.max_len));
}

DEV struct narrow::blocks request_blocks(const struct decode_params &p, int req)
{
	return narrow::plan_blocks(request_len(p, req), request_tokens(p, req), p.window);
}

DEV struct blocks wide_blocks(const struct decode_params &p, int req)
{
	const struct narrow::blocks r = request_blocks(p, req);
	return (struct blocks){r.begin, r.end};
}

/* Which of a request's pages holds a token. */
DEV int token_page(const struct decode_params &p, int token)
{
	return p.page_shift >= 0 ? token >> p.page_shift : token / p.page;
}

/* What a CTA works on. */
struct part_borders {
	struct narrow::border begin, end; /* begin.req PLAN_IDLE: no work */
};

/* Shared memory of a CTA's start, and what it leaves for the end.  Of the unions, the first members are for the thread that
 * calls find_splits, which writes the others. */
struct schedule {
	union {
		struct {
			struct part_borders borders;
			int64_t start[2]; /* of the requests that hold the borders, on the axis */
		};
		uint32_t adopted[2][MAX_ENTRIES / 32]; /* entries of the splits: gather.cuh */
	};
	struct split split[2];  /* the request of the first piece, if it began before; of the last, if it goes on */
	int32_t adopted_any;    /* is there one?                                                */
	int16_t handed[2];      /* 1: who waited for the pieces of a share left it to others    */
	uint64_t bar_gather[2]; /* the pieces of a share are there                              */
	union {
		struct {
			int64_t sum[12]; /* by warp, of up to 384 threads */
			int32_t max[12];
		};
		struct narrow::plan_axis axis; /* afterwards: of up to 256 requests whose sums are small */
		struct plan_axis wide_axis;    /* of others                                              */
	};
};

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
	w.req = b.begin.req;
	w.block = b.begin.block;
	w.end_req = w.req == PLAN_IDLE ? 0 : b.end.req;
	w.end_block = w.req == PLAN_IDLE ? 0 : b.end.block;
	w.part = part;
	w.next_len = w.req < p.b ? request_len(p, w.req) : 0;
	return w;
}

DEV bool walk_goes_on(const struct walk &w)
{
	return w.req < w.end_req || (w.req == w.end_req && w.block < w.end_block);
}

/* The next piece with rows in tile `row_tile`; false at the end of the part. */
DEV bool walk_next(const struct decode_params &p, struct walk &w, int row_tile, struct piece &piece)
{
	while (walk_goes_on(w)) {
		piece.req = w.req;
		piece.len = w.next_len;
		piece.tokens = request_tokens(p, w.req);
		const struct narrow::blocks r = narrow::plan_blocks(piece.len, piece.tokens, p.window);
		const int begin = r.begin, end = r.end;
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

/* Up to 256 requests: every warp finds the part for itself, without a barrier; a lane has `each` consecutive requests, EACH
 * at most.  This code runs once in a CTA, at the speed at which instructions are fetched: what counts is how few there
 * are. */
template <int EACH> struct lane_requests {
	int len[EACH], tokens[EACH];
};

/* Reads them, all loads at once; past the end, the last request's again.  Returns whether they are what they were. */
template <int EACH> DEV bool read_requests(const struct decode_params &p, int each, struct lane_requests<EACH> &r)
{
	const int lane = threadIdx.x & 31;
	bool same = true;
#pragma unroll
	for (int k = 0; k < EACH; k++) {
		const int req = min(lane * each + min(k, each - 1), p.b - 1);
		const int len = request_len(p, req), tokens = request_tokens(p, req);
		same = same && len == r.len[k] && tokens == r.tokens[k];
		r.len[k] = len;
		r.tokens[k] = tokens;
	}
	return __all_sync(0xffffffff, same);
}

/* Which request holds position `at` of the axis, where that request starts, and its blocks; r: blocks of the lane's
 * requests, S: where the first of them starts, first: its number.  No request does (first lane's first): `at` is the axis'
 * end. */
struct place {
	int req, S;
	struct narrow::blocks r;
};

template <int EACH>
DEV struct place locate(const struct narrow::plan_axis &axis, int at, const struct narrow::blocks (&r)[EACH], int S,
                        int first, int b)
{
	struct place here = {first, S, r[0]};
	bool mine = false;
#pragma unroll
	for (int k = 0; k < EACH; k++) {
		const int cost = first + k < b ? narrow::plan_cost(axis, r[k]) : 0;
		if (at >= S && at < S + cost) {
			here.req = first + k;
			here.S = S;
			here.r = r[k];
			mine = true;
		}
		S += cost;
	}
	const unsigned owner = __ballot_sync(0xffffffff, mine);
	const int from = owner ? __ffs(owner) - 1 : 0;
	here.req = __shfl_sync(0xffffffff, here.req, from);
	here.S = __shfl_sync(0xffffffff, here.S, from);
	here.r.begin = __shfl_sync(0xffffffff, here.r.begin, from);
	here.r.end = __shfl_sync(0xffffffff, here.r.end, from);
	return here;
}

template <int EACH>
DEV struct part_borders borders_from(const struct decode_params &p, int part,
                                     const struct lane_requests<EACH> &requests, int each,
                                     struct narrow::plan_axis &axis, int (&start)[2])
{
	const int lane = threadIdx.x & 31, first = lane * each, limit = min(first + each, p.b);
	struct narrow::blocks r[EACH];
	int mine = 0, longest = 0, shortest = INT32_MAX;
#pragma unroll
	for (int k = 0; k < EACH; k++) {
		r[k] = narrow::plan_blocks(requests.len[k], requests.tokens[k], p.window);
		const int n = first + k < limit ? r[k].end - r[k].begin : 0;
		mine += n;
		longest = max(longest, n);
		shortest = first + k < limit ? min(shortest, n) : shortest;
	}
	int before = mine;
#pragma unroll
	for (int d = 1; d < 32; d <<= 1) {
		const int left = __shfl_up_sync(0xffffffff, before, d);
		before += lane >= d ? left : 0;
	}
	longest = __reduce_max_sync(0xffffffff, longest);
	shortest = __reduce_min_sync(0xffffffff, shortest);
	const int total = __shfl_sync(0xffffffff, before, 31);
	axis = narrow::plan_axis(total, longest, shortest, p.b, p.num_parts, p.costs);
	struct part_borders b = {{part < axis.active ? 0 : PLAN_IDLE, 0}, {p.b, 0}};
	if (part >= axis.active)
		return b;
	const int begin = narrow::plan_position(axis, part), end = narrow::plan_position(axis, part + 1);
	if (axis.pieces == 1) { /* a unit of the axis is a request */
		b.begin.req = begin;
		b.end.req = end;
		return b;
	}
	const int S = axis.pieces ? first * axis.pieces : before - mine + first * axis.overhead;
	if (part > 0) {
		const struct place at = locate(axis, begin, r, S, first, limit);
		b.begin = narrow::plan_cut(axis, begin, at.req, at.S, at.r);
		start[0] = at.S;
	}
	if (part + 1 < axis.active) {
		const struct place at = locate(axis, end, r, S, first, limit);
		b.end = narrow::plan_cut(axis, end, at.req, at.S, at.r);
		start[1] = at.S;
	}
	return b;
}

/* What a warp does for its first piece ahead of its start, before it knows that the piece is the right one. */
enum ahead {
	HINT,    /* before grid_wait(): nothing but hints    */
	LOAD,    /* after it, while the lengths are compared */
	DIFFERS, /* is what LOAD assumed wrong?              */
	CONFIRM, /* the piece is right                       */
	UNDO     /* it was wrong                             */
};

/* All of it before grid_wait() with the lengths that are there, which the kernel before us may still be writing; after it
 * they are only compared with the true ones, and if any differs it is done again.  Meanwhile the index of the first page is
 * on its way. */
template <int EACH, class DO>
DEV bool start_in_warp(const struct decode_params &p, int part, int row_tile, int finder, struct schedule &sh,
                       struct walk &walk, struct piece &piece, const DO &for_piece)
{
	const int each = EACH == 1 ? 1 : (p.b + 31) >> 5;
	struct lane_requests<EACH> requests;
	struct narrow::plan_axis axis;
	struct part_borders b;
	int start[2] = {0, 0};
	bool more;
	read_requests(p, each, requests);
#pragma unroll 1
	for (bool waited = false;; waited = true) {
		b = borders_from(p, part, requests, each, axis, start);
		walk = walk_begin(p, part, b);
		more = walk_next(p, walk, row_tile, piece);
		if (waited)
			break;
		__syncthreads();
		const bool any = more && piece.begin < piece.end;
		if (any)
			for_piece(HINT);
		grid_wait();
		if (any && (threadIdx.x & 31) == 0)
			prefetch_l1(p.block_table + piece.req * p.table_stride + token_page(p, piece.begin * BLOCK));
		if (any)
			for_piece(LOAD);
		bool right = read_requests(p, each, requests);
		right = !__any_sync(0xffffffff, any && for_piece(DIFFERS)) && right;
		if (any)
			for_piece(right ? CONFIRM : UNDO);
		if (right)
			break;
	}
	if (threadIdx.x == finder) {
		sh.borders = b;
		sh.start[0] = start[0], sh.start[1] = start[1];
		sh.axis = axis;
	}
	return more;
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

/* Sets the borders that lie in request i, whose start on the axis is S. */
DEV void set_borders(struct plan_axis axis, int part, int64_t begin, int64_t end, int i, int64_t S, struct blocks r,
                     struct schedule &sh)
{
	const int64_t next = S + plan_cost(axis, r);
	if (part > 0 && begin >= S && begin < next) {
		const struct border at = plan_cut(axis, begin, i, S, r);
		sh.borders.begin = (struct narrow::border){(int)at.req, (int)at.block};
		sh.start[0] = S;
	}
	if (part + 1 < axis.active && end >= S && end < next) {
		const struct border at = plan_cut(axis, end, i, S, r);
		sh.borders.end = (struct narrow::border){(int)at.req, (int)at.block};
		sh.start[1] = S;
	}
}

/* Any number of requests, by all threads of the CTA: one round for the axis, one for the borders. */
DEV bool start_in_block(const struct decode_params &p, int part, int row_tile, int finder, struct schedule &sh,
                        struct walk &walk, struct piece &piece)
{
	int64_t mine = 0, total, none_more;
	int32_t longest = 0, shortest = INT32_MAX;
	grid_wait();
#pragma unroll 1
	for (int i = threadIdx.x; i < p.b; i += blockDim.x) {
		const struct blocks r = wide_blocks(p, i);
		mine += r.end - r.begin;
		longest = max(longest, (int)(r.end - r.begin));
		shortest = min(shortest, (int)(r.end - r.begin));
	}
	block_scan(sh.sum, sh.max, mine, longest, &total, &longest);
	block_scan(sh.sum, sh.max, 0, -shortest, &none_more, &shortest);
	const struct plan_axis axis = plan_axis(total, longest, -shortest, p.b, p.num_parts, p.costs);
	const bool idle = part >= axis.active;
	if (threadIdx.x == 0)
		sh.borders = (struct part_borders){{idle ? PLAN_IDLE : 0, 0}, {p.b, 0}};
	__syncthreads();
	const int64_t begin = plan_position(axis, part), end = plan_position(axis, part + 1);
	int64_t before = 0; /* start of this round's first request on the axis */
#pragma unroll 1
	for (int base = 0; base < p.b && !idle && before <= end; base += blockDim.x) {
		const int i = base + threadIdx.x;
		const struct blocks none = {0, 0}, r = i < p.b ? wide_blocks(p, i) : none;
		int64_t sum;
		int32_t ignored;
		const int64_t S = before + block_scan(sh.sum, sh.max, i < p.b ? plan_cost(axis, r) : 0, 0, &sum, &ignored);
		if (i < p.b)
			set_borders(axis, part, begin, end, i, S, r, sh);
		before += sum;
	}
	__syncthreads();
	if (threadIdx.x == finder)
		sh.wide_axis = axis;
	walk = walk_begin(p, part, sh.borders);
	__syncthreads(); /* find_splits writes over the borders */
	return walk_next(p, walk, row_tile, piece);
}

/* Before grid_wait(), while the kernel before us ends: asks L2 for the lengths and the page table, whose misses would
 * otherwise follow each other at the start of every CTA.  Hints only; the values are read after grid_wait().  Tables
 * too wide to be worth it are left alone. */
DEV void prefetch_inputs(const struct decode_params &p)
{
	enum { LINE = 128, MOST = 1 << 18 };
	const int at = (int)(blockIdx.z * blockDim.x + threadIdx.x) * LINE;
	if (at < p.b * (int)sizeof(int32_t))
		prefetch_l2((const char *)p.cache_seqlens + at);
	if (p.b * p.table_stride <= MOST && at < (int)(((p.b - 1) * p.table_stride + 1) * (int)sizeof(int32_t)))
		prefetch_l2((const char *)p.block_table + at);
}

/* Whether the sums of a batch are found by a warp. */
DEV bool is_small(const struct decode_params &p)
{
	return p.b <= 256 && p.small;
}

/* A CTA's walk and its first piece; called by all its threads, a barrier, returns after grid_wait().  Thread `finder` may
 * call find_splits. */
template <class DO>
DEV bool start_walk(const struct decode_params &p, int part, int row_tile, int finder, struct schedule &sh,
                    struct walk &walk, struct piece &piece, const DO &for_piece)
{
	if (!is_small(p))
		return start_in_block(p, part, row_tile, finder, sh, walk, piece);
	return p.b <= 32    ? start_in_warp<1>(p, part, row_tile, finder, sh, walk, piece, for_piece)
	       : p.b <= 128 ? start_in_warp<4>(p, part, row_tile, finder, sh, walk, piece, for_piece)
	                    : start_in_warp<8>(p, part, row_tile, finder, sh, walk, piece, for_piece);
}

/* The split requests at the part's borders; what the end of the CTA wants to know. */
DEV void find_splits(const struct decode_params &p, struct schedule &sh)
{
	sh.adopted_any = 0;
	mbar_init(smem_addr(&sh.bar_gather[0]), WATCHERS);
	mbar_init(smem_addr(&sh.bar_gather[1]), WATCHERS);
	mbar_init_fence();
#pragma unroll 1
	for (int i = 0; i < 2; i++) {
		const struct narrow::border at = i ? sh.borders.end : sh.borders.begin;
		struct split u = {0, 0, 0, 0};
		if (sh.borders.begin.req != PLAN_IDLE && at.block > 0 && p.costs.chunk == 0) {
			const struct narrow::blocks r = request_blocks(p, at.req);
			struct narrow::border_range inner;
			if (is_small(p)) {
				inner = narrow::plan_inner_borders(sh.axis, (int)sh.start[i], r);
			} else {
				const struct border_range wide = plan_inner_borders(sh.wide_axis, sh.start[i], {r.begin, r.end});
				inner = (struct narrow::border_range){(int)wide.first, (int)wide.end};
			}
			u.req = at.req;
			u.first_part = inner.first - 1;
			u.pieces = inner.end - inner.first + 1;
			u.tokens = request_tokens(p, u.req);
		}
		sh.split[i] = u;
	}
	for (int i = 0; i < 2; i++)
		for (int k = 0; k < MAX_ENTRIES / 32; k++)
			sh.adopted[i][k] = 0;
}

#endif
