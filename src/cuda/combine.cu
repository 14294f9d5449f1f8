/* SPDX-License-Identifier: MIT
 *
 * combine.cu - stage 4: merges the pieces of split requests,
 *     lse = log2 sum_j 2^lse_j,   out = sum_j 2^(lse_j - lse) out_j      (pieces are normalised, lse in base 2)
 *
 * What      one CTA merges 128 columns of one row at a time; its four warps take every fourth piece each, with eight
 *           16-byte loads a lane in flight, and add up through shared memory in a fixed order (deterministic)
 * Why       the partials of a small batch lie in L2; merging them is pure latency, so the work is spread as wide as it
 * goes Overlap   started early by programmatic dependent launch; CTAs without work leave at once */
#include "launch.cuh"
#include "tile.cuh"
#include "value.cuh"

enum {
	COLUMNS = 128, /* of a warp: a float4 a lane        */
	COLUMN_CHUNKS = D_V / COLUMNS,
	WARPS = COMBINE_THREADS / 32,
	ROWS_AT_ONCE = WARPS / COLUMN_CHUNKS, /* of a CTA when a warp merges alone */
	DEPTH = 14                            /* loads in flight a lane; 16 spill  */
};

/* Where the pieces of one row of a split request are: row `first` of the partials for piece 0, next + j * step for
 * piece j > 0 (slots: kernels.h). */
struct row_pieces {
	uint32_t first, next, step;
};

DEV struct row_pieces row_pieces(const struct decode_params &p, const struct split &u, int tile, int tile_row)
{
	const uint32_t rows = p.h_kv * p.row_tiles * p.tile_rows; /* of a slot */
	const uint32_t row = tile * p.tile_rows + tile_row;
	struct row_pieces at;
	if (p.costs.chunk > 0) { /* first_part: the first visible chunk */
		at.first = at.next = (u.req * p.max_chunks + u.first_part) * rows + row;
		at.step = rows;
	} else {
		at.first = (2 * u.first_part + 1) * rows + row;
		at.next = 2 * u.first_part * rows + row;
		at.step = 2 * rows;
	}
	return at;
}

DEV uint32_t piece_row(const struct row_pieces &at, int j)
{
	return j == 0 ? at.first : at.next + j * at.step;
}

/* Batch-invariant mode: every request of several chunks. */
DEV struct split split_of_request(const struct decode_params &p, int req)
{
	const struct blocks r = request_blocks(p, req);
	struct split u = {req, (int)r.begin / p.costs.chunk, (int)plan_chunks(p.costs.chunk, r)};
	return u;
}

/* log2 sum_j 2^lse_j over the pieces of one row, by a warp; NaN if a piece is, -inf if all are empty. */
DEV float merge_lse(const struct decode_params &p, const struct row_pieces &at, int pieces)
{
	float top = -INFINITY, sum = 0;
	for (int j = threadIdx.x & 31; j < pieces; j += 32) {
		const float lse = p.partial_lse[piece_row(at, j)];
		if (lse > top || lse != lse) {
			sum = sum * exp2f(top - lse) + 1.0f;
			top = lse;
		} else if (lse > -INFINITY) {
			sum += exp2f(lse - top);
		}
	}
	for (int d = 16; d > 0; d >>= 1) {
		const float other_top = __shfl_xor_sync(0xffffffff, top, d), other_sum = __shfl_xor_sync(0xffffffff, sum, d);
		const float both = top != top ? top : other_top != other_top ? other_top : fmaxf(top, other_top);
		if (both != -INFINITY)
			sum = sum * exp2f(top - both) + other_sum * exp2f(other_top - both);
		top = both;
	}
	return top == -INFINITY ? -INFINITY : top + log2f(sum);
}

/* 128 columns of a row: the sum over pieces first, first + step, ... of weight times partial. */
DEV float4 merge_columns(const struct decode_params &p, const struct row_pieces &at, int pieces, int column, int first,
                         int step, float lse)
{
	const float *const from = p.partial_out + column + 4 * (threadIdx.x & 31);
	float4 acc = make_float4(0, 0, 0, 0);
#pragma unroll 1
	for (int j0 = first; j0 < pieces; j0 += step * DEPTH) {
		float4 v[DEPTH];
		float w[DEPTH];
#pragma unroll
		for (int i = 0; i < DEPTH; i++) {
			const int j = j0 + step * i;
			const uint32_t row = piece_row(at, j < pieces ? j : pieces - 1); /* past the end: any row, weight 0 */
			const float piece_lse = p.partial_lse[row];
			v[i] = *(const float4 *)(from + (int64_t)row * D_V);
			w[i] = j < pieces ? piece_lse : -INFINITY;
		}
#pragma unroll
		for (int i = 0; i < DEPTH; i++) {
			const float weight = w[i] == -INFINITY ? 0.0f : exp2_approx(w[i] - lse); /* all empty: lse is -inf too */
			acc.x += weight * v[i].x;
			acc.y += weight * v[i].y;
			acc.z += weight * v[i].z;
			acc.w += weight * v[i].w;
		}
	}
	return acc;
}

DEV void write_columns(const struct decode_params &p, const struct split &u, int tile, int tile_row, int column,
                       float4 acc, float lse, int fp16)
{
	struct piece piece = {};
	piece.req = u.req;
	const struct row_target t = row_target(p, piece, tile / p.row_tiles, tile % p.row_tiles * p.tile_rows + tile_row);
	const int lane = threadIdx.x & 31;
	const float f = sink_factor(p, t.head, lse);
	uint16_t *out = t.out + column + 4 * lane;
	store_two(p, out, fp16 ? pack_fp16(acc.x * f, acc.y * f) : pack_bf16(acc.x * f, acc.y * f));
	store_two(p, out + 2, fp16 ? pack_fp16(acc.z * f, acc.w * f) : pack_bf16(acc.z * f, acc.w * f));
	if (column == 0 && lane == 0 && t.lse)
		*t.lse = natural_lse(p, lse);
}

/* Few pieces: every warp merges 128 columns of a row alone.  item counts groups of ROWS_AT_ONCE rows. */
DEV void merge_few(const struct decode_params &p, const struct split &u, int item, int rows, int fp16)
{
	const int warp = threadIdx.x >> 5, column = warp % COLUMN_CHUNKS * COLUMNS;
	const int row = item * ROWS_AT_ONCE + warp / COLUMN_CHUNKS, tile = row / p.tile_rows, tile_row = row % p.tile_rows;
	if (tile % p.row_tiles * p.tile_rows + tile_row >= rows)
		return;
	const struct row_pieces at = row_pieces(p, u, tile, tile_row);
	const float lse = merge_lse(p, at, u.pieces);
	write_columns(p, u, tile, tile_row, column, merge_columns(p, at, u.pieces, column, 0, 1, lse), lse, fp16);
}

/* Many pieces: the warps share 128 columns of one row.  item counts rows times column chunks. */
DEV void merge_many(const struct decode_params &p, const struct split &u, int item, int rows, int fp16,
                    float4 *exchange)
{
	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, column = item % COLUMN_CHUNKS * COLUMNS;
	const int row = item / COLUMN_CHUNKS, tile = row / p.tile_rows, tile_row = row % p.tile_rows;
	if (tile % p.row_tiles * p.tile_rows + tile_row >= rows)
		return;
	const struct row_pieces at = row_pieces(p, u, tile, tile_row);
	const float lse = merge_lse(p, at, u.pieces);
	float4 acc = merge_columns(p, at, u.pieces, column, warp, WARPS, lse);
	exchange[threadIdx.x] = acc;
	__syncthreads();
	if (warp == 0) {
		for (int w = 1; w < WARPS; w++) {
			const float4 a = exchange[32 * w + lane];
			acc.x += a.x, acc.y += a.y, acc.z += a.z, acc.w += a.w;
		}
		write_columns(p, u, tile, tile_row, column, acc, lse, fp16);
	}
	__syncthreads(); /* exchange may be written again */
}

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
    fmla_combine(const __grid_constant__ struct decode_params p, int fp16)
{
	__shared__ float4 exchange[COMBINE_THREADS];
	__shared__ struct split list[COMBINE_THREADS];
	__shared__ int counts[WARPS];
	grid_wait();
	grid_launch_dependents();
	const int candidates = p.costs.chunk > 0 ? p.b : p.num_parts - 1;
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	const int tile_rows = p.h_kv * p.row_tiles * p.tile_rows;
	for (int base = 0; base < candidates; base += COMBINE_THREADS) {
		/* The split requests among the next candidates, in order: every CTA makes the same list. */
		struct split u = {0, 0, 0};
		const int i = base + threadIdx.x;
		if (i < candidates && p.costs.chunk > 0)
			u = split_of_request(p, i);
		else if (i < candidates)
			u = p.splits[i];
		const unsigned votes = __ballot_sync(0xffffffff, u.pieces > 1);
		if (lane == 0)
			counts[warp] = __popc(votes);
		__syncthreads();
		int at = __popc(votes & ((1u << lane) - 1)), count = 0;
		for (int w = 0; w < WARPS; w++) {
			at += w < warp ? counts[w] : 0;
			count += counts[w];
		}
		if (u.pieces > 1)
			list[at] = u;
		__syncthreads();
		/* Deal the items of all of them out over the grid. */
		int item = blockIdx.x;
		for (int n = 0; n < count; n++) {
			const struct split s = list[n];
			const bool few = s.pieces <= DEPTH;
			const int items = few ? tile_rows / ROWS_AT_ONCE : tile_rows * COLUMN_CHUNKS;
			if (item < items) {
				const int rows = request_tokens(p, s.req) * p.group;
				for (; item < items; item += gridDim.x)
					if (few)
						merge_few(p, s, item, rows, fp16);
					else
						merge_many(p, s, item, rows, fp16, exchange);
			}
			item -= items;
		}
		__syncthreads();
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
