/* SPDX-License-Identifier: MIT
 *
 * decode_mma.cu - stage 3 on NVIDIA GPUs from sm_80 on, by mma.sync and cp.async within 99 KB of shared memory.
 *
 * CTA       16 * RG query rows of one KV head, over the pieces of one part; RG * DG warps.  CTA number = part * tiles +
 *           tile, so that CTAs which read the same keys run side by side.
 * Tile      KEYS keys of 1152 bytes in one of SLOTS slots, filled by cp.async: while one is worked on, the others arrive.
 *           16-byte chunk c of a line of key k lies at chunk c ^ swizzle: ldmatrix meets no bank conflict in either direction.
 * S         warp (rg, dg) multiplies rows 16 rg .. + 15 with every DG-th step of 16 dims, whose part of Q it keeps in
 *           registers; so Q is there once, and K is read RG times.  The DG partial sums are exchanged through shared
 *           memory in the layout in which mma leaves them; then even warps have S of the group's rows 0 - 7, odd ones of
 *           rows 8 - 15, in one quad of lanes a row.
 * P         in 16 bits in shared memory; each warp of the group writes its share of the columns.
 * O         warp w has columns w * 512 / warps .. of all rows: V is read once, P once a warp.
 * Maximum   moves only when it grows by more than MARGIN (in base 2); then O is rescaled.  P <= 2^MARGIN fits fp16.
 * Phases    PV(i) | tile i + 1 is there, slot i is free | load tile i + SLOTS, S(i + 1), P(i + 1) | P is there | PV(i + 1)
 * Plan      found by the CTA itself (mma_plan.cuh), or a row of the plan kernel's for very many requests
 * Combine   a kernel of its own (mma_combine.cuh)
 * Pieces    the first tiles of the next piece are on their way while O of this one is written. */
#ifndef PK_EMULATE /* tests/mma_emulator.cpp */
#include "kernels_cuda.h"
#include "mma.cuh"
#endif

#include "mma_combine.cuh"
#include "mma_plan.cuh"
#include "mma_tile.cuh"

/* Begins c.piece, by one thread; c.have says whether it has rows in this tile. */
DEV void begin_piece(const struct pk_shape &p, const struct mma_buffers &g, int tile, int tile_rows, struct current &c)
{
	c.first = tile * tile_rows;
	const int left = c.piece.tokens * p.group - c.first;
	c.have = left > 0;
	if (!c.have)
		return;
	c.rows = left < tile_rows ? left : tile_rows;
	const struct pk_keys top = pk_row_keys(&p, &c.piece, pk_row_token(&p, c.first));
	const struct pk_keys end = pk_row_keys(&p, &c.piece, pk_row_token(&p, c.first + c.rows - 1));
	const int lowest = pk_row_keys(&p, &c.piece, 0).low; /* keys before are nobody's */
	c.start = c.piece.begin * BLOCK > lowest ? c.piece.begin * BLOCK : lowest;
	c.stop = c.piece.end * BLOCK < c.piece.length ? c.piece.end * BLOCK : c.piece.length;
	c.table = g.table + c.piece.req * p.table_stride;
	c.all_low = end.low;
	c.all_high = top.high;
}

/* The next piece with rows in this tile, by one thread. */
COLD void next_piece(const struct pk_shape &p, const struct mma_buffers &g, int tile, int number, int tile_rows,
                     const struct part &part, const struct current &before, struct current &c)
{
	c.piece = before.piece;
	c.have = 0;
	while (!c.have && pk_next_piece(&p, g.lens, g.cu, &part, number, &c.piece))
		begin_piece(p, g, tile, tile_rows, c);
}

/* The part's first piece, by warp 0, where that takes no other warp: sh.runs > 0. */
template <class T, bool PLAIN>
DEV void first_piece(const struct pk_shape &p, const struct mma_buffers &g, const struct pk_shape &any,
                     const struct mma_buffers &any_buffers, struct small *sh, int number)
{
	const struct plan_axis axis = axis_of(p, g);
	if (threadIdx.x > 0)
		return;
	sh->runs = axis.pieces;
	if (!axis.pieces)
		return;
	sh->now.have = 0;
	if (run_of(p, g, axis, number, sh->part, sh->now.piece))
		begin_piece(p, g, sh->tile, T::ROWS, sh->now);
	if (!PLAIN && !sh->now.have) /* no row in this tile */
		next_piece(any, any_buffers, sh->tile, number, T::ROWS, sh->part, sh->now, sh->now);
	sh->last = sh->part.begin_req == PLAN_IDLE;
}

/* This warp's share of S = Q K^T over its dims. */
template <class T, bool FP16>
DEV void scores(const struct four (&q)[T::MY_STEPS], uint32_t slot, int dg, float (&s)[T::KEYS / 8][4])
{
	const int lane = threadIdx.x & 31, key = (lane >> 4) * 8 + (lane & 7);
	/* Step DG i + dg begins at chunk 2 DG i + 2 dg: what of it lies below chunk 8 is XORed, the rest added. */
	const uint32_t at = slot + key * KEY_BYTES, chunk = 2 * dg + (lane >> 3 & 1);
#pragma unroll
	for (int n = 0; n < T::KEYS / 8; n++)
		s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
	for (int i = 0; i < T::MY_STEPS; i++) {
		const int first = 2 * T::DG * i;
		const uint32_t from = at + (chunk ^ (first & 7) ^ swizzle<T>(lane, first / 8)) * 16 + (first & ~7) * 16;
#pragma unroll
		for (int n = 0; n < T::KEYS / 8; n += 2) {
			const struct four k = load_matrices(from + n * 8 * KEY_BYTES);
			mma<FP16>(s[n], q[i], k.x[0], k.x[1]);
			mma<FP16>(s[n + 1], q[i], k.x[2], k.x[3]);
		}
	}
}

/* Two values each of n-tiles 2 i and 2 i + 1 of a half of S's rows. */
template <int NT> DEV float4 half_of(const float (&s)[NT][4], int i, bool lower)
{
	return lower ? make_float4(s[2 * i][2], s[2 * i][3], s[2 * i + 1][2], s[2 * i + 1][3])
	             : make_float4(s[2 * i][0], s[2 * i][1], s[2 * i + 1][0], s[2 * i + 1][1]);
}

/* The sum of the group's shares for half of its rows, dg & 1: x[n] has keys 8 n + 2 (lane % 4) and the next of row
 * lane / 4 of that half.  Warps with the same half add in the same order. */
template <class T>
DEV void exchange(const float (&s)[T::KEYS / 8][4], float (&x)[T::KEYS / 8][2], float4 *all, int rg, int dg)
{
	float4 *const group = all + rg * (T::EXCHANGE_BYTES / T::RG / 16) + (threadIdx.x & 31);
	const bool lower = dg & 1;
#pragma unroll
	for (int i = 0; i < T::SHARE; i++)
		if (T::DG == 2) { /* [dg][SHARE][lane]: the half that the other warp wants */
			group[(dg * T::SHARE + i) * 32] = half_of(s, i, !lower);
		} else { /* [half][dg][SHARE][lane] */
			group[(dg * T::SHARE + i) * 32] = half_of(s, i, false);
			group[((T::DG + dg) * T::SHARE + i) * 32] = half_of(s, i, true);
		}
	barrier_of(1 + rg, 32 * T::DG);
#pragma unroll
	for (int i = 0; i < T::SHARE; i++) {
		float4 sum;
		if (T::DG == 2) {
			const float4 more = group[((1 - dg) * T::SHARE + i) * 32];
			sum = half_of(s, i, lower);
			sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
		} else {
			sum = group[lower * T::DG * T::SHARE * 32 + i * 32];
#pragma unroll
			for (int d = 1; d < T::DG; d++) {
				const float4 more = group[((lower * T::DG + d) * T::SHARE + i) * 32];
				sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
			}
		}
		x[2 * i][0] = sum.x, x[2 * i][1] = sum.y, x[2 * i + 1][0] = sum.z, x[2 * i + 1][1] = sum.w;
	}
}

/* Running maximum (of scaled scores, base 2) and sum of the lane's row. */
struct running {
	float top, sum;
};

DEV float quad_max(float x)
{
	x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
	return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

DEV float quad_sum(float x)
{
	x += __shfl_xor_sync(0xffffffff, x, 1);
	return x + __shfl_xor_sync(0xffffffff, x, 2);
}

/* The row of the tile whose scores a lane has after the exchange. */
DEV int row_of(int rg, int dg)
{
	return 16 * rg + 8 * (dg & 1) + (threadIdx.x & 31) / 4;
}

/* S to P.  Returns whether a maximum moved; then factor[] has what the rows of O are to be scaled with. */
template <class T, bool FP16>
DEV bool softmax(float (&x)[T::KEYS / 8][2], struct running &r, struct small *sh, const struct current &c,
                 float scale_log2, int start, char *P, int rg, int dg)
{
	const int lane = threadIdx.x & 31, row = row_of(rg, dg);
	const bool masked = start < c.all_low || start + T::KEYS > c.all_high || start + T::KEYS > c.stop;
	float top = -INFINITY;
#pragma unroll
	for (int n = 0; n < T::KEYS / 8; n++)
		x[n][0] *= scale_log2, x[n][1] *= scale_log2;
	if (masked) {
		const int low = sh->low[row] - start - 2 * (lane & 3), high = sh->high[row] - start - 2 * (lane & 3);
#pragma unroll
		for (int n = 0; n < T::KEYS / 8; n++)
#pragma unroll
			for (int j = 0; j < 2; j++)
				if (8 * n + j < low || 8 * n + j >= high)
					x[n][j] = -INFINITY;
	}
#pragma unroll
	for (int n = 0; n < T::KEYS / 8; n++)
		top = fmaxf(top, fmaxf(x[n][0], x[n][1]));
	top = quad_max(top);
	const bool moved = top > r.top + MARGIN;
	float shrink = 1;
	if (moved) {
		shrink = exp2_approx(r.top - top); /* 0 for the first one */
		r.top = top;
	}
	const float base = r.top == -INFINITY ? 0 : r.top;
	float sum = 0;
#pragma unroll
	for (int n = 0; n < T::KEYS / 8; n++) {
		x[n][0] = exp2_approx(x[n][0] - base), x[n][1] = exp2_approx(x[n][1] - base);
		sum += x[n][0] + x[n][1];
	}
	r.sum = r.sum * shrink + sum;
	if (dg < 2 && (lane & 3) == 0)
		sh->factor[row] = shrink;
#pragma unroll
	for (int n = 0; n < T::KEYS / 8; n++) /* warps with the same half take turns */
		if (T::DG == 2 || (n & 1) == dg >> 1)
			*(uint32_t *)(P + row * T::P_STRIDE + 16 * n + 4 * (lane & 3)) = pack<FP16>(x[n][0], x[n][1]);
	return moved;
}

/* O += P V over the warp's columns. */
template <class T, bool FP16> DEV void values(float (&o)[T::RG][T::COLUMNS / 8][4], uint32_t P, uint32_t slot, int warp)
{
	const int lane = threadIdx.x & 31;
	const uint32_t from_p = P + ((lane >> 3 & 1) * 8 + (lane & 7)) * T::P_STRIDE + (lane >> 4) * 16;
	const uint32_t from_v = slot + ((lane >> 3 & 1) * 8 + (lane & 7)) * KEY_BYTES + warp * T::COLUMNS * 2;
#pragma unroll
	for (int step = 0; step < T::KEYS / 16; step++) {
		struct four p[T::RG];
#pragma unroll
		for (int m = 0; m < T::RG; m++)
			p[m] = load_matrices(from_p + m * 16 * T::P_STRIDE + step * 32);
#pragma unroll
		for (int n = 0; n < T::COLUMNS / 8; n += 2) {
			const struct four v = load_matrices_transposed(
			    from_v + step * 16 * KEY_BYTES + (n & ~7) * 16 +
			    ((lane >> 4) ^ (n & 7) ^ swizzle<T>(lane, warp * T::COLUMNS / 64 + n / 8)) * 16);
#pragma unroll
			for (int m = 0; m < T::RG; m++) {
				mma<FP16>(o[m][n], p[m], v.x[0], v.x[1]);
				mma<FP16>(o[m][n + 1], p[m], v.x[2], v.x[3]);
			}
		}
	}
}

template <int RG, int NT> DEV void scale_rows(float (&o)[RG][NT][4], const float *factor)
{
	const int lane = threadIdx.x & 31;
#pragma unroll
	for (int m = 0; m < RG; m++) {
		const float upper = factor[16 * m + lane / 4], lower = factor[16 * m + lane / 4 + 8];
#pragma unroll
		for (int n = 0; n < NT; n++) {
			o[m][n][0] *= upper, o[m][n][1] *= upper;
			o[m][n][2] *= lower, o[m][n][3] *= lower;
		}
	}
}

/* The rows' lse, and into factor[] what their O is to be scaled with; by the first two warps of each group. */
DEV void finish_rows(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh, const struct current &c,
                     const struct running &r, int row)
{
	const float sum = quad_sum(r.sum);
	if ((threadIdx.x & 3) != 0 || row >= c.rows)
		return;
	const struct pk_ends ends = {g.cu, g.sink, g.lse, g.partial_lse, sh->head, sh->tile};
	sh->factor[row] = pk_settle_row(&p, &ends, &c.piece, row, r.top, sum, sh->absent);
}

template <int RG, int NT, bool FP16>
DEV void write_rows(const struct mma_buffers &g, const struct small *sh, const struct current &c,
                    const float (&o)[RG][NT][4], int column)
{
	const int lane = threadIdx.x & 31;
	column += 2 * (lane & 3);
#pragma unroll
	for (int m = 0; m < RG; m++)
#pragma unroll
		for (int half = 0; half < 2; half++) {
			const int row = 16 * m + lane / 4 + 8 * half;
			if (row >= c.rows)
				continue;
			if (c.piece.slot >= 0) {
				float *const to = g.partial_out + sh->out_at[row] + column;
#pragma unroll
				for (int n = 0; n < NT; n++)
					*(float2 *)(to + 8 * n) = make_float2(o[m][n][2 * half], o[m][n][2 * half + 1]);
			} else {
				uint16_t *const to = g.out + sh->out_at[row] + column;
#pragma unroll
				for (int n = 0; n < NT; n++) {
					const uint32_t v = pack<FP16>(o[m][n][2 * half], o[m][n][2 * half + 1]);
					if (g.out_pairs) {
						*(uint32_t *)(to + 8 * n) = v;
					} else {
						to[8 * n] = (uint16_t)v;
						to[8 * n + 1] = (uint16_t)(v >> 16);
					}
				}
			}
		}
}

/* What all threads need to know of the rows: which keys they see, where their results go. */
DEV void describe_row(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh, const struct current &c,
                      int row)
{
	const int r = c.first + (row < c.rows ? row : 0);
	const struct pk_keys k = pk_row_keys(&p, &c.piece, pk_row_token(&p, r));
	sh->low[row] = k.low;
	sh->high[row] = k.high < c.stop ? k.high : c.stop;
	sh->out_at[row] = c.piece.slot < 0 ? pk_out_at(&p, g.cu, c.piece.req, sh->head, r)
	                                   : pk_partial_row(&p, c.piece.slot, sh->head, sh->tile, row) * D_V;
}

/* What nearly every call is (pk_mma_buffers() says when): one query token a request, one KV head, d_qk 576, no window, pages
 * of 64, 128, ... tokens without gaps, aligned tensors.  A kernel that knows so has a third of the code before its first
 * tile, and code that runs once costs some four clocks an instruction. */
DEV void mma_plain(struct pk_shape &p, struct mma_buffers &g)
{
	p.s_q = p.h_kv = 1;
	p.d_qk = D_QK;
	p.has_cu = p.causal = 0; /* the last token sees all keys */
	p.window = 0;
	p.costs.chunk = 0;
	g.q_pairs = g.out_pairs = g.plans_itself = 1;
}

template <class T, bool FP16, bool PLAIN>
__global__ void __launch_bounds__(T::THREADS, 1)
    decode(const __grid_constant__ struct pk_shape any, const __grid_constant__ struct mma_buffers any_buffers)
{
	struct pk_shape p = any;
	struct mma_buffers g = any_buffers;
	if (PLAIN)
		mma_plain(p, g);
	DYNAMIC_SHARED(shared);
	__shared__ struct small sh;
	char *const P = shared + T::SLOTS * T::SLOT_BYTES;
	float4 *const shares = (float4 *)(P + T::ROWS * T::P_STRIDE);
	const uint32_t slots = shared_address(shared);

	const int tiles = p.h_kv * p.row_tiles;
	const int warp = threadIdx.x >> 5, rg = warp / T::DG, dg = warp % T::DG;
	int page[T::EACH]; /* of the next tile to load, read ahead */
	const struct current &c = sh.now, &next = sh.next;
	const int number = blockIdx.x / tiles;

	if (threadIdx.x == 0) {
		const int tile = blockIdx.x - number * tiles;
		sh.head = p.h_kv == 1 ? 0 : tile / p.row_tiles;
		sh.tile = tile - sh.head * p.row_tiles;
		sh.number = number;
		sh.kv = g.kv + sh.head * p.kv_head;
		sh.absent = sh.last = sh.runs = sh.next.have = 0;
	}
	struct four q[T::MY_STEPS];
	struct guess guess = {-1, 0, 0};
	if (PLAIN) {
		__syncthreads(); /* sh.absent is 0 */
		if (guess_piece(p, g, number, guess)) {
			struct current likely;
			likely.piece.req = guess.req;
			likely.first = (blockIdx.x - number * tiles) * T::ROWS;
			likely.rows = p.group - likely.first;
			likely.start = guess.start;
			likely.stop = guess.stop;
			likely.table = g.table + guess.req * p.table_stride;
			load_q<T>(p, g, likely, 0, rg, dg, q); /* behind the tiles it would arrive after them */
			load_first_tiles<T, PLAIN>(p, g, &sh, likely, slots, page);
		}
	}
	if (g.plans_itself && warp == 0)
		first_piece<T, PLAIN>(p, g, any, any_buffers, &sh, number);
	__syncthreads();
	const bool guessed =
	    PLAIN && sh.runs && c.have && c.piece.req == guess.req && c.start == guess.start && c.stop == guess.stop;
	if (PLAIN && !guessed) {
		copy_wait<0>();
		if (threadIdx.x == 0)
			sh.absent = 0;
		__syncthreads(); /* the slots are free, and absent is 0 */
	}
	if (!sh.runs) {
		if (g.plans_itself)
			plan_part<T::THREADS>(any, any_buffers, number, (int64_t *)shared, sh.cut, sh.part);
		if (threadIdx.x == 0) {
			if (!g.plans_itself)
				sh.part = g.parts[number];
			sh.now.piece.req = -1;
			next_piece(any, any_buffers, sh.tile, number, T::ROWS, sh.part, sh.now, sh.now);
		}
		__syncthreads();
	}
	if (c.have && !guessed) {
		load_q<T>(p, g, c, sh.head, rg, dg, q);
		load_first_tiles<T, PLAIN>(p, g, &sh, c, slots, page);
	}
	if (sh.runs && blockIdx.x == 0)
		list_runs<T::THREADS>(p, g, sh.runs);

	while (c.have) {
		if (threadIdx.x < T::ROWS)
			describe_row(p, g, &sh, c, threadIdx.x);
		float o[T::RG][T::COLUMNS / 8][4];
#pragma unroll
		for (int m = 0; m < T::RG; m++)
#pragma unroll
			for (int n = 0; n < T::COLUMNS / 8; n++)
				o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0;
		struct running r = {-INFINITY, 0};
		uint32_t slot = slots;
		float s[T::KEYS / 8][4], x[T::KEYS / 8][2];
		int start = c.start;
		bool moved = false;
		if (start < c.stop) {
			copy_wait<T::SLOTS - 1>();
			__syncthreads(); /* the first tile and the rows' ranges are there */
			scores<T, FP16>(q, slot, dg, s);
			exchange<T>(s, x, shares, rg, dg);
			moved = __syncthreads_or(softmax<T, FP16>(x, r, &sh, c, p.scale_log2, start, P, rg, dg));
		}
#pragma unroll 1
		for (; start < c.stop; start += T::KEYS) {
			if (moved)
				scale_rows(o, sh.factor);
			values<T, FP16>(o, shared_address(P), slot, warp);
			copy_wait<T::SLOTS - 2>();
			__syncthreads(); /* the next tile is there; this slot and P are free */
			load_later<T, PLAIN>(p, g, &sh, c, start + T::SLOTS * T::KEYS, slot, page);
			slot = slot == slots + (T::SLOTS - 1) * T::SLOT_BYTES ? slots : slot + T::SLOT_BYTES;
			if (start + T::KEYS < c.stop) {
				scores<T, FP16>(q, slot, dg, s);
				exchange<T>(s, x, shares, rg, dg);
				moved = __syncthreads_or(softmax<T, FP16>(x, r, &sh, c, p.scale_log2, start + T::KEYS, P, rg, dg));
			}
		}

		/* The next piece's loads, then this one's results. */
		if (!sh.last && threadIdx.x == 0)
			next_piece(any, any_buffers, sh.tile, sh.number, T::ROWS, sh.part, c, sh.next);
		if (dg < 2)
			finish_rows(p, g, &sh, c, r, row_of(rg, dg));
		__syncthreads();
		if (next.have) {
			if (threadIdx.x == 0)
				sh.absent = 0;
			__syncthreads(); /* absent is 0 again */
			load_first_tiles<T, PLAIN>(p, g, &sh, next, slots, page);
		}
		scale_rows(o, sh.factor);
		write_rows<T::RG, T::COLUMNS / 8, FP16>(any_buffers, &sh, c, o, warp * T::COLUMNS);
		if (!next.have)
			break;
		__syncthreads(); /* factor, low and high are free */
		if (threadIdx.x == 0)
			sh.now = sh.next;
		__syncthreads();
		load_q<T>(p, g, c, sh.head, rg, dg, q);
	}
}

#ifndef PK_EMULATE
/* ---- launching --------------------------------------------------------------------------------------------------- */

struct variant {
	const void *kernel;
	int threads, bytes;
};

template <class T> static struct variant variant(int fp16, int plain)
{
	const void *const kernel = plain ? fp16 ? (const void *)decode<T, true, true> : (const void *)decode<T, false, true>
	                           : fp16 ? (const void *)decode<T, true, false>
	                                  : (const void *)decode<T, false, false>;
	return {kernel, T::THREADS, T::BYTES};
}

static struct variant variant_of(int tile_rows, int fp16, int plain)
{
	return tile_rows == 16   ? variant<tile_16>(fp16, plain)
	       : tile_rows == 32 ? variant<tile_32>(fp16, plain)
	                         : variant<tile_64>(fp16, plain);
}

extern "C" cudaError_t fmla_mma_prepare(int tile_rows, int *ctas_per_sm)
{
	for (int i = 0; i < 4; i++) {
		const struct variant v = variant_of(tile_rows, i & 1, i >> 1);
		cudaError_t error = cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, v.bytes);
		if (error == cudaSuccess)
			error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(ctas_per_sm, v.kernel, v.threads, v.bytes);
		if (error != cudaSuccess)
			return error;
	}
	return cudaSuccess;
}

extern "C" cudaError_t fmla_mma_combine_launch(const struct pk_shape *p, const struct mma_buffers *g,
                                               cudaStream_t stream)
{
	struct pk_shape shape = *p;
	struct mma_buffers buffers = *g;
	void *arguments[] = {&shape, &buffers};
	combine_kernel *const kernel = p->fp16 ? combine_of<true>(g->combine_team, g->combine_wide)
	                                       : combine_of<false>(g->combine_team, g->combine_wide);
	return cudaLaunchKernel((const void *)kernel, dim3((unsigned)g->combine_ctas), dim3(32 * COMBINE_WARPS), arguments,
	                        0, stream);
}

extern "C" cudaError_t fmla_mma_launch(const struct pk_shape *p, const struct mma_buffers *g, int64_t ctas,
                                       cudaStream_t stream)
{
	const struct variant v = variant_of(p->tile_rows, p->fp16, g->plain);
	struct pk_shape shape = *p;
	struct mma_buffers buffers = *g;
	void *arguments[] = {&shape, &buffers};
	return cudaLaunchKernel(v.kernel, dim3((unsigned)ctas), dim3((unsigned)v.threads), arguments, (size_t)v.bytes,
	                        stream);
}
#endif
