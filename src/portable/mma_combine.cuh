/* SPDX-License-Identifier: MIT
 *
 * mma_combine.cuh - stage 4 after decode_mma.cu: out = sum_j 2^(lse_j - lse) out_j over the pieces j of a split request, which
 * are normalised, lse in base 2.  A NaN lse poisons the row.
 *
 * Unit      WIDE times 128 columns of a row of a split request: WIDE float4 of a piece a lane
 * Team      so many warps share the pieces of a unit: each adds up its own, DEPTH at a time; the first adds up the warps
 * Size      all CTAs are to run at once, and their loads are to be in flight at once: few pieces, wide units; many pieces,
 *           large teams (combine_team in host.c) */
#ifndef FMLA_PORTABLE_MMA_COMBINE_CUH
#define FMLA_PORTABLE_MMA_COMBINE_CUH

#include "mma_buffers.h"
#include "walk.h"

enum { COMBINE_WARPS = MMA_COMBINE_WARPS, COMBINE_CTAS_PER_SM = 4, LANE_COLUMNS = 4, WARP_COLUMNS = 32 * LANE_COLUMNS };

/* A sum over pieces, in weights relative to 2^top; x: this lane's columns. */
template <int WIDE> struct weighed {
	float4 x[WIDE];
	float top, sum;
};

/* The larger one; NaN is above all. */
DEV float larger(float a, float b)
{
	return b > a || b != b ? b : a;
}

DEV float weight_of(float lse, float top)
{
	return exp2_approx(lse - (top == -INFINITY ? 0 : top));
}

DEV void add_weighed(float4 &sum, float4 x, float weight)
{
	sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
}

template <int WIDE> DEV void rescale(struct weighed<WIDE> &all, float top)
{
	const float shrink = weight_of(all.top, top);
#pragma unroll
	for (int n = 0; n < WIDE; n++)
		all.x[n].x *= shrink, all.x[n].y *= shrink, all.x[n].z *= shrink, all.x[n].w *= shrink;
	all.sum *= shrink;
	all.top = top;
}

/* Where the pieces of a row are: piece 0 in partial row `first`, the others `apart` rows from each other. */
struct pieces_of {
	int64_t first, second, apart;
	int count;
};

/* Pieces from, from + TEAM, ... */
template <int TEAM, int WIDE, int DEPTH>
DEV struct weighed<WIDE> add_pieces(const struct mma_buffers &g, const struct pieces_of &pieces, int from, int column) {
	struct weighed<WIDE> all;
	all.top = -INFINITY;
	all.sum = 0;
#pragma unroll
	for (int n = 0; n < WIDE; n++)
		all.x[n] = make_float4(0, 0, 0, 0);
#pragma unroll 1
	for (int j0 = from; j0 < pieces.count; j0 += DEPTH * TEAM) {
		float lse[DEPTH], top = all.top;
		float4 x[DEPTH][WIDE];
#pragma unroll
		for (int k = 0; k < DEPTH; k++) {
			const int j = j0 + k * TEAM;
			const int64_t at = j == 0 ? pieces.first : pieces.second + (j - 1) * pieces.apart;
			const float4 *const values = (const float4 *)(g.partial_out + at * D_V + column);
			lse[k] = j < pieces.count ? g.partial_lse[at] : -INFINITY;
#pragma unroll
			for (int n = 0; n < WIDE; n++)
				x[k][n] = j < pieces.count ? values[n * (WARP_COLUMNS / 4)] : make_float4(0, 0, 0, 0);
		}
#pragma unroll
		for (int k = 0; k < DEPTH; k++)
			top = larger(top, lse[k]);
		rescale(all, top);
#pragma unroll
		for (int k = 0; k < DEPTH; k++) {
			const float weight = weight_of(lse[k], top);
			all.sum += weight;
#pragma unroll
			for (int n = 0; n < WIDE; n++)
				add_weighed(all.x[n], x[k][n], weight);
		}
	}
	return all;
}

template <bool FP16, int TEAM, int WIDE, int DEPTH>
__global__ void __launch_bounds__(32 * COMBINE_WARPS, COMBINE_CTAS_PER_SM)
    combine(const __grid_constant__ struct pk_shape p, const __grid_constant__ struct mma_buffers g)
{
	enum { TEAMS = COMBINE_WARPS / TEAM, UNITS = D_V / (WIDE * WARP_COLUMNS) /* of a row */ };
	static_assert(TEAM == 1 || WIDE == 1, "the sums of a team's warps are a float4 a lane");
	__shared__ float4 values[COMBINE_WARPS][32];
	__shared__ float2 ends[COMBINE_WARPS]; /* top and sum */
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, member = warp & (TEAM - 1);
	const int rows = p.s_q * p.group * p.h_kv;
	const int64_t slot_rows = (int64_t)p.h_kv * p.row_tiles * p.tile_rows;
	const struct divisor by_rows = plan_divisor(rows);
	const struct pk_split *const list = (const struct pk_split *)(g.splits + 1);
	const int count = *g.splits;

	for (int64_t unit = (int64_t)blockIdx.x * TEAMS + warp / TEAM;; unit += (int64_t)g.combine_ctas * TEAMS) {
		const int64_t row = unit / UNITS, number = plan_divide(row, by_rows); /* of the request, in the list */
		if (number >= g.most_splits)
			break;
		const struct pk_split split = list[number]; /* on its way together with `count` */
		if (number >= count)
			break;
		const int i = (int)(row - number * rows),
		          column = (int)(unit % UNITS) * WIDE * WARP_COLUMNS + LANE_COLUMNS * lane;
		const int head = p.h_kv == 1 ? 0 : i / (p.s_q * p.group), r = i - head * p.s_q * p.group;
		/* ragged queries: another request may have more rows */
		if (split.pieces < 2 || (p.has_cu && r >= pk_tokens(&p, g.cu, split.req) * p.group))
			continue;
		struct pieces_of pieces; /* chunks one slot after the other; else piece j > 0 in slot 2 (first + j) */
		const bool chunks = p.costs.chunk > 0;
		const int slot =
		    chunks ? split.req * p.max_chunks + (int)pk_blocks(&p, g.lens, g.cu, split.req).begin / p.costs.chunk
		           : 2 * split.first + 1;
		pieces.count = split.pieces;
		pieces.first = slot * slot_rows + head * p.row_tiles * p.tile_rows + r;
		pieces.second = pieces.first + slot_rows;
		pieces.apart = chunks ? slot_rows : 2 * slot_rows;
		struct weighed<WIDE> all = add_pieces<TEAM, WIDE, DEPTH>(g, pieces, member, column);
		if (TEAM > 1) {
			values[warp][lane] = all.x[0];
			if (lane == 0)
				ends[warp] = make_float2(all.top, all.sum);
			barrier_of(1 + warp / TEAM, 32 * TEAM); /* the team's sums are there */
			if (member == 0) {
				float top = all.top;
#pragma unroll
				for (int w = 1; w < TEAM; w++)
					top = larger(top, ends[warp + w].x);
				rescale(all, top);
#pragma unroll
				for (int w = 1; w < TEAM; w++) {
					const float weight = weight_of(ends[warp + w].x, top);
					all.sum += weight * ends[warp + w].y;
					add_weighed(all.x[0], values[warp + w][lane], weight);
				}
			}
		}
		if (member == 0) {
			const float lse = all.sum == 0 ? -INFINITY : all.top + PK_LOG2(all.sum);
			const float factor = all.sum == 0 ? 0 : pk_sink_factor(&p, g.sink, head, r, lse) / all.sum;
			uint16_t *const to = g.out + pk_out_at(&p, g.cu, split.req, head, r) + column;
#pragma unroll
			for (int n = 0; n < WIDE; n++) {
				const uint32_t two[2] = {pack<FP16>(all.x[n].x * factor, all.x[n].y * factor),
				                         pack<FP16>(all.x[n].z * factor, all.x[n].w * factor)};
#pragma unroll
				for (int i = 0; i < 2; i++) {
					uint16_t *const at = to + n * WARP_COLUMNS + 2 * i;
					if (g.out_pairs) {
						*(uint32_t *)at = two[i];
					} else {
						at[0] = (uint16_t)two[i];
						at[1] = (uint16_t)(two[i] >> 16);
					}
				}
			}
			if (p.has_lse && column == 0)
				g.lse[pk_lse_at(&p, g.cu, split.req, head, r)] = all.sum == 0 ? p.empty_lse : lse * PK_LN2;
		}
		if (TEAM > 1)
			barrier_of(1 + warp / TEAM, 32 * TEAM); /* values and ends are free */
	}
}

typedef void combine_kernel(const struct pk_shape p, const struct mma_buffers g);

template <bool FP16> static combine_kernel *combine_of(int team, int wide)
{
	return team == 8   ? combine<FP16, 8, 1, 4>
	       : team == 4 ? combine<FP16, 4, 1, 4>
	       : team == 2 ? combine<FP16, 2, 1, 4>
	       : wide == 1 ? combine<FP16, 1, 1, 4>
	                   : combine<FP16, 1, 2, 2>;
}

#endif
