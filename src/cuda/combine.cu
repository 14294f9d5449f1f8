/* SPDX-License-Identifier: MIT
 *
 * combine.cu - stage 4 of the batch-invariant mode: merges the chunks of requests,
 *     lse = log2 sum_j 2^lse_j,   out = sum_j 2^(lse_j - lse) out_j      (pieces are normalised, lse in base 2)
 *
 * What      128 columns of one row at a time: up to DEPTH pieces by one warp alone, more by the eight warps of a CTA,
 *           which take every eighth piece each and add up through shared memory in a fixed order (deterministic)
 * Why       the partials of a small batch lie in L2 and merging them is pure latency, so: all loads of a warp in flight
 *           at once, weights from one load a lane, no barrier before the sum, work spread over all CTAs
 * Overlap   started early by programmatic dependent launch, beside a decode CTA on each SM (64 registers a thread);
 *           CTAs without work leave at once */
#include "launch.cuh"
#include "tile.cuh"
#include "value.cuh"

enum {
	COLUMNS = 128, /* of a warp: a float4 a lane */
	COLUMN_CHUNKS = D_V / COLUMNS,
	WARPS = COMBINE_THREADS / 32,
	DEPTH = 8,      /* 16-byte loads in flight a lane          */
	FEW = 2 * DEPTH /* pieces that a warp may well merge alone */
};

/* Where the pieces of one row of a request are: row first + j * step of the partials for piece j (slots: kernels.h). */
struct row_pieces {
	uint32_t first, step;
};

DEV struct row_pieces row_pieces(const struct decode_params &p, const struct split &u, int row)
{
	const uint32_t rows = p.h_kv * p.row_tiles * p.tile_rows; /* of a slot */
	return (struct row_pieces){(u.req * p.max_chunks + u.first_part) * rows + row, rows};
}

DEV uint32_t piece_row(const struct row_pieces &at, int j)
{
	return at.first + j * at.step;
}

/* The chunks of a request; first_part: the first visible one. */
DEV struct split split_of_request(const struct decode_params &p, int req)
{
	const struct narrow::blocks r = request_blocks(p, req);
	struct split u = {req, r.begin / p.costs.chunk, plan_chunks(p.costs.chunk, r), request_tokens(p, req)};
	return u;
}

/* A sum of pieces: sum w_j out_j and sum w_j for w_j = 2^(lse_j - top). */
struct merged {
	float4 acc;
	float top, sum;
};

/* Makes `top` finite, so that pieces without keys weigh nothing instead of NaN. */
DEV float reference(float top)
{
	return top == -INFINITY ? 0.0f : top;
}

/* 128 columns of a row over pieces first, first + step, ..., by a warp.  A NaN lse poisons the result. */
DEV struct merged merge_columns(const struct decode_params &p, const struct row_pieces &at, int pieces, int column,
                                int first, int step)
{
	const int lane = threadIdx.x & 31;
	const float *const from = (const float *)p.partial_out + column + 4 * lane;
	struct merged all = {make_float4(0, 0, 0, 0), -INFINITY, 0};
#pragma unroll 1
	for (int j0 = first; j0 < pieces; j0 += step * DEPTH) {
		float4 v[DEPTH];
		const int mine = j0 + step * lane; /* the piece that the lane weighs */
#pragma unroll
		for (int i = 0; i < DEPTH; i++) /* past the end: the first piece again, weight 0 */
			v[i] = *(const float4 *)(from + (int64_t)piece_row(at, j0 + step * i < pieces ? j0 + step * i : j0) * D_V);
		const float lse = lane < DEPTH && mine < pieces ? p.partial_lse[piece_row(at, mine)] : -INFINITY;
		float top = lse;
#pragma unroll
		for (int d = DEPTH / 2; d > 0; d >>= 1)
			top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, d));
		top = fmaxf(all.top, __shfl_sync(0xffffffff, top, 0));
		const float weight = exp2_approx(lse - reference(top)), old = exp2_approx(all.top - reference(top));
		all.top = top;
		all.sum *= old;
		all.acc.x *= old, all.acc.y *= old, all.acc.z *= old, all.acc.w *= old;
#pragma unroll
		for (int i = 0; i < DEPTH; i++) {
			const float w = __shfl_sync(0xffffffff, weight, i);
			all.sum += w;
			all.acc.x += w * v[i].x, all.acc.y += w * v[i].y, all.acc.z += w * v[i].z, all.acc.w += w * v[i].w;
		}
	}
	return all;
}

/* Item of a split: columns item % COLUMN_CHUNKS of row item / COLUMN_CHUNKS of the slots. */
DEV int item_row(int item)
{
	return item / COLUMN_CHUNKS;
}

DEV int item_column(int item)
{
	return item % COLUMN_CHUNKS * COLUMNS;
}

DEV void write_columns(const struct decode_params &p, const struct split &u, int item, const struct merged &m, int fp16)
{
	const int row = item_row(item), column = item_column(item), lane = threadIdx.x & 31;
	const int kv_head = row / (p.row_tiles * p.tile_rows), row_of_head = row % (p.row_tiles * p.tile_rows);
	struct piece piece = {};
	piece.req = u.req;
	piece.slot = -1; /* to the user */
	piece.tokens = u.tokens;
	const struct row_end end = row_end(p, piece, kv_head, 0, row_of_head);
	const float lse = row_lse(m.top, m.sum, false), f = row_scale(m.sum, false) * sink_factor(end.sink, lse);
	uint16_t *const out = (uint16_t *)end.out + column + 4 * lane;
	store_two(p, out, fp16 ? pack_fp16(m.acc.x * f, m.acc.y * f) : pack_bf16(m.acc.x * f, m.acc.y * f));
	store_two(p, out + 2, fp16 ? pack_fp16(m.acc.z * f, m.acc.w * f) : pack_bf16(m.acc.z * f, m.acc.w * f));
	if (column == 0 && lane == 0)
		store_lse(p, piece, end, lse);
}

/* A warp merges an item. */
DEV void merge_alone(const struct decode_params &p, const struct split &u, int item, int fp16)
{
	const int row = item_row(item);
	if (row % (p.row_tiles * p.tile_rows) < u.tokens * p.group)
		write_columns(p, u, item, merge_columns(p, row_pieces(p, u, row), u.pieces, item_column(item), 0, 1), fp16);
}

/* The warps of a CTA share an item. */
DEV void merge_together(const struct decode_params &p, const struct split &u, int item, int fp16, float4 *exchange,
                        float2 *weights)
{
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
	const int row = item_row(item);
	if (row % (p.row_tiles * p.tile_rows) >= u.tokens * p.group)
		return;
	const struct merged part = merge_columns(p, row_pieces(p, u, row), u.pieces, item_column(item), warp, WARPS);
	exchange[threadIdx.x] = part.acc;
	if (lane == 0)
		weights[warp] = make_float2(part.top, part.sum);
	__syncthreads();
	if (warp == 0) {
		struct merged all = {make_float4(0, 0, 0, 0), -INFINITY, 0};
#pragma unroll
		for (int w = 0; w < WARPS; w++)
			all.top = fmaxf(all.top, weights[w].x);
#pragma unroll
		for (int w = 0; w < WARPS; w++) {
			const float4 a = exchange[32 * w + lane];
			const float f = exp2_approx(weights[w].x - reference(all.top));
			all.sum += f * weights[w].y;
			all.acc.x += f * a.x, all.acc.y += f * a.y, all.acc.z += f * a.z, all.acc.w += f * a.w;
		}
		write_columns(p, u, item, all, fp16);
	}
	__syncthreads(); /* exchange may be written again */
}

/* The requests base, base + 1, ... of several chunks, in order, into list; every CTA makes the same.  *most: chunks of the
 * one with the most.  Returns how many. */
DEV int list_splits(const struct decode_params &p, int base, struct split *list, int *counts, int *most)
{
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, i = base + threadIdx.x;
	struct split u = {0, 0, 0, 0};
	if (i < p.b)
		u = split_of_request(p, i);
	const unsigned votes = __ballot_sync(0xffffffff, u.pieces > 1);
	const int longest = __reduce_max_sync(0xffffffff, u.pieces);
	if (lane == 0) {
		counts[warp] = __popc(votes);
		counts[WARPS + warp] = longest;
	}
	__syncthreads();
	int at = __popc(votes & ((1u << lane) - 1)), count = 0;
	*most = 0;
#pragma unroll
	for (int w = 0; w < WARPS; w++) {
		at += w < warp ? counts[w] : 0;
		count += counts[w];
		*most = max(*most, counts[WARPS + w]);
	}
	if (u.pieces > 1)
		list[at] = u;
	__syncthreads();
	return count;
}

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS, 4)
    fmla_combine(const __grid_constant__ struct decode_params p, int fp16)
{
	__shared__ float4 exchange[COMBINE_THREADS];
	__shared__ float2 weights[WARPS];
	__shared__ struct split list[COMBINE_THREADS];
	__shared__ int counts[2 * WARPS];
	grid_wait();
	grid_launch_dependents();
	const int items = p.h_kv * p.row_tiles * p.tile_rows * COLUMN_CHUNKS; /* of a split request */
	for (int base = 0; base < p.b; base += COMBINE_THREADS) {
		int most;
		const int count = list_splits(p, base, list, counts, &most), all = count * items;
		/* A CTA takes one item at a time while there are few, or many pieces; else each of its warps takes one. */
		if (all <= (int)gridDim.x || (most > FEW && all <= 4 * (int)gridDim.x)) {
			for (int i = blockIdx.x; i < all; i += gridDim.x)
				merge_together(p, list[i / items], i % items, fp16, exchange, weights);
		} else {
			for (int i = blockIdx.x * WARPS + (threadIdx.x >> 5); i < all; i += gridDim.x * WARPS)
				merge_alone(p, list[i / items], i % items, fp16);
		}
		__syncthreads(); /* list may be written again */
	}
}

/* The same shared-memory carve-out as the decode kernels: changing it between kernels would drain the SMs. */
extern "C" cudaError_t fmla_prepare_combine(void)
{
	return cudaFuncSetAttribute((const void *)fmla_combine, cudaFuncAttributePreferredSharedMemoryCarveout,
	                            cudaSharedmemCarveoutMaxShared);
}

extern "C" cudaError_t fmla_launch_combine(const struct decode_params *p, int num_sms, int fp16, cudaStream_t stream)
{
	cudaLaunchAttribute attr[1];
	attr[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attr[0].val.programmaticStreamSerializationAllowed = 1;
	cudaLaunchConfig_t config = {};
	config.gridDim = dim3((unsigned)num_sms * 4);
	config.blockDim = dim3(COMBINE_THREADS);
	config.stream = stream;
	config.attrs = attr;
	config.numAttrs = 1;
	return cudaLaunchKernelEx(&config, fmla_combine, *p, fp16);
}
