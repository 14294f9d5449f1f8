/* SPDX-License-Identifier: MIT
 *
 * mma_tile.cuh - the tiles of decode_mma.cu: their shapes, a CTA's shared memory, how keys get there and Q into registers. */
#ifndef FMLA_PORTABLE_MMA_TILE_CUH
#define FMLA_PORTABLE_MMA_TILE_CUH

#include "walk.h"

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
		ROWS = 16 * RG,        /* fewer than threads */
		COLUMNS = D_V / WARPS, /* of O, of a warp */
		MY_STEPS = STEPS / DG,
		SLOTS = 64 / KEYS,
		LINEAR = RG == 1, /* plain tiles are copied line by line, see load_tile */
		SLOT_BYTES = KEYS * KEY_BYTES,
		EACH = KEYS * LOADERS / THREADS, /* keys that a thread loads of a tile           */
		SHARE = KEYS / 16,               /* float4 a lane of half the rows of a partial S */
		EXCHANGE_BYTES = RG * (DG == 2 ? 1 : 2) * DG * SHARE * 32 * 16,
		P_STRIDE = 2 * KEYS + 16, /* bytes of a row of P: no bank conflicts */
		BYTES = SLOTS * SLOT_BYTES + EXCHANGE_BYTES + ROWS * P_STRIDE
	};
};
typedef tile_of<1, 4, 32> tile_16; /* named by their rows */
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
	int number, head, tile; /* of the part and the CTA; read when needed, as registers are short */
	const uint16_t *kv;     /* of the CTA's head                                     */
	struct current now, next;
	int runs;              /* of each request, when requests are whole or in equal runs; else 0 */
	int last;              /* `now` is the part's last piece                                    */
	float factor[64];      /* of the rows of O, at the end and when the maximum moves */
	int low[64], high[64]; /* keys that a row sees                                    */
	int64_t out_at[64];    /* where its results go, in out or partial_out            */
	int absent;            /* a page was out of range */
};

static_assert(tile_64::BYTES + (int)sizeof(struct small) <= 99 << 10 && (int)tile_32::BYTES <= (int)tile_64::BYTES &&
                  (int)tile_16::BYTES <= (int)tile_64::BYTES,
              "a CTA has 99 KB on sm_86, sm_89 and sm_120");

/* Which way chunk c of a 128-byte line of a key is moved: to c ^ this. */
template <class T> DEV int swizzle(int key, int line)
{
	return (T::LINEAR ? key + line : key) & 7;
}

/* A plain tile, all of one page: thread t copies chunks t, t + THREADS, ... of as many bytes as the tile has.  Line L of the
 * tile is line L % 9 of key L / 9, and (key + line) % 8 is L % 8: from copy to copy only a constant is added. */
template <class T>
DEV void load_lines(const struct pk_shape &p, struct small *sh, const struct current &c, int start, uint32_t slot,
                    int page)
{
	enum { COPIES = T::SLOT_BYTES / 16 / T::THREADS, STEP = 16 * T::THREADS };
	static_assert((int)LINES == 9 && T::THREADS % 64 == 0 && COPIES * STEP == (int)T::SLOT_BYTES, "as said above");
	const int line = threadIdx.x / 8, lines = (c.stop - start) * LINES;
	const bool there = (unsigned)page < (unsigned)p.num_pages;
	const char *const from =
	    (const char *)(sh->kv + (there ? page * p.kv_page + (start & (p.page - 1)) * D_QK : 0)) + threadIdx.x * 16;
	const uint32_t to = slot + line * 128 + (threadIdx.x % 8 ^ (line & 7)) * 16;
	if (!there)
		sh->absent = 1;
#pragma unroll
	for (int i = 0; i < COPIES; i++)
		copy_async(to + i * STEP, from + i * STEP, there && line + i * (STEP / 128) < lines ? 16 : 0);
}

/* The page of a thread's i-th key of the tile that begins at `start`; -1: no such key. */
template <class T, bool PLAIN>
DEV int find_page(const struct pk_shape &p, const struct mma_buffers &g, const struct current &c, int start, int i)
{
	if (PLAIN && T::LINEAR)
		return start < c.stop ? c.table[start >> g.page_shift] : 0;
	const int key = start + (int)threadIdx.x / LOADERS + i * (T::THREADS / LOADERS);
	const int entry = PLAIN || g.page_shift >= 0 ? key >> g.page_shift : key / p.page;
	return key < c.stop ? c.table[entry] : -1;
}

/* A thread's share of a tile, whose pages it knows. */
template <class T, bool PLAIN>
DEV void load_tile(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh, const struct current &c,
                   int start, uint32_t slot, const int (&page)[T::EACH])
{
	if (PLAIN && T::LINEAR)
		load_lines<T>(p, sh, c, start, slot, page[0]);
#pragma unroll
	for (int i = 0; i < (PLAIN && T::LINEAR ? 0 : T::EACH); i++) {
		const int row = (int)threadIdx.x / LOADERS + i * (T::THREADS / LOADERS), key = start + row;
		const bool there = (unsigned)page[i] < (unsigned)p.num_pages;
		const int inside = PLAIN || g.page_shift >= 0 ? key & (p.page - 1) : key % p.page;
		const char *from = (const char *)(sh->kv + (there ? page[i] * p.kv_page + inside * p.kv_token : 0)) +
		                   threadIdx.x % LOADERS * 16;
		const uint32_t to = slot + row * KEY_BYTES;
		if (key < c.stop && !there)
			sh->absent = 1;
#pragma unroll
		for (int line = 0; line < LINES; line++)
			copy_async(to + line * 128 + (threadIdx.x % LOADERS ^ swizzle<T>(row, line)) * 16, from + line * 128,
			           there && (line < LINES - 1 || p.d_qk == D_QK) ? 16 : 0);
	}
	copy_commit();
}

/* Fills all slots, and page[] for the tile after them.  A tile that is not there still is a group of copies, so that
 * they can be counted. */
template <class T, bool PLAIN>
DEV void load_first_tiles(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh,
                          const struct current &c, uint32_t slots, int (&page)[T::EACH])
{
	int first[T::SLOTS][T::EACH];
#pragma unroll
	for (int t = 0; t < T::SLOTS; t++)
#pragma unroll
		for (int i = 0; i < T::EACH; i++)
			first[t][i] = find_page<T, PLAIN>(p, g, c, c.start + t * T::KEYS, i);
#pragma unroll
	for (int i = 0; i < T::EACH; i++)
		page[i] = find_page<T, PLAIN>(p, g, c, c.start + T::SLOTS * T::KEYS, i);
#pragma unroll
	for (int t = 0; t < T::SLOTS; t++)
		if (c.start + t * T::KEYS < c.stop)
			load_tile<T, PLAIN>(p, g, sh, c, c.start + t * T::KEYS, slots + t * T::SLOT_BYTES, first[t]);
		else
			copy_commit();
}

/* The tile that begins at `start`, whose pages are in page[], if there is one; then page[] for the tile after it. */
template <class T, bool PLAIN>
DEV void load_later(const struct pk_shape &p, const struct mma_buffers &g, struct small *sh, const struct current &c,
                    int start, uint32_t slot, int (&page)[T::EACH])
{
	if (start >= c.stop) {
		copy_commit();
		return;
	}
	load_tile<T, PLAIN>(p, g, sh, c, start, slot, page);
#pragma unroll
	for (int i = 0; i < T::EACH; i++)
		page[i] = find_page<T, PLAIN>(p, g, c, start + T::KEYS, i);
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
	if (g.q_pairs && p.d_qk == D_QK) { /* as good as always: few instructions */
#pragma unroll
		for (int i = 0; i < T::MY_STEPS; i++) {
			const int d = 16 * (T::DG * i + dg);
			q[i] = {q_pair(upper + d, true), q_pair(lower + d, true), q_pair(upper + d + 8, true),
			        q_pair(lower + d + 8, true)};
		}
		return;
	}
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

#endif
