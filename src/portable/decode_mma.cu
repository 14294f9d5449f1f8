/* SPDX-License-Identifier: MIT
 *
 * decode_mma.cu - stage 3 on NVIDIA GPUs from sm_80 on, by mma.sync and cp.async within 99 KB of shared memory.
 *
 * CTA       16 * RG query rows of one KV head, over the pieces of one part; RG * DG warps.  CTA number = part * tiles +
 *           tile, so that CTAs which read the same keys run side by side.
 * Tile      KEYS keys of 1152 bytes in two slots, filled by cp.async: while one is worked on, the next arrives.
 *           16-byte chunk c of key k lies at chunk c ^ (k & 7): ldmatrix meets no bank conflict in either direction.
 * S         warp (rg, dg) multiplies rows 16 rg .. + 15 with every DG-th step of 16 dims, whose part of Q it keeps in
 *           registers; so Q is there once, and K is read RG times.  The DG partial sums are exchanged through shared
 *           memory in the layout in which mma leaves them, and every warp of the group then has all of S.
 * P         in 16 bits in shared memory; each warp of the group writes its share of the columns.
 * O         warp w has columns w * 512 / warps .. of all rows: V is read once, P once a warp.
 * Maximum   moves only when it grows by more than MARGIN (in base 2); then O is rescaled.  P <= 2^MARGIN fits fp16.
 * Phases    PV(i) | tile i + 1 is there, slot i is free | load tile i + 2, S(i + 1), P(i + 1) | P is there | PV(i + 1)
 * Pieces    the first two tiles of the next piece are on their way while O of this one is written. */
#include "kernels_cuda.h"
#include "mma.cuh"

#include "walk.h"

enum {
	KEYS = 32,
	KEY_BYTES = 2 * D_QK,
	SLOT_BYTES = KEYS * KEY_BYTES,
	SLOTS = 2,
	STEPS = D_QK / 16,        /* of 16 dims                                          */
	LOADERS = 8,              /* threads that load a key: a 128-byte line at a time  */
	LINES = KEY_BYTES / 128,  /* of a key                                            */
	P_STRIDE = 2 * KEYS + 16, /* bytes of a row of P: no bank conflicts              */
	MARGIN = 6
};

template <int RG, int DG> struct tile_of {
	enum {
		WARPS = RG * DG,
		THREADS = 32 * WARPS,
		ROWS = 16 * RG,
		COLUMNS = D_V / WARPS, /* of O, of a warp */
		MY_STEPS = STEPS / DG,
		EXCHANGE_BYTES = WARPS * 32 * 4 * KEYS / 2, /* 16 floats a lane for 32 keys */
		P_BYTES = ROWS * P_STRIDE,
		BYTES = SLOTS * SLOT_BYTES + EXCHANGE_BYTES + P_BYTES
	};
};

/* What the CTA's threads know of a piece. */
struct current {
	struct pk_piece piece;
	int have;              /* 0: the part is done                       */
	int first, rows;       /* of this row tile                          */
	int start, stop;       /* keys to walk                              */
	int all_low, all_high; /* keys that every row sees: no mask there */
};

struct small {
	struct part part;
	int head, tile;     /* of the CTA; read when needed, as registers are short */
	const uint16_t *kv; /* of the CTA's head                                     */
	struct current now, next;
	float factor[64];      /* of the rows of O, at the end and when the maximum moves */
	int low[64], high[64]; /* keys that a row sees */
	int absent;            /* a page was out of range */
};

static_assert(tile_of<4, 2>::BYTES + (int)sizeof(struct small) <= 99 << 10 &&
                  (int)tile_of<2, 4>::BYTES <= (int)tile_of<4, 2>::BYTES &&
                  (int)tile_of<1, 4>::BYTES <= (int)tile_of<4, 2>::BYTES,
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
		c.all_low = end.low;
		c.all_high = top.high;
		c.have = 1;
		break;
	}
	c.piece = piece;
}

/* A thread's share of loading tiles: keys `row`, row + THREADS / LOADERS, ... of each. */
template <int THREADS> struct loader {
	enum { EACH = KEYS * LOADERS / THREADS };
	int page[EACH]; /* of the next tile's keys, read ahead; -1: no such key */
};

template <int THREADS>
DEV void find_pages(const struct pk_shape &p, const struct mma_buffers &g, const struct current &c, int start,
                    struct loader<THREADS> &l)
{
#pragma unroll
	for (int i = 0; i < loader<THREADS>::EACH; i++) {
		const int key = start + (int)threadIdx.x / LOADERS + i * (THREADS / LOADERS);
		const int entry = g.page_shift >= 0 ? key >> g.page_shift : key / p.page;
		l.page[i] = key < c.stop ? g.table[c.piece.req * p.table_stride + entry] : -1;
	}
}

template <int THREADS>
DEV void load_tile(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh, const struct current &c,
                   int start, uint32_t slot, struct loader<THREADS> &l)
{
#pragma unroll
	for (int i = 0; i < loader<THREADS>::EACH; i++) {
		const int row = (int)threadIdx.x / LOADERS + i * (THREADS / LOADERS), key = start + row;
		const bool there = (unsigned)l.page[i] < (unsigned)p.num_pages;
		const int inside = g.page_shift >= 0 ? key & (p.page - 1) : key % p.page;
		const char *from = (const char *)(sh->kv + (there ? l.page[i] * p.kv_page + inside * p.kv_token : 0)) +
		                   threadIdx.x % LOADERS * 16;
		const uint32_t to = slot + row * KEY_BYTES + (threadIdx.x % LOADERS ^ (row & 7)) * 16;
		if (key < c.stop && !there)
			sh->absent = 1;
#pragma unroll
		for (int line = 0; line < LINES; line++)
			copy_async(to + line * 128, from + line * 128, there && (line < LINES - 1 || p.d_qk == D_QK) ? 16 : 0);
	}
	copy_commit();
	find_pages(p, g, c, start + KEYS, l);
}

/* Fills both slots; a tile that is not there still is a group of copies, so that they can be counted. */
template <int THREADS>
DEV void load_first_tiles(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh,
                          const struct current &c, uint32_t slots, struct loader<THREADS> &l)
{
#pragma unroll 1
	for (int i = 0; i < SLOTS; i++)
		if (c.start + i * KEYS < c.stop)
			load_tile(p, g, sh, c, c.start + i * KEYS, slots + i * SLOT_BYTES, l);
		else
			copy_commit();
}

DEV const uint16_t *q_row(const struct pk_shape &p, const struct mma_buffers &g, const struct current &c, int head,
                          int r)
{
	r = c.first + (r < c.rows ? r : 0); /* rows past the last one repeat a row and are not written */
	const int s = r / p.group;
	return g.q + c.piece.req * p.q_b + (p.has_cu ? g.cu[c.piece.req] + s : s) * p.q_s +
	       (head * p.group + r % p.group) * p.q_h;
}

DEV uint32_t q_pair(const uint16_t *from, bool pairs)
{
	return pairs ? *(const uint32_t *)from : from[0] | (uint32_t)from[1] << 16;
}

/* The warp's part of Q: a step of 16 dims is one A operand. */
template <int RG, int DG>
DEV void load_q(const struct pk_shape &p, const struct mma_buffers &g, const struct current &c, int head, int rg,
                int dg, struct four (&q)[tile_of<RG, DG>::MY_STEPS])
{
	const int lane = threadIdx.x & 31;
	const uint16_t *const upper = q_row(p, g, c, head, 16 * rg + lane / 4) + 2 * (lane & 3);
	const uint16_t *const lower = q_row(p, g, c, head, 16 * rg + lane / 4 + 8) + 2 * (lane & 3);
#pragma unroll
	for (int i = 0; i < tile_of<RG, DG>::MY_STEPS; i++) {
		const int d = 16 * (DG * i + dg);
		const bool there = d < p.d_qk; /* d_qk 512: the rope part is zero, in Q and K */
		q[i].x[0] = there ? q_pair(upper + d, g.q_pairs) : 0;
		q[i].x[1] = there ? q_pair(lower + d, g.q_pairs) : 0;
		q[i].x[2] = there ? q_pair(upper + d + 8, g.q_pairs) : 0;
		q[i].x[3] = there ? q_pair(lower + d + 8, g.q_pairs) : 0;
	}
}

/* This warp's share of S = Q K^T over its dims. */
template <int RG, int DG, bool FP16>
DEV void scores(const struct four (&q)[tile_of<RG, DG>::MY_STEPS], uint32_t slot, int dg, float (&s)[KEYS / 8][4])
{
	const int lane = threadIdx.x & 31, key = (lane >> 4) * 8 + (lane & 7);
	/* Step DG i + dg begins at chunk 2 DG i + 2 dg: the low bits of i that fall below chunk 8 are XORed, the others added. */
	const uint32_t at = slot + key * KEY_BYTES, chunk = (2 * dg + (lane >> 3 & 1)) ^ (lane & 7);
#pragma unroll
	for (int n = 0; n < KEYS / 8; n++)
		s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
	for (int i = 0; i < tile_of<RG, DG>::MY_STEPS; i++) {
		const int first = 2 * DG * i;
		const uint32_t from = at + (chunk ^ (first & 7)) * 16 + (first & ~7) * 16;
#pragma unroll
		for (int n = 0; n < KEYS / 8; n += 2) {
			const struct four k = load_matrices(from + n * 8 * KEY_BYTES);
			mma<FP16>(s[n], q[i], k.x[0], k.x[1]);
			mma<FP16>(s[n + 1], q[i], k.x[2], k.x[3]);
		}
	}
}

/* The sum of the group's shares, in the same order in each of its warps. */
template <int RG, int DG> DEV void exchange(float (&s)[KEYS / 8][4], float4 *all, int rg, int dg)
{
	const int lane = threadIdx.x & 31;
	float4 *const group = all + rg * DG * (KEYS / 8) * 32 + lane;
#pragma unroll
	for (int n = 0; n < KEYS / 8; n++)
		group[(dg * (KEYS / 8) + n) * 32] = make_float4(s[n][0], s[n][1], s[n][2], s[n][3]);
	barrier_of(1 + rg, 32 * DG);
#pragma unroll
	for (int n = 0; n < KEYS / 8; n++) {
		float4 sum = group[n * 32];
#pragma unroll
		for (int d = 1; d < DG; d++) {
			const float4 more = group[(d * (KEYS / 8) + n) * 32];
			sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
		}
		s[n][0] = sum.x, s[n][1] = sum.y, s[n][2] = sum.z, s[n][3] = sum.w;
	}
}

/* Running maximum (of scaled scores, base 2) and sum of the lane's two rows. */
struct running {
	float top[2], sum[2];
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

/* S to P.  Returns whether a maximum moved; then factor[] has what the rows of O are to be scaled with. */
template <int RG, int DG, bool FP16>
DEV bool softmax(float (&s)[KEYS / 8][4], struct running &r, struct small *sh, const struct current &c,
                 float scale_log2, int start, char *P, int rg, int dg)
{
	const int lane = threadIdx.x & 31, row = 16 * rg + lane / 4;
	const bool masked = start < c.all_low || start + KEYS > c.all_high || start + KEYS > c.stop;
	bool moved = false;
#pragma unroll
	for (int half = 0; half < 2; half++) { /* row and row + 8 */
		float top = -INFINITY;
		const int low = masked ? sh->low[row + 8 * half] : 0, high = masked ? sh->high[row + 8 * half] : 0;
#pragma unroll
		for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
			for (int j = 0; j < 2; j++) {
				float &x = s[n][2 * half + j];
				const int key = start + 8 * n + 2 * (lane & 3) + j;
				x *= scale_log2;
				if (masked && (key < low || key >= high))
					x = -INFINITY;
				top = fmaxf(top, x);
			}
		top = quad_max(top);
		float shrink = 1;
		if (top > r.top[half] + MARGIN) {
			shrink = exp2_approx(r.top[half] - top); /* 0 for the first one */
			r.top[half] = top;
			moved = true;
		}
		const float base = r.top[half] == -INFINITY ? 0 : r.top[half];
		float sum = 0;
#pragma unroll
		for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
			for (int j = 0; j < 2; j++) {
				float &x = s[n][2 * half + j];
				x = exp2_approx(x - base);
				sum += x;
			}
		r.sum[half] = r.sum[half] * shrink + sum;
		if (dg == 0 && (lane & 3) == 0)
			sh->factor[row + 8 * half] = shrink;
#pragma unroll
		for (int n = 0; n < KEYS / 8 / DG; n++) /* this warp's columns of P */
#pragma unroll
			for (int d = 0; d < DG; d++)
				if (d == dg)
					*(uint32_t *)(P + (row + 8 * half) * P_STRIDE + 16 * (n * DG + d) + 4 * (lane & 3)) =
					    pack<FP16>(s[n * DG + d][2 * half], s[n * DG + d][2 * half + 1]);
	}
	return moved;
}

/* O += P V over the warp's columns. */
template <int RG, int DG, bool FP16>
DEV void values(float (&o)[RG][tile_of<RG, DG>::COLUMNS / 8][4], uint32_t P, uint32_t slot, int warp)
{
	const int lane = threadIdx.x & 31;
	const uint32_t from_p = P + ((lane >> 3 & 1) * 8 + (lane & 7)) * P_STRIDE + (lane >> 4) * 16;
	const uint32_t from_v = slot + ((lane >> 3 & 1) * 8 + (lane & 7)) * KEY_BYTES + warp * tile_of<RG, DG>::COLUMNS * 2;
	const uint32_t chunk = (lane >> 4) ^ (lane & 7);
#pragma unroll
	for (int step = 0; step < KEYS / 16; step++) {
		struct four p[RG];
#pragma unroll
		for (int m = 0; m < RG; m++)
			p[m] = load_matrices(from_p + m * 16 * P_STRIDE + step * 32);
#pragma unroll
		for (int n = 0; n < tile_of<RG, DG>::COLUMNS / 8; n += 2) {
			const struct four v =
			    load_matrices_transposed(from_v + step * 16 * KEY_BYTES + (n & ~7) * 16 + (chunk ^ (n & 7)) * 16);
#pragma unroll
			for (int m = 0; m < RG; m++) {
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

/* The rows' lse, and into factor[] what their O is to be scaled with; by the first warp of each group. */
DEV void finish_rows(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh, const struct current &c,
                     struct running &r, int head, int tile, int rg)
{
	const int lane = threadIdx.x & 31;
#pragma unroll
	for (int half = 0; half < 2; half++) {
		const int row = 16 * rg + lane / 4 + 8 * half;
		const float sum = quad_sum(r.sum[half]);
		if ((lane & 3) != 0 || row >= c.rows)
			continue;
		const float lse = sh->absent ? NAN : sum == 0 ? -INFINITY : r.top[half] + log2f(sum);
		float factor = sh->absent ? NAN : sum == 0 ? 0 : 1 / sum;
		if (c.piece.slot >= 0) {
			g.partial_lse[((c.piece.slot * (int64_t)p.h_kv + head) * p.row_tiles + tile) * p.tile_rows + row] = lse;
		} else {
			if (sum != 0)
				factor *= pk_sink_factor(&p, g.sink, head, c.first + row, lse);
			if (p.has_lse)
				g.lse[pk_lse_at(&p, g.cu, c.piece.req, head, c.first + row)] =
				    sum == 0 && !sh->absent ? p.empty_lse : lse * PK_LN2;
		}
		sh->factor[row] = factor;
	}
}

template <int RG, int NT, bool FP16>
DEV void write_rows(const struct pk_shape &p, const struct mma_buffers &g, const struct current &c,
                    float (&o)[RG][NT][4], int head, int tile, int column)
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
				float *const to =
				    g.partial_out +
				    (((c.piece.slot * (int64_t)p.h_kv + head) * p.row_tiles + tile) * p.tile_rows + row) * D_V + column;
#pragma unroll
				for (int n = 0; n < NT; n++)
					*(float2 *)(to + 8 * n) = make_float2(o[m][n][2 * half], o[m][n][2 * half + 1]);
			} else {
				uint16_t *const to = g.out + pk_out_at(&p, g.cu, c.piece.req, head, c.first + row) + column;
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

template <int RG, int DG, bool FP16>
__global__ void __launch_bounds__(tile_of<RG, DG>::THREADS, 1)
    decode(const __grid_constant__ struct pk_shape p, const __grid_constant__ struct mma_buffers g)
{
	typedef tile_of<RG, DG> T;
	extern __shared__ __align__(128) char shared[];
	__shared__ struct small sh;
	char *const P = shared + SLOTS * SLOT_BYTES;
	float4 *const shares = (float4 *)(P + T::P_BYTES);
	const uint32_t slots = shared_address(shared);

	const int tiles = p.h_kv * p.row_tiles;
	const int warp = threadIdx.x >> 5, rg = warp / DG, dg = warp % DG;
	struct loader<T::THREADS> loading;

	if (threadIdx.x == 0) {
		sh.part = g.parts[blockIdx.x / tiles];
		sh.tile = blockIdx.x % p.row_tiles;
		sh.head = blockIdx.x % tiles / p.row_tiles;
		sh.kv = g.kv + sh.head * p.kv_head;
		sh.next.piece.req = -1;
		next_piece(p, g, sh.tile, blockIdx.x / tiles, T::ROWS, sh.part, sh.next, sh.now);
		sh.absent = 0;
	}
	__syncthreads();
	if (sh.now.have) {
		find_pages(p, g, sh.now, sh.now.start, loading);
		load_first_tiles(p, g, &sh, sh.now, slots, loading);
	}

	const struct current &c = sh.now, &next = sh.next;
	while (c.have) {
		for (int row = threadIdx.x; row < T::ROWS; row += T::THREADS) {
			const struct pk_keys k = pk_row_keys(&p, &c.piece, (c.first + (row < c.rows ? row : 0)) / p.group);
			sh.low[row] = k.low;
			sh.high[row] = k.high < c.stop ? k.high : c.stop;
		}
		struct four q[T::MY_STEPS];
		load_q<RG, DG>(p, g, c, sh.head, rg, dg, q);
		float o[RG][T::COLUMNS / 8][4];
#pragma unroll
		for (int m = 0; m < RG; m++)
#pragma unroll
			for (int n = 0; n < T::COLUMNS / 8; n++)
				o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0;
		struct running r = {{-INFINITY, -INFINITY}, {0, 0}};
		uint32_t slot = slots;
		float s[KEYS / 8][4];
		int start = c.start;
		bool moved = false;
		if (start < c.stop) {
			copy_wait<SLOTS - 1>();
			__syncthreads(); /* the first tile and the rows' ranges are there */
			scores<RG, DG, FP16>(q, slot, dg, s);
			exchange<RG, DG>(s, shares, rg, dg);
			moved = __syncthreads_or(softmax<RG, DG, FP16>(s, r, &sh, c, p.scale_log2, start, P, rg, dg));
		}
#pragma unroll 1
		for (; start < c.stop; start += KEYS) {
			if (moved)
				scale_rows(o, sh.factor);
			values<RG, DG, FP16>(o, shared_address(P), slot, warp);
			copy_wait<0>();
			__syncthreads(); /* the next tile is there; this slot and P are free */
			if (start + 2 * KEYS < c.stop)
				load_tile(p, g, &sh, c, start + 2 * KEYS, slot, loading);
			slot = slots + SLOT_BYTES - (slot - slots);
			if (start + KEYS < c.stop) {
				scores<RG, DG, FP16>(q, slot, dg, s);
				exchange<RG, DG>(s, shares, rg, dg);
				moved = __syncthreads_or(softmax<RG, DG, FP16>(s, r, &sh, c, p.scale_log2, start + KEYS, P, rg, dg));
			}
		}

		/* The next piece's loads, then this one's results. */
		if (threadIdx.x == 0)
			next_piece(p, g, sh.tile, blockIdx.x / tiles, T::ROWS, sh.part, c, sh.next);
		if (dg == 0)
			finish_rows(p, g, &sh, c, r, sh.head, sh.tile, rg);
		__syncthreads();
		if (threadIdx.x == 0)
			sh.absent = 0;
		if (next.have) {
			find_pages(p, g, next, next.start, loading);
			__syncthreads(); /* absent is 0 again */
			load_first_tiles(p, g, &sh, next, slots, loading);
		}
		scale_rows(o, sh.factor);
		write_rows<RG, T::COLUMNS / 8, FP16>(p, g, c, o, sh.head, sh.tile, warp * T::COLUMNS);
		__syncthreads(); /* factor, low and high are free */
		if (threadIdx.x == 0)
			sh.now = sh.next;
		__syncthreads();
	}
}

/* ---- launching --------------------------------------------------------------------------------------------------- */

template <int RG, int DG> static const void *kernel_of(int fp16)
{
	return fp16 ? (const void *)decode<RG, DG, true> : (const void *)decode<RG, DG, false>;
}

struct variant {
	const void *kernel;
	int threads, bytes;
};

static struct variant variant_of(int tile_rows, int fp16)
{
	if (tile_rows == 16)
		return {kernel_of<1, 4>(fp16), tile_of<1, 4>::THREADS, tile_of<1, 4>::BYTES};
	if (tile_rows == 32)
		return {kernel_of<2, 4>(fp16), tile_of<2, 4>::THREADS, tile_of<2, 4>::BYTES};
	return {kernel_of<4, 2>(fp16), tile_of<4, 2>::THREADS, tile_of<4, 2>::BYTES};
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
