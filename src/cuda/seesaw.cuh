/* SPDX-License-Identifier: MIT
 *
 * seesaw.cuh - pieces of decode_seesaw.cuh that do not depend on the cache type.  Fragments: a thread holds rows
 * r = 16 warp + lane / 4 and r + 8 of its warpgroup's tile; register 4 j + 2 h + i is row r + 8 h, column
 * 8 j + 2 (lane % 4) + i (wgmma.cuh). */
#ifndef FMLA_SEESAW_CUH
#define FMLA_SEESAW_CUH

#include "tile.cuh"

/* Which of a tile's slices a barrier covers: V columns of warpgroup 0, of warpgroup 1, rope.  Each is refilled as soon
 * as its last reader is done: LEFT is freed by warpgroup 0, RIGHT by warpgroup 1, ROPE (P) by the group that read P
 * from it. */
enum { LEFT, RIGHT, ROPE, BARS };

/* Named barriers between the warpgroups; 1 and 2 are their own. */
enum { ROWS_SUMMED = 3, ROWS_SETTLED, Q_COPIED };

/* What one warp loads of each tile: slices [first, first + count) of it, in a cluster of them [mine, mine + half) for
 * both CTAs, while the peer sends the others.  */
struct share {
	int first, count, mine, half;
};

/* Requests a share of a tile, whose boxes find_boxes found, by one warp. */
DEV void load_share(const struct decode_params &p, const CUtensorMap *map, const struct boxes &boxes, int kv_head,
                    uint32_t dst, uint32_t bar, const struct share &share, uint64_t policy)
{
	const int lane = threadIdx.x & 31;
	if (p.box_slices > 1) { /* one page holds the tile, one box the share */
		if (lane == 0) {
			if (boxes.loaded && share.half && p.cluster == 1)
				tma_load_5d(dst + share.first * SLICE_BYTES, map, bar, 0, boxes.row[0], share.first, kv_head,
				            boxes.page[0], policy);
			else if (boxes.loaded && share.half)
				tma_load_5d_pair(dst + (share.first + share.mine) * SLICE_BYTES, map, bar, 0, boxes.row[0],
				                 share.first + share.mine, kv_head, boxes.page[0], policy);
			mbar_expect_tx(bar, boxes.loaded ? share.count * SLICE_BYTES : 0);
		}
		return;
	}
	if (lane == 0)
		mbar_expect_tx(bar, (uint32_t)(boxes.loaded * p.box_tokens * 128 * share.count));
	__syncwarp();
#pragma unroll 1
	for (int box = boxes.begin; box < boxes.end; box++) {
		const int i = box >> 5, from = box & 31, slice = share.first + lane;
		const int page = __shfl_sync(0xffffffff, i ? boxes.page[1] : boxes.page[0], from);
		const int row = __shfl_sync(0xffffffff, i ? boxes.row[1] : boxes.row[0], from);
		if (lane < share.mine || lane >= share.mine + share.half || !((i ? boxes.good[1] : boxes.good[0]) >> from & 1))
			continue;
		const uint32_t to = dst + slice * SLICE_BYTES + box * p.box_tokens * 128;
		if (p.cluster == 1)
			tma_load_5d(to, map, bar, 0, row, slice, kv_head, page, policy);
		else
			tma_load_5d_pair(to, map, bar, 0, row, slice, kv_head, page, policy);
	}
}

/* Scales s and masks what a row does not see; h 0, 1: the thread's rows lane / 4 and lane / 4 + 8 of the warp. */
DEV void scale_and_mask(const struct decode_params &p, const struct piece &piece, const struct bounds &see, int row,
                        int first, float (&s)[32])
{
	const int lane = threadIdx.x & 31;
#pragma unroll
	for (int i = 0; i < 32; i++)
		s[i] *= p.scale_log2;
	if (first >= see.all_lo && first + BLOCK <= see.all_hi)
		return;
#pragma unroll
	for (int h = 0; h < 2; h++) {
		const struct span v = visible(p, piece, (row + 8 * h) / p.group);
#pragma unroll
		for (int i = 0; i < 16; i++) {
			const int t = first + 8 * (i / 2) + 2 * (lane & 3) + i % 2;
			if (t < v.lo || t >= v.hi)
				s[4 * (i / 2) + 2 * h + i % 2] = -INFINITY;
		}
	}
}

/* The references of this turn: the old ones, or a row's true maximum where that is more than 2^8 above it. */
DEV void references(const float (&s)[32], const float (&m)[2], float (&r)[2])
{
#pragma unroll
	for (int h = 0; h < 2; h++) {
		float top = s[2 * h];
#pragma unroll
		for (int i = 1; i < 16; i++)
			top = fmaxf(top, s[4 * (i / 2) + 2 * h + i % 2]);
		top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
		top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
		r[h] = top > m[h] + 8.0f ? top : m[h];
	}
}

/* Makes r the references m of the rows; where a row of the warp was raised, rescales O and the sums. */
DEV void raise(float (&o)[128], float (&l)[2], float (&m)[2], const float (&r)[2])
{
	if (__any_sync(0xffffffff, r[0] != m[0] || r[1] != m[1])) {
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
