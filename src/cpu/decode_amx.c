/* SPDX-License-Identifier: MIT
 *
 * decode_amx.c - a walk on AMX-BF16 (Sapphire Rapids and later).
 *
 * Units    the rows are cut into units of two 16-row tiles (the last may have one).
 * Products S^T = K Q^T: A = 16 rows of K as they lie in the page, B = Q, packed once per walk.
 *          O += P V:    A = P, B = rows of V in pairs.
 *          fp16 is split into bf16 hi + lo, exactly; a product is then hi*hi + lo*hi + hi*lo.
 * Loop     per block of keys: QK in passes of 4 C tiles, strip by strip of 32 keys for all units, each followed by its
 *          softmax; then PV over all units, one panel of 32 dims after the other.
 * Overlap  the tile unit needs one instruction per 16 clocks and the core runs on between them: a QK pass carries the
 *          softmax of the pass before, in slices of about 100 instructions, and the prefetch of the next block.
 *          PV of a block therefore starts after the first pass of the next block.
 * L1       what stalls the tile unit is stores to lines that are not in L1 (5 clocks each, measured): S is a ring of
 *          two passes, 8 KiB, P leaves the registers only when it is a finished A tile, one panel of V is packed at a
 *          time.  A strip of K (36 KiB) stays while Q passes by with tileloaddt1, which evicts little.
 * Rotation C of a pass is stored between the first products of the next pass.
 * Bound by tile products from about 90 rows on, memory below.
 * Files    amx.h the instructions, amx_walk.h the data of a walk, amx_softmax.h S to P, amx_pv.h O += P V,
 *          amx_prefetch.h the next block.
 * Never    reads a table entry past the last visible key; V rows that no row of the walk sees enter as zeros. */
#if defined(__x86_64__)

#include "amx_prefetch.h"
#include "amx_pv.h"
#include "amx_softmax.h"
#include "avx512.h"

#include <math.h>
#include <string.h>

static int row_tiles(int64_t rows)
{
	return (int)((rows + 15) / 16);
}

/* Hands out the scratch; the total with base == NULL. */
static size_t lay_out(struct amx *a, const struct problem *p, int64_t rows, unsigned char *base)
{
	const int parts = p->type == TYPE_FP16 ? 2 : 1, tiles = row_tiles(rows);
	/* Long blocks load and store O less often; they pay from 65 rows on.  Two copies of 256 keys would not stay in L2. */
	a->keys = parts == 1 && tiles > 4 ? KEYS : KEYS / 2;
	a->strips = a->keys / 32;
	size_t at = (sizeof *a + 4095) & ~(size_t)4095;
#define TAKE(field, bytes)                                          \
	do {                                                            \
		a->field = (unsigned char *)((uintptr_t)base + at);         \
		at += (size_t)(bytes) + 4 * LINE; /* off the same L1 set */ \
	} while (0)
	TAKE(o, tiles * PANELS * 2 * TILE);
	for (int i = 0; i < parts; i++) {
		TAKE(q[i], tiles * (p->d_qk / 32) * TILE);
		TAKE(p[i], tiles * a->strips * TILE);
	}
	TAKE(s, 2 * PASS);
	TAKE(v, parts * a->keys * 64);
	TAKE(other_v, parts * a->keys * 64);
	if (parts == 2)
		TAKE(split, 32 * 2 * ROW_BYTES);
	for (int i = 0; i < 2; i++)
		TAKE(copy[i], a->keys * ROW_BYTES);
#undef TAKE
	return (at + 4095) & ~(size_t)4095;
}

static size_t scratch_size(const struct problem *p)
{
	struct amx unused;
	return lay_out(&unused, p, p->rows < ROW_TILE ? p->rows : ROW_TILE, NULL);
}

/* ---- Q and K ------------------------------------------------------------------------------------------------- */

/* Q^T as B tiles: row = pair of dims, column = query row. */
AMX_FN void pack_q(struct amx *a)
{
	const struct walk *w = a->w;
	for (int tile = 0; tile < a->tiles; tile++)
		for (int k = 0; k < a->steps; k++) {
			__m512i hi[16], lo[16];
			for (int r = 0; r < 16; r++) {
				hi[r] = lo[r] = _mm512_setzero_si512();
				if (tile * 16 + r < w->rows)
					hi[r] = _mm512_loadu_si512(w->q[tile * 16 + r] + k * 32);
				if (a->fp16)
					split_fp16(hi[r], &hi[r], &lo[r]);
			}
			const int64_t at = (tile * a->steps + k) * TILE;
			transpose16(hi);
			for (int r = 0; r < 16; r++)
				_mm512_store_si512(a->q[0] + at + r * 64, hi[r]);
			if (!a->fp16)
				continue;
			transpose16(lo);
			for (int r = 0; r < 16; r++)
				_mm512_store_si512(a->q[1] + at + r * 64, lo[r]);
		}
}

/* Where a block's rows of K lie: in the page when 16 keys in a row make an aligned tile of seen keys, else in a copy,
 * with zeros for keys that no row sees. */
AMX_FN void find_block(struct amx *a, struct block *b, int side, int64_t start)
{
	const struct walk *w = a->w;
	const struct problem *p = w->p;
	const int64_t left = w->end - start;
	b->start = start;
	b->keys = left < a->keys ? (int)left : a->keys;
	const int rows = (b->keys + 31) / 32 * 32;
	const int aligned = (uintptr_t)p->kv % LINE == 0 && (p->kv_page | p->kv_token | p->kv_head) * 2 % LINE == 0;
	if (aligned && p->page % 16 == 0 && start >= w->low) {
		b->stride = p->kv_token * 2;
		for (int g = 0; g < GROUPS; g++)
			b->k[g] = g * 16 < b->keys ? cpu_key(w, start + g * 16) : b->k[g - 1];
		return;
	}
	unsigned char *to = a->copy[side];
	b->stride = ROW_BYTES;
	for (int g = 0; g < GROUPS; g++)
		b->k[g] = to + (g * 16 < rows ? g * 16 : 0) * ROW_BYTES;
	for (int i = 0; i < rows; i++, to += ROW_BYTES) {
		const int seen = i < b->keys && start + i >= w->low;
		const unsigned char *from = seen ? cpu_key(w, start + i) : NULL;
		for (int c = 0; c < a->steps; c++)
			_mm512_store_si512(to + c * 64, seen ? _mm512_loadu_si512(from + c * 64) : _mm512_setzero_si512());
	}
}

/* ---- S^T = K Q^T --------------------------------------------------------------------------------------------- */

/* Stores C number `reg` of the last pass where it still lies in tiles.  In memory: [32 keys of a tile][tile or the next
 * 32 keys]; the wide pass has its tiles in the order keys, rows. */
#define STORE_C(reg)                                                                            \
	do {                                                                                        \
		if (a->last.state == PASS_IN_TILES)                                                     \
			TSTORE(reg, a->last.s + (a->last.width == 2 ? reg % 2 * 2 + reg / 2 : reg) * TILE); \
	} while (0)

AMX_FN void finish_stores(struct amx *a)
{
	STORE_C(0);
	STORE_C(1);
	STORE_C(2);
	STORE_C(3);
	a->last.state = PASS_STORED;
}

/* The softmax of the last pass, whose S is in memory, may start. */
AMX_FN void queue_last(struct amx *a)
{
	const struct pass *l = &a->last;
	const int wide = l->width == 2, key = l->group * 16;
	soft_queue(a, &a->soft[0], l->b, l->unit * 2, key, l->s);
	soft_queue(a, &a->soft[1], l->b, l->unit * 2 + wide, wide ? key : key + 32, l->s + 2 * TILE);
}

/* fp16: hi and lo of one k step of a pass are made while the products of the step before run, by the first pass of a
 * strip.  They stay in L1, two steps of them in turn, when no other pass needs them. */
AMX_INLINE unsigned char *split_tiles(const struct amx *a, const struct pass *p, int step)
{
	return a->split + (p->reads_alone ? step % 2 * 8 : step * 4) * TILE;
}

AMX_FN __attribute__((noinline)) void split_group(const struct amx *a, const struct pass *p, int step, int group)
{
	const unsigned char *row = p->b->k[p->group + group] + step * 64;
	unsigned char *to = split_tiles(a, p, step) + group * 2 * TILE;
#pragma GCC unroll 4
	for (int r = 0; r < 16; r++, row += p->b->stride) {
		__m512i hi, lo;
		split_fp16_fast(_mm512_load_si512(row), &hi, &lo);
		_mm512_store_si512(to + r * 64, hi);
		_mm512_store_si512(to + TILE + r * 64, lo);
	}
}

/* A tile of keys: in the page, or hi or lo of it. */
#define LOAD_K(reg, i)                                                                    \
	do {                                                                                  \
		if (products > 1)                                                                 \
			TLOAD(reg, split_tiles(a, now, step) + ((i)*2 + side_a[product]) * TILE, 64); \
		else                                                                              \
			TLOAD(reg, now->b->k[now->group + (i)] + step * 64, now->b->stride);          \
	} while (0)

/* What follows the products of C number `c`. */
AMX_INLINE void qk_between(struct amx *a, const struct pass *now, int step, int width, int product, int products, int c)
{
	prefetch(a, SHARE_QK);
	if (products == 1 || !now->splits || step + 1 >= a->steps)
		return;
	if (width == 2 ? c == 0 && product < 2 : c == 0 || (c == 2 && product == 1))
		split_group(a, now, step + 1, width == 2 ? product : c == 2 ? 3 : product);
}

/* One k step.  `turn`: the first of a pass, where C of the last pass leaves the tiles.  Of the three products of fp16
 * the second keeps B in its tiles. */
#define TURN_C(reg)       \
	do {                  \
		if (turn) {       \
			STORE_C(reg); \
			TZERO(reg);   \
		}                 \
	} while (0)
AMX_INLINE void qk_step(struct amx *a, const struct pass *now, int step, int width, int products, int turn)
{
#pragma GCC unroll 3
	for (int product = 0; product < products; product++, turn = 0) {
		const unsigned char *q = a->q[side_b[product]] + (now->unit * 2 * a->steps + step) * TILE;
		if (width == 2) {
			LOAD_K(4, 0);
			if (product != 1) {
				TLOAD_T1(6, q, 64);
				TLOAD_T1(7, q + a->steps * TILE, 64);
			}
			LOAD_K(5, 1);
			TURN_C(0);
			TDP(0, 4, 6);
			qk_between(a, now, step, width, product, products, 0);
			TURN_C(1);
			TDP(1, 4, 7);
			qk_between(a, now, step, width, product, products, 1);
			TURN_C(2);
			TDP(2, 5, 6);
			qk_between(a, now, step, width, product, products, 2);
			TURN_C(3);
			TDP(3, 5, 7);
			qk_between(a, now, step, width, product, products, 3);
		} else {
			if (product != 1)
				TLOAD(6, q, 64);
			LOAD_K(4, 0);
			TURN_C(0);
			TDP(0, 4, 6);
			qk_between(a, now, step, width, product, products, 0);
			LOAD_K(5, 1);
			TURN_C(1);
			TDP(1, 5, 6);
			qk_between(a, now, step, width, product, products, 1);
			LOAD_K(4, 2);
			TURN_C(2);
			TDP(2, 4, 6);
			qk_between(a, now, step, width, product, products, 2);
			LOAD_K(5, 3);
			TURN_C(3);
			TDP(3, 5, 6);
			qk_between(a, now, step, width, product, products, 3);
		}
	}
}

/* One pass over all of k; carries the softmax of the last pass. */
AMX_INLINE void qk_pass(struct amx *a, struct pass now, int width, int products)
{
	int step = 0;
	if (products > 1 && now.splits)
		for (int group = 0; group < 4 / width; group++)
			split_group(a, &now, 0, group);
	qk_step(a, &now, step++, width, products, 1);
	if (a->last.state != PASS_NONE) {
		queue_last(a);
		for (int i = 0; i < 2; i++) {
			struct soft_registers r;
#pragma GCC unroll 8
			for (int slice = 0; slice < SLICES; slice++) {
				if (step < a->steps)
					qk_step(a, &now, step++, width, products, 0);
				soft_slice(a, &a->soft[i], &r, slice, products > 1);
			}
		}
	}
	while (step < a->steps)
		qk_step(a, &now, step++, width, products, 0);
	a->last = now;
}

/* The last softmax, with nothing to hide behind. */
AMX_INLINE void finish_last(struct amx *a, int fp16)
{
	finish_stores(a);
	queue_last(a);
	for (int i = 0; i < 2; i++) {
		struct soft_registers r;
#pragma GCC unroll 8
		for (int slice = 0; slice < SLICES; slice++)
			soft_slice(a, &a->soft[i], &r, slice, fp16);
	}
	a->last.state = PASS_NONE;
}

/* ---- the walk ------------------------------------------------------------------------------------------------ */

/* `products` is a constant, so that each type gets its own loops. */
AMX_INLINE void walk_blocks(struct amx *a, int products)
{
	struct walk *w = a->w;
	int side = 0, turn = 0;
	a->ahead.whole = prefetch_shares(a, products);
	for (int64_t start = w->begin; start < w->end; start += a->keys, side ^= 1) {
		struct block *b = &a->blocks[side];
		find_block(a, b, side, start);
		prefetch_from(a, start + a->keys);
		for (int group = 0; group * 16 < b->keys; group += 2)
			for (int unit = 0; unit < a->units; unit++) {
				const int width = unit_width(a, unit);
				if (width == 1 && group % 4 != 0)
					continue;
				const struct pass now = {.b = b,
				                         .unit = unit,
				                         .group = group,
				                         .width = width,
				                         .splits = width == 1 || unit == 0,
				                         .reads_alone = width == 1 || a->tiles < 4,
				                         .s = a->s + turn * PASS,
				                         .state = PASS_IN_TILES};
				turn ^= 1;
				if (width == 2)
					qk_pass(a, now, 2, products);
				else
					qk_pass(a, now, 1, products);
				if (unit == 0 && group == 0 && start > w->begin) { /* P of the block before is complete */
					finish_stores(a);
					pv(a, &a->blocks[side ^ 1], products);
				}
			}
	}
	finish_last(a, products > 1);
	pv(a, &a->blocks[side ^ 1], products);
}

AMX_FN void walk_bf16(struct amx *a)
{
	walk_blocks(a, 1);
}

AMX_FN void walk_fp16(struct amx *a)
{
	walk_blocks(a, 3);
}

AMX_FN void walk_amx(struct walk *w)
{
	struct amx *a = (struct amx *)w->scratch;
	memset(a, 0, sizeof *a);
	lay_out(a, w->p, w->rows, w->scratch);
	a->w = w;
	a->fp16 = w->p->type == TYPE_FP16;
	a->tiles = row_tiles(w->rows);
	a->units = (a->tiles + 1) / 2;
	a->steps = (int)w->p->d_qk / 32;
	for (int r = 0; r < a->tiles * 16; r++) {
		w->m[r] = -INFINITY;
		w->l[r] = 0;
		if (r >= w->rows) {
			w->lo[r] = 0;
			w->hi[r] = INT32_MAX;
		}
	}
	for (int r = 0; r < a->tiles * 16; r++) {
		int32_t *lo = &a->lo[r / 16], *hi = &a->hi[r / 16];
		*lo = r % 16 == 0 || w->lo[r] > *lo ? w->lo[r] : *lo;
		*hi = r % 16 == 0 || w->hi[r] < *hi ? w->hi[r] : *hi;
	}
	amx_begin();
	pack_q(a);
	if (a->fp16)
		walk_fp16(a);
	else
		walk_bf16(a);
	amx_end();
}

/* Undoes the permutation of punpck: within a panel, the lower tile holds dims 0-3, 8-11, 16-19, 24-27. */
AMX_FN void row_amx(const struct walk *w, int r, float factor, float *out)
{
	const struct amx *a = (const struct amx *)w->scratch;
	const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
	const __m512i second = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
	const __m512 f = _mm512_set1_ps(factor);
	for (int panel = 0; panel < PANELS; panel++) {
		const float *o = (const float *)(o_tiles(a, r / 32, panel) + r / 16 % 2 * 2 * TILE) + r % 16 * 16;
		const __m512 lower = _mm512_mul_ps(_mm512_load_ps(o), f), upper = _mm512_mul_ps(_mm512_load_ps(o + 256), f);
		_mm512_storeu_ps(out + panel * 32, _mm512_permutex2var_ps(lower, first, upper));
		_mm512_storeu_ps(out + panel * 32 + 16, _mm512_permutex2var_ps(lower, second, upper));
	}
}

AMX_FN void fold_amx(float *acc, float a, const float *x, float b, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		acc[i] = (a == 0 ? 0 : acc[i] * a) + x[i] * b;
}

const struct cpu_kernel cpu_kernel_amx = {.name = "amx",
                                          .most_rows = ROW_TILE,
                                          .scratch_size = scratch_size,
                                          .walk = walk_amx,
                                          .row = row_amx,
                                          .fold = fold_amx,
                                          .narrow = avx512_narrow,
                                          .widen = avx512_widen};

#endif
