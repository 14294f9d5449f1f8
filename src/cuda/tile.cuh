/* SPDX-License-Identifier: MIT
 *
 * tile.cuh - what both decode kernels share: fetching tiles of KV and q into swizzled shared memory, row bookkeeping.
 *
 * A KV tile is BLOCK = 64 tokens as `slices` slices of 64 values: [slice][token][128 bytes], 16-byte chunk c of token t
 * stored at chunk c ^ (t % 8) (the 128-byte swizzle that TMA writes and wgmma reads).  V is the first 8 slices. */
#ifndef FMLA_TILE_CUH
#define FMLA_TILE_CUH

#include "walk.cuh"

#include <float.h>
#include <math.h>

enum {
	SLICE_BYTES = BLOCK * 128,            /* one slice of a KV tile                             */
	V_SLICES = D_V / 64,                  /* 8                                                  */
	QK_SLICES = D_QK / 64,                /* 9; 8 when d_qk is 512                              */
	TILE_BYTES = QK_SLICES * SLICE_BYTES, /* 73,728                                          */
	GROUPS = 3,                           /* a tile arrives on three barriers of three slices   */
	GROUP_SLICES = 3
};

/* What turns the K-major descriptor of a tile into that of V (MN-major): the stride between slices. */
#define V_DESC ((uint64_t)((SLICE_BYTES >> 4) - 1) << 16)

DEV uint32_t swizzled(uint32_t row, uint32_t chunk)
{
	return row * 128 + ((chunk ^ (row & 7)) << 4);
}

/* Keys [lo, hi) that a row's query token sees. */
struct span {
	int lo, hi;
};

DEV struct span visible(const struct decode_params &p, const struct piece &piece, int s)
{
	const int diagonal = piece.len - piece.tokens + s + 1; /* exclusive end under the causal rule */
	struct span v = {0, p.causal ? diagonal : piece.len};
	if (p.window > 0 && diagonal > p.window)
		v.lo = diagonal - (int)p.window;
	return v;
}

/* Where the tokens of a tile lie: boxes [begin, end) of 2^box_shift tokens, box n described by lane n % 32, entry n / 32.
 * Boxes before the first key that anybody sees are left out: their table entries may hold anything. */
struct boxes {
	int begin, end, loaded; /* loaded: of them, boxes with a valid page index */
	int page[2], row[2];
	unsigned good[2]; /* bit n: box n may be loaded */
};

/* Table entries of a tile's boxes, unchecked; look_up returns while they are still on their way. */
struct entries {
	int page[2];
};

DEV bool box_used(const struct boxes &b, int i)
{
	const int box = (int)(threadIdx.x & 31) + 32 * i;
	return box >= b.begin && box < b.end;
}

DEV void find_range(const struct decode_params &p, const struct piece &piece, int block, struct boxes &b)
{
	const int first = block * BLOCK, left = piece.len - first, hidden = visible(p, piece, 0).lo - first;
	b.begin = hidden > 0 ? hidden >> p.box_shift : 0;
	b.end = ((left < BLOCK ? left : BLOCK) + (1 << p.box_shift) - 1) >> p.box_shift;
}

DEV struct entries look_up(const struct decode_params &p, const struct piece &piece, int block)
{
	const int32_t *table = p.block_table + (int64_t)piece.req * p.table_stride;
	struct boxes b;
	struct entries e;
	find_range(p, piece, block, b);
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const int token = block * BLOCK + (((int)(threadIdx.x & 31) + 32 * i) << p.box_shift);
		e.page[i] = box_used(b, i) ? table[token_page(p, token)] : 0;
	}
	return e;
}

DEV struct boxes find_boxes(const struct decode_params &p, const struct piece &piece, int block,
                            const struct entries &e)
{
	struct boxes b;
	find_range(p, piece, block, b);
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const int token = block * BLOCK + (((int)(threadIdx.x & 31) + 32 * i) << p.box_shift);
		b.page[i] = e.page[i];
		b.row[i] = token - token_page(p, token) * p.page;
		b.good[i] = __ballot_sync(0xffffffff, box_used(b, i) && (unsigned)e.page[i] < (unsigned)p.num_pages);
	}
	b.loaded = __popc(b.good[0]) + __popc(b.good[1]);
	return b;
}

/* Where a tile lies when one page holds it.  Looked up, unchecked, before the tile's slot is free. */
struct tile_place {
	int page, row;
};

DEV struct tile_place tile_place(const struct decode_params &p, const struct piece &piece, int block)
{
	const int first = block * BLOCK, entry = token_page(p, first);
	struct tile_place at = {0, first - entry * p.page};
	if (p.box_slices == GROUP_SLICES)
		at.page = p.block_table[(int64_t)piece.req * p.table_stride + entry];
	return at;
}

/* A box of a CTA's first tile, where one page holds a tile: a thread asks L2 for it before the CTA's start, and may request it
 * before the start is certain (walk.cuh), with a barrier of its own.  Who needs the tile waits for that barrier and then for
 * the tile's usual one: if the start was wrong, the first says that the wrong box has landed. */
struct first_box {
	const CUtensorMap *map;
	uint32_t dst, bar, bytes;
	int slice, page, page_now; /* page_now: read again after the wait */
	bool mine;                 /* this thread has one             */
	bool sent;                 /* it is on its way                */
	bool told;                 /* the barrier has been arrived on */
};

DEV bool ask_ahead(const struct decode_params &p, const struct piece &piece, int kv_head, struct first_box &box,
                   enum ahead what)
{
	const int first = piece.begin * BLOCK, entry = token_page(p, first), row = first - entry * p.page;
	const int32_t *const at = p.block_table + (int64_t)piece.req * p.table_stride + entry;
	if (what == HINT) {
		/* Of lengths that change just then anything may follow: only what is in the table is looked up. */
		box.page = box.mine && first < piece.len ? load_relaxed(at) : -1;
		box.sent = (unsigned)box.page < (unsigned)p.num_pages;
		if (box.sent)
			tma_prefetch_5d(box.map, 0, row, box.slice, kv_head, box.page);
	} else if (!box.sent) {
		return false;
	} else if (what == LOAD) {
		tma_load_5d(box.dst, box.map, box.bar, 0, row, box.slice, kv_head, box.page, l2_evict_first());
		box.page_now = load_relaxed(at);
	} else if (what == DIFFERS) {
		return box.page_now != box.page;
	} else {
		mbar_expect_tx(box.bar, box.bytes);
		box.told = true;
		if (what == UNDO) {
			mbar_wait(box.bar, 0);
			box.sent = false;
		}
	}
	return false;
}

/* One warp requests the tile of `block` into shared memory at `dst`; group g completes on barrier full + 8 g.
 * A page index out of range is not loaded; *bad_tile tells whether there was one. */
DEV void load_tile(const struct decode_params &p, const CUtensorMap *map, const struct piece &piece, int block,
                   const struct tile_place &at, int kv_head, uint32_t dst, uint32_t full, int *bad_tile,
                   uint64_t policy)
{
	const int lane = threadIdx.x & 31;
	if (p.box_slices == GROUP_SLICES) { /* one page holds the tile: a box is a group of slices */
		const bool good = (unsigned)at.page < (unsigned)p.num_pages;
		if (lane == 0) /* before its arrival on group 0, which publishes it */
			*bad_tile = !good;
		__syncwarp();
		if (lane < GROUPS) { /* all bytes of a box count, also where it is clipped at the end of a row without rope */
			if (good)
				tma_load_5d(dst + lane * GROUP_SLICES * SLICE_BYTES, map, full + 8 * lane, 0, at.row,
				            lane * GROUP_SLICES, kv_head, at.page, policy);
			mbar_expect_tx(full + 8 * lane, good ? GROUP_SLICES * SLICE_BYTES : 0);
		}
		return;
	}
	const struct boxes boxes = find_boxes(p, piece, block, look_up(p, piece, block));
	if (lane == 0)
		*bad_tile = boxes.loaded != boxes.end - boxes.begin;
	if (lane < GROUPS)
		mbar_expect_tx(full + 8 * lane,
		               (uint32_t)(boxes.loaded * 128 * min(GROUP_SLICES, p.slices - lane * GROUP_SLICES))
		                   << p.box_shift);
	__syncwarp();
	for (int box = boxes.begin; box < boxes.end; box++) {
		const int i = box >> 5, from = box & 31;
		const int page = __shfl_sync(0xffffffff, i ? boxes.page[1] : boxes.page[0], from);
		const int row = __shfl_sync(0xffffffff, i ? boxes.row[1] : boxes.row[0], from);
		if (lane < p.slices && ((i ? boxes.good[1] : boxes.good[0]) >> from & 1))
			tma_load_5d(dst + lane * SLICE_BYTES + (box << p.box_shift) * 128, map, full + 8 * (lane / GROUP_SLICES), 0,
			            row, lane, kv_head, page, policy);
	}
}

/* Zeroes the V rows of tokens outside [lo, hi) of the tile: 0 * NaN would be NaN.  By `threads` threads of one barrier.
 */
DEV void zero_rows(uint8_t *tile, int lo, int hi, int thread, int threads)
{
	for (int i = thread; i < BLOCK * V_SLICES * 8; i += threads) {
		const int chunk = i & 7, token = i >> 3 & (BLOCK - 1), slice = i >> 9;
		if (token < lo || token >= hi)
			*(uint4 *)(tile + slice * SLICE_BYTES + token * 128 + chunk * 16) = make_uint4(0, 0, 0, 0);
	}
}

DEV int64_t first_token(const struct decode_params &p, int req)
{
	return p.cu_seqlens_q ? p.cu_seqlens_q[req] : 0;
}

/* Rows of tile `row_tile` of q into shared memory [slice][ROWS][128 bytes], swizzled; rows past the request's, and a
 * rope slice that the problem lacks, are zero.  By THREADS threads, each of which must fence_async_proxy() and arrive
 * afterwards.  A thread has one 16-byte column of the slices; all its loads of two rows are in flight before the first store. */
struct two_rows {
	uint4 v[2][QK_SLICES];
};

template <int ROWS, int THREADS>
DEV struct two_rows fetch_q(const struct decode_params &p, const struct piece &piece, int kv_head, int row_tile,
                            int thread, int pass)
{
	enum { STEP = THREADS / 8 };
	const int rows = piece.tokens * p.group - row_tile * ROWS; /* valid ones */
	const uint16_t *base = (const uint16_t *)p.q + kv_head * p.group * p.q_h + 8 * (thread & 7) +
	                       (p.cu_seqlens_q ? first_token(p, piece.req) * p.q_s : piece.req * p.q_b);
	struct two_rows two;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const int row = (thread >> 3) + (pass + i) * STEP, global = row_tile * ROWS + row;
		const int s = global < p.group ? 0 : global / p.group;
		const uint16_t *const from = base + s * p.q_s + (global - s * p.group) * p.q_h;
#pragma unroll
		for (int slice = 0; slice < QK_SLICES; slice++)
			two.v[i][slice] = make_uint4(0, 0, 0, 0);
		if (row < rows && row < ROWS && p.q_aligned) {
#pragma unroll
			for (int slice = 0; slice < V_SLICES; slice++)
				two.v[i][slice] = *(const uint4 *)(from + 64 * slice);
			if (p.slices > V_SLICES)
				two.v[i][V_SLICES] = *(const uint4 *)(from + 64 * V_SLICES);
		}
	}
	return two;
}

/* fetched: fetch_q's of pass 0, if ready. */
template <int ROWS, int THREADS>
DEV void load_q(const struct decode_params &p, const struct piece &piece, int kv_head, int row_tile, uint8_t *dst,
                int thread, const struct two_rows &fetched, bool ready)
{
	enum { STEP = THREADS / 8, PASSES = (ROWS + STEP - 1) / STEP };
	const int column = thread & 7, row0 = thread >> 3;
#pragma unroll 1
	for (int pass = 0; pass < PASSES; pass += 2) {
		struct two_rows two = fetched;
		if (pass > 0 || !ready)
			two = fetch_q<ROWS, THREADS>(p, piece, kv_head, row_tile, thread, pass);
#pragma unroll
		for (int i = 0; i < 2; i++) {
			const int row = row0 + (pass + i) * STEP;
			uint8_t *const to = dst + swizzled(row, column);
			if (row < ROWS) {
#pragma unroll
				for (int slice = 0; slice < QK_SLICES; slice++)
					*(uint4 *)(to + slice * ROWS * 128) = two.v[i][slice];
			}
		}
	}
	if (p.q_aligned)
		return;
	/* Rows that are not 16-byte aligned: value by value, over the zeros. */
	const int rows = piece.tokens * p.group - row_tile * ROWS;
	const uint16_t *base = (const uint16_t *)p.q + kv_head * p.group * p.q_h + 8 * column +
	                       (p.cu_seqlens_q ? first_token(p, piece.req) * p.q_s : piece.req * p.q_b);
#pragma unroll 1
	for (int row = row0; row < ROWS && row < rows; row += STEP) {
		const int global = row_tile * ROWS + row, s = global / p.group;
		const uint16_t *const from = base + s * p.q_s + (global - s * p.group) * p.q_h;
#pragma unroll 1
		for (int i = 0; i < p.slices * 8; i++)
			((uint16_t *)(dst + (i >> 3) * ROWS * 128 + swizzled(row, column)))[i & 7] = from[(i >> 3) * 64 + (i & 7)];
	}
}

/* load_q for tiles too large for registers: asynchronous copies, complete on return. */
template <int ROWS, int THREADS>
DEV void copy_q(const struct decode_params &p, const struct piece &piece, int kv_head, int row_tile, uint8_t *dst,
                int thread)
{
	enum { STEP = THREADS / 8 };
	const int rows = piece.tokens * p.group - row_tile * ROWS; /* valid ones */
	const int column = thread & 7;
	const uint16_t *base = (const uint16_t *)p.q + kv_head * p.group * p.q_h +
	                       (p.cu_seqlens_q ? first_token(p, piece.req) * p.q_s : piece.req * p.q_b);
#pragma unroll 1
	for (int row = thread >> 3; row < ROWS; row += STEP) {
		const int global = row_tile * ROWS + row, s = global < p.group ? 0 : global / p.group;
		const uint16_t *const from = base + s * p.q_s + (global - s * p.group) * p.q_h + 8 * column;
		uint8_t *const to = dst + swizzled(row, column);
		if (row >= rows) {
#pragma unroll
			for (int slice = 0; slice < QK_SLICES; slice++)
				*(uint4 *)(to + slice * ROWS * 128) = make_uint4(0, 0, 0, 0);
		} else if (p.q_aligned) {
#pragma unroll
			for (int slice = 0; slice < V_SLICES; slice++)
				copy_async_16(smem_addr(to) + slice * ROWS * 128, from + 64 * slice);
			if (p.slices > V_SLICES)
				copy_async_16(smem_addr(to) + V_SLICES * ROWS * 128, from + 64 * V_SLICES);
			else
				*(uint4 *)(to + V_SLICES * ROWS * 128) = make_uint4(0, 0, 0, 0);
		} else {
#pragma unroll 1
			for (int i = 0; i < QK_SLICES * 8; i++)
				((uint16_t *)(to + (i >> 3) * ROWS * 128))[i & 7] =
				    (i >> 3) < p.slices ? from[(i >> 3) * 64 + (i & 7)] : (uint16_t)0;
		}
	}
	copy_async_wait();
}

/* Keys in [all_lo, all_hi) are seen by every row of the piece, keys outside of [any_lo, len) by none. */
struct bounds {
	int all_lo, all_hi, any_lo;
};

DEV struct bounds piece_bounds(const struct decode_params &p, const struct piece &piece)
{
	const struct span first = visible(p, piece, 0), last = visible(p, piece, piece.tokens - 1);
	struct bounds b = {last.lo, first.hi, first.lo};
	return b;
}

DEV void store_two(const struct decode_params &p, uint16_t *dst, uint32_t two)
{
	if (p.out_aligned) {
		*(uint32_t *)dst = two;
	} else {
		dst[0] = (uint16_t)two;
		dst[1] = (uint16_t)(two >> 16);
	}
}

DEV float natural_lse(const struct decode_params &p, float lse2)
{
	return lse2 == -INFINITY ? p.empty_lse : lse2 * 0.6931471805599453f;
}

/* Where a row of a tile goes. */
struct row_target {
	uint16_t *out;
	float *lse;
	int head;
};

DEV struct row_target row_target(const struct decode_params &p, const struct piece &piece, int kv_head, int row)
{
	const int s = row < p.group ? 0 : row / p.group, head = kv_head * p.group + row - s * p.group;
	const int64_t token = first_token(p, piece.req) + s, req = p.cu_seqlens_q ? 0 : piece.req;
	struct row_target t;
	t.head = head;
	t.out = (uint16_t *)p.out + req * p.out_b + token * p.out_s + head * p.out_h;
	t.lse = p.lse ? p.lse + req * p.lse_b + head * p.lse_h + token * p.lse_s : NULL;
	return t;
}

/* Where a row of a piece goes: to the user, or to the piece's partial slot.  Known before its sums are. */
struct row_end {
	void *out; /* NULL: not a row of the request */
	float *lse;
	float sink; /* the head's attention sink in base 2, -inf: none or not yet */
};

DEV struct row_end row_end(const struct decode_params &p, const struct piece &piece, int kv_head, int row_tile,
                           int tile_row)
{
	const int row = row_tile * p.tile_rows + tile_row;
	struct row_end e = {NULL, NULL, -INFINITY};
	if (row >= piece.tokens * p.group)
		return e;
	if (piece.slot < 0) {
		const struct row_target t = row_target(p, piece, kv_head, row);
		e.out = t.out;
		e.lse = t.lse;
		if (p.attn_sink)
			e.sink = p.attn_sink[t.head] * 1.4426950408889634f;
	} else {
		const int64_t at =
		    ((int64_t)piece.slot * p.h_kv * p.row_tiles + kv_head * p.row_tiles + row_tile) * p.tile_rows + tile_row;
		e.out = (char *)p.partial_out + at * D_V * p.partial_bytes;
		e.lse = p.costs.chunk > 0 ? p.partial_lse + at : NULL; /* else it goes with the arrivals */
	}
	return e;
}

/* The three results of a row from its maximum and sum: the log-sum-exp in base 2, by what to multiply its products,
 * and what an attention sink takes from it, 1 / (1 + exp(sink - lse)). */
DEV float row_lse(float max, float sum, bool poisoned)
{
	return poisoned ? NAN : sum == 0 ? -INFINITY : max + __log2f(sum);
}

DEV float row_scale(float sum, bool poisoned)
{
	return poisoned ? NAN : sum == 0 ? 0.0f : __fdividef(1.0f, sum);
}

DEV float sink_factor(float sink, float lse2)
{
	return sink == -INFINITY ? 1.0f : __fdividef(1.0f, 1.0f + exp2_approx(sink - lse2));
}

DEV void store_lse(const struct decode_params &p, const struct piece &piece, const struct row_end &e, float lse2)
{
	if (e.lse)
		*e.lse = piece.slot < 0 ? natural_lse(p, lse2) : lse2;
}

DEV float add_four(const float *x)
{
	const float4 v = *(const float4 *)x;
	return v.x + v.y + v.z + v.w;
}

/* All of it, by one thread; the sum of a poisoned row is NaN.  *ptr: where the row goes (NULL: nowhere), *norm: by what
 * to multiply it.  Returns the lse. */
DEV float settle_row(const struct decode_params &p, const struct piece &piece, int kv_head, int row_tile, int tile_row,
                     float max, float sum, float *norm, void **ptr)
{
	const struct row_end e = row_end(p, piece, kv_head, row_tile, tile_row);
	const float lse2 = row_lse(max, sum, false);
	*ptr = e.out;
	*norm = row_scale(sum, false) * sink_factor(e.sink, lse2);
	store_lse(p, piece, e, lse2);
	return lse2;
}

#endif
