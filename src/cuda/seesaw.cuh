/* SPDX-License-Identifier: MIT
 *
 * seesaw.cuh - pieces of decode_seesaw.cuh that do not depend on the cache type.  Fragments: a thread holds rows
 * r = 16 warp + lane / 4 and r + 8 of its warpgroup's tile; register 4 j + 2 h + i is row r + 8 h, column
 * 8 j + 2 (lane % 4) + i (wgmma.cuh). */
#ifndef FMLA_SEESAW_CUH
#define FMLA_SEESAW_CUH

#include "tile.cuh"
#include "value.cuh"

/* Which of a tile's slices a barrier covers: V columns of warpgroup 0, of warpgroup 1, rope.  Each is refilled as soon
 * as its last reader is done: LEFT is freed by warpgroup 0, RIGHT by warpgroup 1, ROPE (P) by the group that read P
 * from it. */
enum { LEFT, RIGHT, ROPE, BARS };

/* Named barriers between the warpgroups; 1 and 2 are their own.  FIRST_READY: the first q, and what find_splits finds. */
enum { ROWS_SUMMED = 3, ROWS_SETTLED, FIRST_READY };

/* The two tile slots of a CTA, as its producers see them. */
struct slots {
	uint8_t *tile;
	uint64_t (*full)[BARS], (*empty)[BARS];
	int *bad; /* a page index of the slot's tile was out of range; published by LEFT's arrival */
};

/* What one warp loads of each tile: slices [first, first + count), which complete on barrier `bar`.  In a cluster it
 * sends [mine, mine + half) of them to both CTAs, while the peer sends the others; a single slice they send in turn. */
struct share {
	int bar, first, count, mine, half, rank;
	bool in_turn;
	const CUtensorMap *map;
	uint64_t policy;
};

DEV struct share share_of(const struct decode_params &p, const struct kv_maps &maps, int bar, int rank)
{
	struct share share;
	share.bar = bar;
	share.first = bar * (V_SLICES / 2);
	share.count = bar == ROPE ? p.slices - V_SLICES : V_SLICES / 2;
	share.half = share.count >> (p.cluster - 1);
	share.mine = share.half * rank;
	share.rank = rank;
	share.in_turn = bar == ROPE && p.cluster > 1;
	share.map = &maps.group + (bar == ROPE); /* slice lies behind group; a choice of two addresses costs a spill */
	share.policy = l2_evict_first();         /* also when a second row tile reads the page: +2 % */
	return share;
}

/* A warp requests its share of a piece's tiles, one after the other as slots are freed; tiles: counted on.  For pages
 * that hold whole tiles: one box each.  What a request says is known before its slot is free, in uniform registers, and
 * the next tile's page is on its way: from a freed slot to its request is on the critical path. */
DEV void load_tiles(const struct decode_params &p, const struct piece &piece, int kv_head, const struct share &share,
                    const struct slots &slots, int &tiles)
{
	const int lane = threadIdx.x & 31, slice = uniform(share.first + share.mine);
	const int32_t *const table = p.block_table + (int64_t)piece.req * p.table_stride;
	const CUtensorMap *const map = (const CUtensorMap *)uniform((uint64_t)share.map);
	const uint64_t policy = uniform(share.policy);
	const int head = uniform(kv_head);
	int next = piece.begin < piece.end ? table[token_page(p, piece.begin * BLOCK)] : 0;
#pragma unroll 1
	for (int block = piece.begin; block < piece.end; block++, tiles++) {
		const int slot = tiles & 1, page = uniform(next);
		const int row = uniform(block * BLOCK - token_page(p, block * BLOCK) * p.page);
		const uint32_t dst = uniform(smem_addr(slots.tile + slot * TILE_BYTES) + slice * SLICE_BYTES);
		const uint32_t full = uniform(smem_addr(&slots.full[slot][share.bar]));
		const bool good = (unsigned)page < (unsigned)p.num_pages;
		const bool send = good && share.count > 0 && !(share.in_turn && (tiles & 1) != share.rank);
		if (block + 1 < piece.end)
			next = table[token_page(p, (block + 1) * BLOCK)];
		mbar_wait(smem_addr(&slots.empty[slot][share.bar]), (tiles >> 1 & 1) ^ 1);
		if (lane == 0) {
			if (send && p.cluster > 1)
				tma_load_5d_pair(dst, map, full, 0, row, slice, head, page, policy);
			else if (send)
				tma_load_5d(dst, map, full, 0, row, slice, head, page, policy);
			if (share.bar == LEFT)
				slots.bad[slot] = !good;
			mbar_expect_tx(full, good ? share.count * SLICE_BYTES : 0);
		}
		__syncwarp();
	}
}

/* The same for smaller pages: a tile is many boxes of one slice, a lane requests its slice of each. */
DEV void load_boxes(const struct decode_params &p, const struct piece &piece, int kv_head, struct share share,
                    const struct slots &slots, int &tiles)
{
	const int lane = threadIdx.x & 31, slice = share.first + lane;
	struct entries next = look_up(p, piece, piece.begin);
#pragma unroll 1
	for (int block = piece.begin; block < piece.end; block++, tiles++) {
		const int slot = tiles & 1;
		const struct boxes boxes = find_boxes(p, piece, block, next);
		const uint32_t full = smem_addr(&slots.full[slot][share.bar]),
		               dst = smem_addr(slots.tile + slot * TILE_BYTES) + slice * SLICE_BYTES;
		if (share.in_turn)
			share.half = share.count && (tiles & 1) == share.rank;
		const bool mine = lane >= share.mine && lane < share.mine + share.half;
		next = look_up(p, piece, block + 1);
		mbar_wait(smem_addr(&slots.empty[slot][share.bar]), (tiles >> 1 & 1) ^ 1);
		if (lane == 0) {
			if (share.bar == LEFT)
				slots.bad[slot] = boxes.loaded != boxes.end - boxes.begin;
			mbar_expect_tx(full, (uint32_t)((boxes.loaded * 128 * share.count) << p.box_shift));
		}
		__syncwarp();
#pragma unroll 1
		for (int box = boxes.begin; box < boxes.end; box++) {
			const int i = box >> 5, from = box & 31;
			const int page = __shfl_sync(0xffffffff, i ? boxes.page[1] : boxes.page[0], from);
			const int row = __shfl_sync(0xffffffff, i ? boxes.row[1] : boxes.row[0], from);
			const uint32_t to = dst + (box << p.box_shift) * 128;
			if (!mine || !((i ? boxes.good[1] : boxes.good[0]) >> from & 1))
				continue;
			if (p.cluster > 1)
				tma_load_5d_pair(to, share.map, full, 0, row, slice, kv_head, page, share.policy);
			else
				tma_load_5d(to, share.map, full, 0, row, slice, kv_head, page, share.policy);
		}
	}
}

/* True for most tiles: every row sees all of it, and the scale is positive, so that it can wait for the exponentials. */
DEV bool all_seen(const struct bounds &see, float scale, int first)
{
	return first >= see.all_lo && first + BLOCK <= see.all_hi && scale > 0;
}

/* The others: masks what a row does not see; a scale that is not positive is applied, and 1 takes its place. */
DEV void mask(const struct decode_params &p, const struct piece &piece, int row, int first, float &scale,
              float (&s)[32])
{
	const int lane = threadIdx.x & 31;
	const float factor = scale > 0 ? 1.0f : scale;
	scale = scale > 0 ? scale : 1.0f;
#pragma unroll
	for (int h = 0; h < 2; h++) {
		const struct span v = visible(p, piece, (row + 8 * h) / p.group);
#pragma unroll
		for (int i = 0; i < 16; i++) {
			const int t = first + 8 * (i / 2) + 2 * (lane & 3) + i % 2;
			float &x = s[4 * (i / 2) + 2 * h + i % 2];
			x = t < v.lo || t >= v.hi ? -INFINITY : x * factor;
		}
	}
}

/* The largest score of each row, scaled. */
DEV void row_tops(const float (&s)[32], float scale, float (&top)[2])
{
#pragma unroll
	for (int h = 0; h < 2; h++) {
		float t = s[2 * h];
#pragma unroll
		for (int i = 1; i < 16; i++)
			t = fmaxf(t, s[4 * (i / 2) + 2 * h + i % 2]);
		t = fmaxf(t, __shfl_xor_sync(0xffffffff, t, 1));
		top[h] = scale * fmaxf(t, __shfl_xor_sync(0xffffffff, t, 2));
	}
}

/* The references of this tile: the old ones, or a row's true maximum where that is more than 2^8 above it. */
DEV void references(const float (&top)[2], const float (&m)[2], float (&r)[2])
{
	r[0] = top[0] > m[0] + 8.0f ? top[0] : m[0];
	r[1] = top[1] > m[1] + 8.0f ? top[1] : m[1];
}

/* Makes r the references m of the rows; where a row of the warp was raised that has sums, rescales O and the sums. */
DEV void raise(float (&o)[128], float (&l)[2], float (&m)[2], const float (&r)[2])
{
	const bool raised = (r[0] != m[0] && m[0] != -FLT_MAX) || (r[1] != m[1] && m[1] != -FLT_MAX);
	if (__any_sync(0xffffffff, raised)) {
#pragma unroll
		for (int h = 0; h < 2; h++) {
			const float factor = exp2_approx(m[h] - r[h]);
			l[h] *= factor;
#pragma unroll
			for (int i = 0; i < 64; i++)
				o[4 * (i / 2) + 2 * h + i % 2] *= factor;
		}
	}
	m[0] = r[0], m[1] = r[1];
}

/* One lane of four tells the other warpgroup the references of its rows. */
DEV void store_reference(float *reference, int row, const float (&r)[2])
{
	if ((threadIdx.x & 3) == 0) {
		reference[row] = r[0];
		reference[row + 8] = r[1];
	}
}

/* A warp of the group that wrote P and its references tells the other group, which waits on `bar`. */
DEV void hand_over(uint32_t bar)
{
	__syncwarp();
	if ((threadIdx.x & 31) == 0)
		mbar_arrive(bar);
}

/* By the warpgroup that computes S of the tile, before the barrier that precedes P. */
DEV void zero_unused(uint8_t *tile, const struct piece &piece, const struct bounds &see, int first)
{
	if (first < see.any_lo || first + BLOCK > piece.len) {
		zero_rows(tile, see.any_lo - first, piece.len - first, threadIdx.x & 127, 128);
		fence_async_proxy();
	}
}

/* What follows S: masks, the unused rows of V, the largest score of each row; returns the scale that s still lacks. */
DEV float settle_scores(const struct decode_params &p, const struct piece &piece, const struct bounds &see, int row,
                        int first, uint8_t *tile, float (&s)[32], float (&top)[2])
{
	float scale = p.scale_log2;
	if (!all_seen(see, scale, first)) {
		mask(p, piece, row, first, scale, s);
		zero_unused(tile, piece, see, first);
	}
	row_tops(s, scale, top);
	return scale;
}

/* By what to multiply a thread's half of a row of O (registers 4 apart in pairs, the other columns in the lanes of its quad)
 * so that it is normalised and its largest value lies in [2^14, 2^15), just below what fp16 holds; *scale: what undoes the
 * power of two, as bf16. */
DEV float fit_16_bits(const float *o, float norm, uint16_t *scale)
{
	float top = 0;
#pragma unroll
	for (int i = 0; i < 32; i++)
		top = fmaxf(top, fmaxf(fabsf(o[4 * i]), fabsf(o[4 * i + 1])));
	top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
	top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
	const int exponent = min(max((int)(__float_as_uint(top * norm) >> 23), 15), 253);
	if ((threadIdx.x & 3) == 0)
		*scale = (uint16_t)((exponent - 14) << 7);
	return norm * __uint_as_float((uint32_t)(268 - exponent) << 23);
}

/* Two lanes, `mask` apart, swap so that the low one (high 0) ends up with both a's and the high one with both b's. */
#define DEFINE_TRADE(type)                                                \
	DEV void trade(int high, int mask, type &a, type &b)                  \
	{                                                                     \
		const type got = __shfl_xor_sync(0xffffffff, high ? a : b, mask); \
		a = high ? got : a;                                               \
		b = high ? b : got;                                               \
	}
DEFINE_TRADE(float)
DEFINE_TRADE(uint32_t)

/* The thread's two rows of half of O, times norm, as fp16 to a partial slot: `to` is the half of the warp's first row, from
 * which on its 16 rows lie one after the other.  stage: shared memory of the warp and group, which turns fragments into
 * rows. */
enum { STAGE_PITCH = D_V + 16 /* bytes; so that eight rows are in different banks */, STAGE_BYTES = 16 * STAGE_PITCH };

DEV void store_partial(const float (&o)[128], const float (&norm)[2], uint8_t *stage, uint8_t *to)
{
	const int lane = threadIdx.x & 31;
	const uint32_t fragment = smem_addr(stage) + (lane & 15) * STAGE_PITCH + (lane >> 4) * 16;
#pragma unroll
	for (int j = 0; j < 32; j += 2) /* 16 columns: rows 0-7, 8-15 of the first eight, then of the others */
		store_matrix_x4(fragment + j * 16, pack_fp16(o[4 * j] * norm[0], o[4 * j + 1] * norm[0]),
		                pack_fp16(o[4 * j + 2] * norm[1], o[4 * j + 3] * norm[1]),
		                pack_fp16(o[4 * j + 4] * norm[0], o[4 * j + 5] * norm[0]),
		                pack_fp16(o[4 * j + 6] * norm[1], o[4 * j + 7] * norm[1]));
	__syncwarp();
#pragma unroll
	for (int i = 0; i < 16; i++)
		*(uint4 *)(to + i * 2 * D_V + lane * 16) = *(const uint4 *)(stage + i * STAGE_PITCH + lane * 16);
}

/* P to shared memory, [row][token], swizzled, as the A operand of the other warpgroup. */
DEV void store_p(uint32_t p_addr, int warp_row, const uint32_t (&pk)[16])
{
	const int lane = threadIdx.x & 31;
#pragma unroll
	for (int k = 0; k < 4; k++)
		store_matrix_x4(p_addr + swizzled(warp_row + (lane & 15), 2 * k + (lane >> 4)), pk[4 * k], pk[4 * k + 1],
		                pk[4 * k + 2], pk[4 * k + 3]);
	fence_async_proxy();
}

#endif
