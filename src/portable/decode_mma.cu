/* SPDX-License-Identifier: MIT
 *
 * decode_mma.cu - stage 3 on NVIDIA GPUs from sm_80 on, by mma.sync and cp.async within 99 KB of shared memory.
 *
 * CTA       16 * RG query rows of one KV head, over the pieces of one part; RG * DG warps.  CTA number = part * tiles +
 *           tile, so that CTAs which read the same keys run side by side.
 * Tile      KEYS keys of 1152 bytes in one of SLOTS slots, filled by cp.async: while one is worked on, the others arrive.
 *           16-byte chunk c of key k lies at chunk c ^ (k & 7): ldmatrix meets no bank conflict in either direction.
 * S         warp (rg, dg) multiplies rows 16 rg .. + 15 with every DG-th step of 16 dims, whose part of Q it keeps in
 *           registers; so Q is there once, and K is read RG times.  The DG partial sums are exchanged through shared
 *           memory in the layout in which mma leaves them; then even warps have S of the group's rows 0 - 7, odd ones of
 *           rows 8 - 15, in one quad of lanes a row.
 * P         in 16 bits in shared memory; each warp of the group writes its share of the columns.
 * O         warp w has columns w * 512 / warps .. of all rows: V is read once, P once a warp.
 * Maximum   moves only when it grows by more than MARGIN (in base 2); then O is rescaled.  P <= 2^MARGIN fits fp16.
 * Phases    PV(i) | tile i + 1 is there, slot i is free | load tile i + SLOTS, S(i + 1), P(i + 1) | P is there | PV(i + 1)
 * Plan      found by the CTA itself (mma_plan.cuh), or a row of the plan kernel's for very many requests
 * Pieces    the first tiles of the next piece are on their way while O of this one is written. */
#ifndef PK_EMULATE /* tests/mma_emulator.cpp */
#include "kernels_cuda.h"
#include "mma.cuh"
#endif

#include "mma_plan.cuh"

enum {
	KEY_BYTES = 2 * D_QK,
	STEPS = D_QK / 16,       /* of 16 dims                                          */
	LOADERS = 8,             /* threads that load a key: a 128-byte line at a time  */
	LINES = KEY_BYTES / 128, /* of a key                                            */
	MARGIN = 6
};

template <int rg, int dg, int keys> struct tile_of {
	enum {
		RG = rg,
		DG = dg,
		KEYS = keys,
		WARPS = RG * DG,
		THREADS = 32 * WARPS,
		ROWS = 16 * RG,
		COLUMNS = D_V / WARPS, /* of O, of a warp */
		MY_STEPS = STEPS / DG,
		SLOTS = 64 / KEYS,
		SLOT_BYTES = KEYS * KEY_BYTES,
		EACH = KEYS * LOADERS / THREADS, /* keys that a thread loads of a tile           */
		SHARE = KEYS / 16,               /* float4 a lane of half the rows of a partial S */
		EXCHANGE_BYTES = RG * (DG == 2 ? 1 : 2) * DG * SHARE * 32 * 16,
		P_STRIDE = 2 * KEYS + 16, /* bytes of a row of P: no bank conflicts */
		BYTES = SLOTS * SLOT_BYTES + EXCHANGE_BYTES + ROWS * P_STRIDE
	};
};
typedef tile_of<1, 4, 16> tile_16; /* named by their rows */
typedef tile_of<2, 2, 32> tile_32;
typedef tile_of<4, 2, 32> tile_64;

/* What the CTA's threads know of a piece. */
struct current {
	struct pk_piece piece;
	const int32_t *table;  /* of the request                          */
	int have;              /* 0: the part is done                       */
	int first, rows;       /* of this row tile                          */
	int start, stop;       /* keys to walk                              */
	int all_low, all_high; /* keys that every row sees: no mask there */
};

struct small {
	struct border cut[2]; /* before and after the part */
	struct part part;
	int head, tile;     /* of the CTA; read when needed, as registers are short */
	const uint16_t *kv; /* of the CTA's head                                     */
	struct current now, next;
	float factor[64];      /* of the rows of O, at the end and when the maximum moves */
	int low[64], high[64]; /* keys that a row sees                                    */
	int64_t out_at[64];    /* where its results go, in out or partial_out            */
	int absent;            /* a page was out of range */
};

static_assert(tile_64::BYTES + (int)sizeof(struct small) <= 99 << 10 && (int)tile_32::BYTES <= (int)tile_64::BYTES &&
                  (int)tile_16::BYTES <= (int)tile_64::BYTES,
              "a CTA has 99 KB on sm_86, sm_89 and sm_120");

/* The next piece with rows in this tile, by one thread. */
DEV void next_piece(const struct pk_shape &p, const struct mma_buffers &g, int tile, int number, int tile_rows,
                    const struct part &part, const struct current &before, struct current &c)
{
	struct pk_piece piece = before.piece;
	c.have = 0;
	while (pk_next_piece(&p, g.lens, g.cu, &part, number, &piece)) {
		c.first = tile * tile_rows;
		const int left = piece.tokens * p.group - c.first;
		if (left <= 0)
			continue;
		c.rows = left < tile_rows ? left : tile_rows;
		const struct pk_keys top = pk_row_keys(&p, &piece, c.first / p.group);
		const struct pk_keys end = pk_row_keys(&p, &piece, (c.first + c.rows - 1) / p.group);
		const int lowest = pk_row_keys(&p, &piece, 0).low; /* keys before are nobody's */
		c.start = piece.begin * BLOCK > lowest ? piece.begin * BLOCK : lowest;
		c.stop = piece.end * BLOCK < piece.length ? piece.end * BLOCK : piece.length;
		c.table = g.table + piece.req * p.table_stride;
		c.all_low = end.low;
		c.all_high = top.high;
		c.have = 1;
		break;
	}
	c.piece = piece;
}

/* The page of a thread's i-th key of the tile that begins at `start`; -1: no such key. */
template <class T>
DEV int find_page(const struct pk_shape &p, const struct mma_buffers &g, const struct current &c, int start, int i)
{
	const int key = start + (int)threadIdx.x / LOADERS + i * (T::THREADS / LOADERS);
	const int entry = g.page_shift >= 0 ? key >> g.page_shift : key / p.page;
	return key < c.stop ? c.table[entry] : -1;
}

/* A thread's share of a tile, whose pages it knows. */
template <class T>
DEV void load_tile(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh, const struct current &c,
                   int start, uint32_t slot, const int (&page)[T::EACH])
{
#pragma unroll
	for (int i = 0; i < T::EACH; i++) {
		const int row = (int)threadIdx.x / LOADERS + i * (T::THREADS / LOADERS), key = start + row;
		const bool there = (unsigned)page[i] < (unsigned)p.num_pages;
		const int inside = g.page_shift >= 0 ? key & (p.page - 1) : key % p.page;
		const char *from = (const char *)(sh->kv + (there ? page[i] * p.kv_page + inside * p.kv_token : 0)) +
		                   threadIdx.x % LOADERS * 16;
		const uint32_t to = slot + row * KEY_BYTES + (threadIdx.x % LOADERS ^ (row & 7)) * 16;
		if (key < c.stop && !there)
			sh->absent = 1;
#pragma unroll
		for (int line = 0; line < LINES; line++)
			copy_async(to + line * 128, from + line * 128, there && (line < LINES - 1 || p.d_qk == D_QK) ? 16 : 0);
	}
	copy_commit();
}

/* Fills all slots, and page[] for the tile after them.  A tile that is not there still is a group of copies, so that
 * they can be counted. */
template <class T>
DEV void load_first_tiles(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh,
                          const struct current &c, uint32_t slots, int (&page)[T::EACH])
{
	int first[T::SLOTS][T::EACH];
#pragma unroll
	for (int t = 0; t < T::SLOTS; t++)
#pragma unroll
		for (int i = 0; i < T::EACH; i++)
			first[t][i] = find_page<T>(p, g, c, c.start + t * T::KEYS, i);
#pragma unroll
	for (int i = 0; i < T::EACH; i++)
		page[i] = find_page<T>(p, g, c, c.start + T::SLOTS * T::KEYS, i);
#pragma unroll
	for (int t = 0; t < T::SLOTS; t++)
		if (c.start + t * T::KEYS < c.stop)
			load_tile<T>(p, g, sh, c, c.start + t * T::KEYS, slots + t * T::SLOT_BYTES, first[t]);
		else
			copy_commit();
}

DEV const uint16_t *q_row(const struct pk_shape &p, const struct mma_buffers &g, const struct current &c, int head,
                          int r)
{
	/* rows past the last one repeat a row and are not written */
	return g.q + pk_q_at(&p, g.cu, c.piece.req, head, c.first + (r < c.rows ? r : 0));
}

DEV uint32_t q_pair(const uint16_t *from, bool pairs)
{
	return pairs ? *(const uint32_t *)from : from[0] | (uint32_t)from[1] << 16;
}

/* The warp's part of Q: a step of 16 dims is one A operand. */
template <class T>
DEV void load_q(const struct pk_shape &p, const struct mma_buffers &g, const struct current &c, int head, int rg,
                int dg, struct four (&q)[T::MY_STEPS])
{
	const int lane = threadIdx.x & 31;
	const uint16_t *const upper = q_row(p, g, c, head, 16 * rg + lane / 4) + 2 * (lane & 3);
	const uint16_t *const lower = q_row(p, g, c, head, 16 * rg + lane / 4 + 8) + 2 * (lane & 3);
#pragma unroll
	for (int i = 0; i < T::MY_STEPS; i++) {
		const int d = 16 * (T::DG * i + dg);
		const bool there = d < p.d_qk; /* d_qk 512: the rope part is zero, in Q and K */
		q[i].x[0] = there ? q_pair(upper + d, g.q_pairs) : 0;
		q[i].x[1] = there ? q_pair(lower + d, g.q_pairs) : 0;
		q[i].x[2] = there ? q_pair(upper + d + 8, g.q_pairs) : 0;
		q[i].x[3] = there ? q_pair(lower + d + 8, g.q_pairs) : 0;
	}
}

/* This warp's share of S = Q K^T over its dims. */
template <class T, bool FP16>
DEV void scores(const struct four (&q)[T::MY_STEPS], uint32_t slot, int dg, float (&s)[T::KEYS / 8][4])
{
	const int lane = threadIdx.x & 31, key = (lane >> 4) * 8 + (lane & 7);
	/* Step DG i + dg begins at chunk 2 DG i + 2 dg: what of it lies below chunk 8 is XORed, the rest added. */
	const uint32_t at = slot + key * KEY_BYTES, chunk = (2 * dg + (lane >> 3 & 1)) ^ (lane & 7);
#pragma unroll
	for (int n = 0; n < T::KEYS / 8; n++)
		s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
	for (int i = 0; i < T::MY_STEPS; i++) {
		const int first = 2 * T::DG * i;
		const uint32_t from = at + (chunk ^ (first & 7)) * 16 + (first & ~7) * 16;
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
	const uint32_t chunk = (lane >> 4) ^ (lane & 7);
#pragma unroll
	for (int step = 0; step < T::KEYS / 16; step++) {
		struct four p[T::RG];
#pragma unroll
		for (int m = 0; m < T::RG; m++)
			p[m] = load_matrices(from_p + m * 16 * T::P_STRIDE + step * 32);
#pragma unroll
		for (int n = 0; n < T::COLUMNS / 8; n += 2) {
			const struct four v =
			    load_matrices_transposed(from_v + step * 16 * KEY_BYTES + (n & ~7) * 16 + (chunk ^ (n & 7)) * 16);
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
	const struct pk_keys k = pk_row_keys(&p, &c.piece, r / p.group);
	sh->low[row] = k.low;
	sh->high[row] = k.high < c.stop ? k.high : c.stop;
	sh->out_at[row] = c.piece.slot < 0 ? pk_out_at(&p, g.cu, c.piece.req, sh->head, r)
	                                   : pk_partial_row(&p, c.piece.slot, sh->head, sh->tile, row) * D_V;
}

template <class T, bool FP16>
__global__ void __launch_bounds__(T::THREADS, 1)
    decode(const __grid_constant__ struct pk_shape p, const __grid_constant__ struct mma_buffers g)
{
	DYNAMIC_SHARED(shared);
	__shared__ struct small sh;
	char *const P = shared + T::SLOTS * T::SLOT_BYTES;
	float4 *const shares = (float4 *)(P + T::ROWS * T::P_STRIDE);
	const uint32_t slots = shared_address(shared);

	const int tiles = p.h_kv * p.row_tiles;
	const int warp = threadIdx.x >> 5, rg = warp / T::DG, dg = warp % T::DG;
	int page[T::EACH]; /* of the next tile to load, read ahead */
	const struct current &c = sh.now, &next = sh.next;

	if (g.plans_itself)
		plan_part<T::THREADS>(p, g, blockIdx.x / tiles, (int64_t *)shared, sh.cut, sh.part);
	if (threadIdx.x == 0) {
		if (!g.plans_itself)
			sh.part = g.parts[blockIdx.x / tiles];
		sh.tile = blockIdx.x % p.row_tiles;
		sh.head = blockIdx.x % tiles / p.row_tiles;
		sh.kv = g.kv + sh.head * p.kv_head;
		sh.next.piece.req = -1;
		next_piece(p, g, sh.tile, blockIdx.x / tiles, T::ROWS, sh.part, sh.next, sh.now);
		sh.absent = 0;
	}
	__syncthreads();
	if (c.have)
		load_first_tiles<T>(p, g, &sh, c, slots, page);

	while (c.have) {
		for (int row = threadIdx.x; row < T::ROWS; row += T::THREADS)
			describe_row(p, g, &sh, c, row);
		struct four q[T::MY_STEPS];
		load_q<T>(p, g, c, sh.head, rg, dg, q);
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
			if (start + T::SLOTS * T::KEYS < c.stop) {
				load_tile<T>(p, g, &sh, c, start + T::SLOTS * T::KEYS, slot, page);
#pragma unroll
				for (int i = 0; i < T::EACH; i++)
					page[i] = find_page<T>(p, g, c, start + (T::SLOTS + 1) * T::KEYS, i);
			} else {
				copy_commit();
			}
			slot = slot == slots + (T::SLOTS - 1) * T::SLOT_BYTES ? slots : slot + T::SLOT_BYTES;
			if (start + T::KEYS < c.stop) {
				scores<T, FP16>(q, slot, dg, s);
				exchange<T>(s, x, shares, rg, dg);
				moved = __syncthreads_or(softmax<T, FP16>(x, r, &sh, c, p.scale_log2, start + T::KEYS, P, rg, dg));
			}
		}

		/* The next piece's loads, then this one's results. */
		if (threadIdx.x == 0)
			next_piece(p, g, sh.tile, blockIdx.x / tiles, T::ROWS, sh.part, c, sh.next);
		if (dg < 2)
			finish_rows(p, g, &sh, c, r, row_of(rg, dg));
		__syncthreads();
		if (threadIdx.x == 0)
			sh.absent = 0;
		if (next.have) {
			__syncthreads(); /* absent is 0 again */
			load_first_tiles<T>(p, g, &sh, next, slots, page);
		}
		scale_rows(o, sh.factor);
		write_rows<T::RG, T::COLUMNS / 8, FP16>(g, &sh, c, o, warp * T::COLUMNS);
		__syncthreads(); /* factor, low and high are free */
		if (threadIdx.x == 0)
			sh.now = sh.next;
		__syncthreads();
	}
}

#ifndef PK_EMULATE
/* ---- launching --------------------------------------------------------------------------------------------------- */

struct variant {
	const void *kernel;
	int threads, bytes;
};

template <class T> static struct variant variant(int fp16)
{
	return {fp16 ? (const void *)decode<T, true> : (const void *)decode<T, false>, T::THREADS, T::BYTES};
}

static struct variant variant_of(int tile_rows, int fp16)
{
	return tile_rows == 16 ? variant<tile_16>(fp16) : tile_rows == 32 ? variant<tile_32>(fp16) : variant<tile_64>(fp16);
}

extern "C" cudaError_t fmla_mma_prepare(int tile_rows, int *ctas_per_sm)
{
	for (int fp16 = 0; fp16 < 2; fp16++) {
		const struct variant v = variant_of(tile_rows, fp16);
		cudaError_t error = cudaFuncSetAttribute(v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, v.bytes);
		if (error == cudaSuccess)
			error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(ctas_per_sm, v.kernel, v.threads, v.bytes);
		if (error != cudaSuccess)
			return error;
	}
	return cudaSuccess;
}

extern "C" cudaError_t fmla_mma_launch(const struct pk_shape *p, const struct mma_buffers *g, int64_t ctas,
                                       cudaStream_t stream)
{
	const struct variant v = variant_of(p->tile_rows, p->fp16);
	struct pk_shape shape = *p;
	struct mma_buffers buffers = *g;
	void *arguments[] = {&shape, &buffers};
	return cudaLaunchKernel(v.kernel, dim3((unsigned)ctas), dim3((unsigned)v.threads), arguments, (size_t)v.bytes,
	                        stream);
}
#endif
