/* SPDX-License-Identifier: MIT
 *
 * decode_amx.c - a walk on AMX-BF16 (Sapphire Rapids and later).
 *
 * Units    the rows are cut into units of two 16-row tiles (the last may have one).
 * Products S^T = K Q^T: A = 16 rows of K as they lie in the page, B = Q, packed once per walk.
 *          O += P V:    A = P, B = rows of V in pairs.
 *          fp16 is split into bf16 hi + lo, exactly; a product is then hi*hi + lo*hi + hi*lo (amx_split.h).
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
 * Files    amx.h the instructions, amx_walk.h the data of a walk, amx_qk.h S^T = K Q^T, amx_softmax.h S to P,
 *          amx_pv.h O += P V, amx_prefetch.h the next block; amx_few.h the walk of fp16 with up to 16 rows.
 * Never    reads a table entry past the last visible key; V rows that no row of the walk sees enter as zeros. */
#if defined(__x86_64__)

#include "amx_few.h"
#include "amx_pv.h"
#include "amx_qk.h"
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

/* ---- Q ----------------------------------------------------------------------------------------------------- */

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
					split_fp16(hi[r], 256.f, &hi[r], &lo[r]);
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

/* ---- the walk ------------------------------------------------------------------------------------------------ */

/* `products` is a constant, so that each type gets its own loops. */
AMX_INLINE void walk_blocks(struct amx *a, int products)
{
	struct walk *w = a->w;
	int side = 0, turn = 0;
	a->ahead.far = a->tiles > 4; /* with many rows L1 has no room for what comes next */
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
	a->fp16_arithmetic = cpu_has_fp16_arithmetic();
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
	const unsigned mxcsr = amx_begin();
	pack_q(a);
	if (a->fp16 && a->tiles == 1 && a->fp16_arithmetic)
		walk_few(a);
	else if (a->fp16)
		walk_fp16(a);
	else
		walk_bf16(a);
	amx_end(mxcsr);
}

/* Undoes the permutation of punpck: within a panel, the lower tile holds dims 0-3, 8-11, 16-19, 24-27. */
AMX_FN void row_amx(const struct walk *w, int r, float factor, float *out)
{
	const struct amx *a = (const struct amx *)w->scratch;
	const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
	const __m512i second = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
	const __m512 f = _mm512_set1_ps(a->fp16 ? factor * 256 : factor);
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
