/* SPDX-License-Identifier: MIT
 *
 * decode_amx.c - a walk on AMX-BF16 (Sapphire Rapids and later).
 *
 * Units    the rows are cut into units of two 16-row tiles (the last may have one).
 * Products S^T = K Q^T: A = 16 rows of K as they lie in the page, B = Q, packed once per walk.
 *          O += P V:    A = P, B = rows of V in pairs.
 *          fp16 is split into bf16 hi + lo, exactly; a product is then hi*hi + lo*hi + hi*lo.
 * Loop     per block of keys: per unit QK, then PV over all units, one panel of 32 dims after the other.
 * Overlap  the tile unit needs one instruction per 16 clocks, so vector work rides along between its instructions:
 *              QK of unit u      carries  the softmax of unit u - 1, in slices
 *              PV of panel d     carries  the pair interleave of V panel d + 1
 *              both              carry    the prefetch of the next block into L2
 *          PV of a block therefore starts after QK of the first unit of the next block.
 * Rotation C of a pass is stored between the first products of the next pass.
 * Bound by tile products from about 90 rows on, memory below.
 * Never    reads a table entry past the last visible key; V rows that no row of the walk sees enter as zeros. */
#if defined(__x86_64__)

#include "amx.h"
#include "avx512.h"

#include <math.h>
#include <string.h>

enum {
	KB = 128,          /* keys per block                                            */
	STRIPS = KB / 32,  /* steps of PV per block                                     */
	GROUPS = KB / 16,  /* A tiles of K per block                                    */
	PANELS = D_V / 32, /* a panel is one line of each V row                         */
	MAX_UNITS = ROW_TILE / 32,
	ROW_BYTES = D_QK * 2,   /* pitch of copied K rows                                    */
	S_BYTES = KB * 64 + 64, /* S of one head tile; the line keeps buffers off one L1 set */
	PANEL_BYTES = STRIPS * 2 * TILE,
	K_BYTES = KB * ROW_BYTES
};

struct block {
	const unsigned char *k[2][GROUPS]; /* [hi, lo][16 keys]: rows at `stride` */
	int64_t stride;
	int64_t start;
	int keys;
};

/* The softmax of one unit, cut into slices that fit between tile products. */
struct soft {
	int unit, tile, phase, i;
	int keys, masked, active;
	int64_t start;
	unsigned char *s; /* [half][tile] S_BYTES: fp32 [key][16 rows] */
	__m512 top, l;
};
enum { SOFT_MAX, SOFT_STATE, SOFT_EXP, SOFT_TRANSPOSE };

struct prefetch {
	int64_t t, end;
	const unsigned char *at;
	int left;
};

struct amx {
	struct walk *w;
	int fp16, units, tiles;    /* units of rows; 16-row tiles */
	int half_steps, row_lines; /* k steps of half a QK pass; lines of a K row */
	unsigned char *q[2];       /* [hi, lo]: unit: [half][tile][half_steps] tiles */
	unsigned char *s[2];       /* S of even and odd units */
	unsigned char *p[2];       /* [hi, lo]: [tile][STRIPS] A tiles */
	unsigned char *pairs[2];   /* P of 32 keys before its transposition */
	unsigned char *v[2];       /* two panels: [hi, lo][lower, upper dims][STRIPS] tiles */
	unsigned char *o;          /* [unit][panel][tile][lower, upper dims] C tiles */
	unsigned char *copy[2];    /* K copied where the page cannot be read in place */
	struct block blocks[2];
	struct soft soft;
	struct prefetch ahead;
	int started; /* O holds something */
};

static int row_tiles(int64_t rows)
{
	return (int)((rows + 15) / 16);
}

/* Hands out the scratch; the total with base == NULL. */
static size_t lay_out(struct amx *a, const struct problem *p, int64_t rows, unsigned char *base)
{
	const int parts = p->type == TYPE_FP16 ? 2 : 1, tiles = row_tiles(rows);
	size_t at = (sizeof *a + 4095) & ~(size_t)4095;
#define TAKE(field, bytes)                                          \
	do {                                                            \
		a->field = base + at;                                       \
		at += (size_t)(bytes) + 4 * LINE; /* off the same L1 set */ \
	} while (0)
	TAKE(o, tiles * PANELS * 2 * TILE);
	for (int i = 0; i < parts; i++) {
		TAKE(q[i], tiles * (p->d_qk / 32) * TILE);
		TAKE(p[i], tiles * STRIPS * TILE);
		TAKE(pairs[i], TILE);
	}
	for (int i = 0; i < 2; i++) {
		TAKE(s[i], 4 * S_BYTES);
		TAKE(v[i], parts * PANEL_BYTES);
		TAKE(copy[i], parts * K_BYTES);
	}
#undef TAKE
	return (at + 4095) & ~(size_t)4095;
}

static size_t scratch_size(const struct problem *p)
{
	struct amx unused;
	return lay_out(&unused, p, p->rows < ROW_TILE ? p->rows : ROW_TILE, NULL);
}

static int unit_width(const struct amx *a, int unit)
{
	return unit * 2 + 1 < a->tiles ? 2 : 1;
}

/* ---- Q and K ------------------------------------------------------------------------------------------------- */

/* Q^T as B tiles: row = pair of dims, column = query row. */
AMX_FN void pack_q(struct amx *a)
{
	const struct walk *w = a->w;
	for (int tile = 0; tile < a->tiles; tile++)
		for (int k = 0; k < 2 * a->half_steps; k++) {
			__m512i hi[16], lo[16];
			for (int r = 0; r < 16; r++) {
				hi[r] = lo[r] = _mm512_setzero_si512();
				if (tile * 16 + r < w->rows)
					hi[r] = _mm512_loadu_si512(w->q[tile * 16 + r] + k * 32);
				if (a->fp16)
					split_fp16(hi[r], &hi[r], &lo[r]);
			}
			const int unit = tile / 2, width = unit_width(a, unit), half = k / a->half_steps;
			const int64_t at = unit * 4 * a->half_steps + (half * width + tile % 2) * a->half_steps + k % a->half_steps;
			transpose16(hi);
			for (int r = 0; r < 16; r++)
				_mm512_store_si512(a->q[0] + at * TILE + r * 64, hi[r]);
			if (!a->fp16)
				continue;
			transpose16(lo);
			for (int r = 0; r < 16; r++)
				_mm512_store_si512(a->q[1] + at * TILE + r * 64, lo[r]);
		}
}

/* Where a block's rows of K lie: in the page when 16 keys in a row make an aligned tile of seen keys and the values are
 * bf16, else in a copy, with zeros for keys that no row sees. */
AMX_FN void find_block(struct amx *a, struct block *b, int side, int64_t start)
{
	const struct walk *w = a->w;
	const struct problem *p = w->p;
	const int64_t left = w->end - start;
	b->start = start;
	b->keys = left < KB ? (int)left : KB;
	const int rows = (b->keys + 31) / 32 * 32;
	const int aligned = (uintptr_t)p->kv % LINE == 0 && (p->kv_page | p->kv_token | p->kv_head) * 2 % LINE == 0;
	if (!a->fp16 && aligned && p->page % 16 == 0 && start >= w->low) {
		b->stride = p->kv_token * 2;
		for (int g = 0; g < GROUPS; g++)
			b->k[0][g] = g * 16 < b->keys ? cpu_key(w, start + g * 16) : b->k[0][g - 1];
		return;
	}
	unsigned char *hi = a->copy[side], *lo = hi + K_BYTES;
	b->stride = ROW_BYTES;
	for (int g = 0; g < GROUPS; g++) {
		b->k[0][g] = hi + (g * 16 < rows ? g * 16 : 0) * ROW_BYTES;
		b->k[1][g] = lo + (g * 16 < rows ? g * 16 : 0) * ROW_BYTES;
	}
	for (int i = 0; i < rows; i++, hi += ROW_BYTES, lo += ROW_BYTES) {
		const int seen = i < b->keys && start + i >= w->low;
		const unsigned char *from = seen ? cpu_key(w, start + i) : NULL;
		for (int c = 0; c < a->row_lines; c++) {
			__m512i x = seen ? _mm512_loadu_si512(from + c * 64) : _mm512_setzero_si512(), rest;
			if (a->fp16) {
				split_fp16(x, &x, &rest);
				_mm512_store_si512(lo + c * 64, rest);
			}
			_mm512_store_si512(hi + c * 64, x);
		}
	}
}

/* ---- prefetch of the next block into L2 ---------------------------------------------------------------------- */

AMX_FN void prefetch_from(struct amx *a, int64_t start)
{
	struct prefetch *f = &a->ahead;
	f->t = start;
	f->end = start + KB < a->w->end ? start + KB : a->w->end;
	f->left = 0;
}

AMX_INLINE void prefetch_lines(struct amx *a, int lines)
{
	struct prefetch *f = &a->ahead;
	if (f->left == 0) {
		if (f->t >= f->end)
			return;
		f->at = cpu_key(a->w, f->t++);
		f->left = a->row_lines;
	}
	const int n = lines < f->left ? lines : f->left;
	for (int i = 0; i < n; i++)
		_mm_prefetch((const char *)f->at + i * 64, _MM_HINT_T1);
	f->at += n * 64;
	f->left -= n;
}

/* ---- softmax ------------------------------------------------------------------------------------------------- */

static unsigned char *o_tiles(const struct amx *a, int unit, int panel)
{
	return a->o + ((int64_t)unit * PANELS * 4 + panel * unit_width(a, unit) * 2) * TILE;
}

AMX_FN void rescale_o(struct amx *a, int unit, int tile, __m512 alpha)
{
	float f[16] __attribute__((aligned(64)));
	_mm512_store_ps(f, alpha);
	for (int panel = 0; panel < PANELS; panel++) {
		float *o = (float *)(o_tiles(a, unit, panel) + tile * 2 * TILE);
		for (int r = 0; r < 32; r++)
			_mm512_store_ps(o + r * 16, _mm512_mul_ps(_mm512_load_ps(o + r * 16), _mm512_set1_ps(f[r % 16])));
	}
}

/* score * scale of 16 keys and their maximum; hidden keys become -inf.  S is the sum of its two halves. */
AMX_INLINE void soft_max16(const struct amx *a, struct soft *f)
{
	const __m512 scale = _mm512_set1_ps(a->w->p->scale), minus_inf = _mm512_set1_ps(-INFINITY);
	const int width = unit_width(a, f->unit);
	float *s = (float *)(f->s + f->tile * S_BYTES) + f->i * 16;
	const float *s2 = (const float *)(f->s + (width + f->tile) * S_BYTES) + f->i * 16;
	__m512 top = f->top, top2 = minus_inf;
	if (!f->masked && f->i + 16 <= f->keys) {
		for (int r = 0; r < 16; r += 2) {
			const __m512 x =
			    _mm512_mul_ps(_mm512_add_ps(_mm512_load_ps(s + r * 16), _mm512_load_ps(s2 + r * 16)), scale);
			const __m512 y =
			    _mm512_mul_ps(_mm512_add_ps(_mm512_load_ps(s + r * 16 + 16), _mm512_load_ps(s2 + r * 16 + 16)), scale);
			_mm512_store_ps(s + r * 16, x);
			_mm512_store_ps(s + r * 16 + 16, y);
			top = _mm512_max_ps(x, top);
			top2 = _mm512_max_ps(y, top2);
		}
	} else {
		const int row = f->unit * 32 + f->tile * 16;
		const __m512i lo = _mm512_loadu_si512(a->w->lo + row), hi = _mm512_loadu_si512(a->w->hi + row);
		for (int r = 0; r < 16; r++) {
			const __m512i t = _mm512_set1_epi32((int)(f->start + f->i + r));
			__mmask16 seen = _mm512_cmple_epi32_mask(lo, t) & _mm512_cmplt_epi32_mask(t, hi);
			if (f->i + r >= f->keys)
				seen = 0;
			__m512 x = _mm512_mul_ps(_mm512_add_ps(_mm512_load_ps(s + r * 16), _mm512_load_ps(s2 + r * 16)), scale);
			x = _mm512_mask_mov_ps(minus_inf, seen, x);
			_mm512_store_ps(s + r * 16, x);
			top = _mm512_max_ps(x, top);
		}
	}
	f->top = _mm512_max_ps(top, top2);
}

/* The new maximum.  O is only rescaled when some row's grew by more than MARGIN: exp(MARGIN) is far from overflow.
 * Rows whose maximum stays keep their values bit for bit: what happens in one row never touches another. */
AMX_FN void soft_state(struct amx *a, struct soft *f)
{
	const float MARGIN = 6.f;
	const int row = f->unit * 32 + f->tile * 16;
	const __m512 old = _mm512_load_ps(a->w->m + row);
	const __mmask16 grew = _mm512_cmp_ps_mask(f->top, _mm512_add_ps(old, _mm512_set1_ps(MARGIN)), _CMP_GT_OQ);
	f->l = _mm512_load_ps(a->w->l + row);
	if (!grew)
		return;
	const __m512 log2e = _mm512_set1_ps(1.44269504f);
	const __m512 alpha =
	    _mm512_mask_mov_ps(_mm512_set1_ps(1.f), grew, exp2_ps(_mm512_mul_ps(_mm512_sub_ps(old, f->top), log2e)));
	_mm512_store_ps(a->w->m + row, _mm512_mask_mov_ps(old, grew, f->top));
	f->l = _mm512_mul_ps(f->l, alpha);
	if (a->started)
		rescale_o(a, f->unit, f->tile, alpha);
}

/* P of 8 keys, in pairs: [pair][row][2] bf16. */
AMX_INLINE void soft_exp8(struct amx *a, struct soft *f)
{
	const __m512i pair = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
	                                      21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
	const __m512 log2e = _mm512_set1_ps(1.44269504f);
	const float *s = (const float *)(f->s + f->tile * S_BYTES) + f->i * 16;
	__m512 m = _mm512_load_ps(a->w->m + f->unit * 32 + f->tile * 16);
	m = _mm512_mask_mov_ps(m, _mm512_cmp_ps_mask(m, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ), _mm512_setzero_ps());
	__m512 l = f->l;
	for (int r = 0; r < 4; r++) {
		const __m512 x = exp2_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(s + r * 32), m), log2e));
		const __m512 y = exp2_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(s + r * 32 + 16), m), log2e));
		l = _mm512_add_ps(l, _mm512_add_ps(x, y));
		const __m512i hi = _mm512_permutexvar_epi16(pair, to_bf16(y, x));
		const int at = (f->i % 32 / 2 + r) * 64;
		_mm512_store_si512(a->pairs[0] + at, hi);
		if (a->fp16) {
			const __m512 xh = (__m512)_mm512_slli_epi32(hi, 16);
			const __m512 yh = (__m512)_mm512_and_si512(hi, _mm512_set1_epi32((int)0xffff0000));
			const __m512i lo = to_bf16(_mm512_sub_ps(y, yh), _mm512_sub_ps(x, xh));
			_mm512_store_si512(a->pairs[1] + at, _mm512_permutexvar_epi16(pair, lo));
		}
	}
	f->l = l;
}

AMX_INLINE void soft_transpose(struct amx *a, const struct soft *f)
{
	const int64_t at = ((f->unit * 2 + f->tile) * STRIPS + f->i / 32) * TILE;
	for (int part = 0; part <= a->fp16; part++) {
		__m512i t[16];
		for (int r = 0; r < 16; r++)
			t[r] = _mm512_load_si512(a->pairs[part] + r * 64);
		transpose16(t);
		for (int r = 0; r < 16; r++)
			_mm512_store_si512(a->p[part] + at + r * 64, t[r]);
	}
}

AMX_FN void soft_tile(struct soft *f, int tile)
{
	f->tile = tile;
	f->phase = SOFT_MAX;
	f->i = 0;
	f->top = _mm512_set1_ps(-INFINITY);
}

AMX_FN void soft_begin(struct amx *a, const struct block *b, int unit, unsigned char *s)
{
	struct soft *f = &a->soft;
	f->unit = unit;
	f->keys = b->keys;
	f->start = b->start;
	f->s = s;
	f->active = 1;
	f->masked = 0;
	for (int r = unit * 32; r < unit * 32 + 32 && r < a->w->rows; r++)
		f->masked |= a->w->lo[r] > b->start || a->w->hi[r] < b->start + b->keys;
	soft_tile(f, 0);
}

/* One slice: 60 to 100 vector instructions. */
AMX_INLINE void soft_step(struct amx *a)
{
	struct soft *f = &a->soft;
	if (!f->active)
		return;
	switch (f->phase) {
	case SOFT_MAX:
		soft_max16(a, f);
		f->i += 16;
		if (f->i >= f->keys && f->i % 32 == 0)
			f->phase = SOFT_STATE;
		break;
	case SOFT_STATE:
		soft_state(a, f);
		f->phase = SOFT_EXP;
		f->i = 0;
		break;
	case SOFT_EXP:
		soft_exp8(a, f);
		if (f->i % 32 == 24)
			f->phase = SOFT_TRANSPOSE;
		else
			f->i += 8;
		break;
	default:
		soft_transpose(a, f);
		f->i += 8;
		f->phase = SOFT_EXP;
		if (f->i < f->keys)
			break;
		_mm512_store_ps(a->w->l + f->unit * 32 + f->tile * 16, f->l);
		if (f->tile + 1 < unit_width(a, f->unit))
			soft_tile(f, f->tile + 1);
		else
			f->active = 0;
	}
}

AMX_FN void soft_finish(struct amx *a)
{
	while (a->soft.active)
		soft_step(a);
}

/* ---- S^T = K Q^T --------------------------------------------------------------------------------------------- */

/* Which of hi (0) and lo (1) of A and B make up a product; bf16 needs the first only. */
static const uint8_t side_a[3] = {0, 1, 0}, side_b[3] = {0, 0, 1};

/* Two head tiles, 32 keys at a time.  k is cut in two halves with an S each (the softmax adds them), so that half a
 * unit of Q, 18 KiB, stays in L1 and C is never read back. */
AMX_INLINE void qk_wide(struct amx *a, const struct block *b, int unit, unsigned char *s, int products, int lines)
{
	unsigned char *to = NULL; /* where C of the previous pass goes */
	const int steps = a->half_steps;
	for (int half = 0; half < 2; half++)
		for (int g = 0; g * 16 < b->keys; g += 2) {
			for (int product = 0; product < products; product++) {
				const unsigned char *a0 = b->k[side_a[product]][g] + half * steps * 64;
				const unsigned char *a1 = b->k[side_a[product]][g + 1] + half * steps * 64;
				const unsigned char *b0 = a->q[side_b[product]] + (unit * 4 + half * 2) * steps * TILE;
				const unsigned char *b1 = b0 + steps * TILE;
				int k = 0;
				if (product == 0) {
					TLOAD(4, a0, b->stride);
					TLOAD(6, b0, 64);
					if (to)
						TSTORE(0, to);
					TZERO(0);
					TDP(0, 4, 6);
					TLOAD(7, b1, 64);
					if (to)
						TSTORE(1, to + S_BYTES);
					TZERO(1);
					TDP(1, 4, 7);
					TLOAD(5, a1, b->stride);
					if (to)
						TSTORE(2, to + TILE);
					TZERO(2);
					TDP(2, 5, 6);
					if (to)
						TSTORE(3, to + S_BYTES + TILE);
					TZERO(3);
					TDP(3, 5, 7);
					prefetch_lines(a, lines);
					soft_step(a);
					k = 1;
				}
				for (; k < steps; k++) {
					TLOAD(4, a0 + k * 64, b->stride);
					TLOAD(6, b0 + k * TILE, 64);
					TDP(0, 4, 6);
					TLOAD(7, b1 + k * TILE, 64);
					TDP(1, 4, 7);
					TLOAD(5, a1 + k * 64, b->stride);
					TDP(2, 5, 6);
					TDP(3, 5, 7);
					prefetch_lines(a, lines);
					soft_step(a);
				}
			}
			to = s + half * 2 * S_BYTES + g * TILE;
		}
	TSTORE(0, to);
	TSTORE(1, to + S_BYTES);
	TSTORE(2, to + TILE);
	TSTORE(3, to + S_BYTES + TILE);
}

/* One head tile: 64 keys at a time, a C tile for each 16. */
AMX_INLINE void qk_narrow(struct amx *a, const struct block *b, int unit, unsigned char *s, int products, int lines)
{
	const int steps = a->half_steps;
	for (int half = 0; half < 2; half++)
		for (int g = 0; g * 16 < b->keys; g += 4) {
			TZERO(0);
			TZERO(1);
			TZERO(2);
			TZERO(3);
			for (int product = 0; product < products; product++) {
				const unsigned char *const *k = &b->k[side_a[product]][g];
				const unsigned char *q = a->q[side_b[product]] + (unit * 4 + half) * steps * TILE;
				for (int i = half * steps; i < (half + 1) * steps; i++, q += TILE) {
					TLOAD(7, q, 64);
					TLOAD(4, k[0] + i * 64, b->stride);
					TDP(0, 4, 7);
					TLOAD(5, k[1] + i * 64, b->stride);
					TDP(1, 5, 7);
					TLOAD(6, k[2] + i * 64, b->stride);
					TDP(2, 6, 7);
					TLOAD(4, k[3] + i * 64, b->stride);
					TDP(3, 4, 7);
					prefetch_lines(a, lines);
					soft_step(a);
				}
			}
			unsigned char *to = s + half * S_BYTES + g * TILE;
			TSTORE(0, to);
			TSTORE(1, to + TILE);
			TSTORE(2, to + 2 * TILE);
			TSTORE(3, to + 3 * TILE);
		}
}

/* ---- O += P V ------------------------------------------------------------------------------------------------ */

/* Interleaves rows 2r and 2r + 1 of a panel, for r in [from, to): B tiles of the panel's lower and upper dims (by the
 * order of punpck: the dims of O come out permuted, see row_amx).  Rows past the last key become zeros. */
AMX_INLINE void pack_pairs(struct amx *a, const struct block *b, int panel, unsigned char *v, int from, int to)
{
	for (int part = 0; part <= a->fp16; part++) {
		unsigned char *lower = v + part * PANEL_BYTES, *upper = lower + STRIPS * TILE;
		for (int r = from; r < to; r++) {
			const unsigned char *row = b->k[part][r / 8] + (r % 8 * 2) * b->stride + panel * 64;
			__m512i x = _mm512_setzero_si512(), y = x;
			if (2 * r + 1 < b->keys)
				y = _mm512_load_si512(row + b->stride);
			if (2 * r < b->keys)
				x = _mm512_load_si512(row);
			_mm512_store_si512(lower + r * 64, _mm512_unpacklo_epi16(x, y));
			_mm512_store_si512(upper + r * 64, _mm512_unpackhi_epi16(x, y));
		}
	}
}

/* Stores the previous C to `from`, then starts the next one from `to`. */
#define TURN_C(reg, from, to)   \
	do {                        \
		if (from)               \
			TSTORE(reg, from);  \
		if (a->started)         \
			TLOAD(reg, to, 64); \
		else                    \
			TZERO(reg);         \
	} while (0)

AMX_INLINE void pv(struct amx *a, const struct block *b, int products, int lines)
{
	const int strips = (b->keys + 31) / 32, pairs = strips * 16;
	const int per_step = (16 + a->units * products - 1) / (a->units * products);
	unsigned char *from = NULL;
	int from_width = 0;
	pack_pairs(a, b, 0, a->v[0], 0, pairs);
	for (int panel = 0; panel < PANELS; panel++) {
		const unsigned char *v = a->v[panel % 2];
		int packed = panel + 1 < PANELS ? 0 : pairs;
		for (int unit = 0; unit < a->units; unit++) {
			const int wide = unit_width(a, unit) == 2;
			unsigned char *to = o_tiles(a, unit, panel);
			for (int product = 0; product < products; product++) {
				const unsigned char *p0 = a->p[side_a[product]] + unit * 2 * STRIPS * TILE, *p1 = p0 + STRIPS * TILE;
				const unsigned char *v0 = v + side_b[product] * PANEL_BYTES, *v1 = v0 + STRIPS * TILE;
				for (int k = 0; k < strips; k++) {
					const int turn = product == 0 && k == 0;
					TLOAD(4, p0 + k * TILE, 64);
					TLOAD(6, v0 + k * TILE, 64);
					if (turn)
						TURN_C(0, from, to);
					TDP(0, 4, 6);
					TLOAD(7, v1 + k * TILE, 64);
					if (turn)
						TURN_C(1, from ? from + TILE : NULL, to + TILE);
					TDP(1, 4, 7);
					if (turn && from_width == 2) {
						TSTORE(2, from + 2 * TILE);
						TSTORE(3, from + 3 * TILE);
					}
					if (wide) {
						TLOAD(5, p1 + k * TILE, 64);
						if (turn)
							TURN_C(2, (unsigned char *)NULL, to + 2 * TILE);
						TDP(2, 5, 6);
						if (turn)
							TURN_C(3, (unsigned char *)NULL, to + 3 * TILE);
						TDP(3, 5, 7);
					}
					prefetch_lines(a, lines);
					if (packed < pairs) {
						const int until = packed + per_step < pairs ? packed + per_step : pairs;
						pack_pairs(a, b, panel + 1, a->v[(panel + 1) % 2], packed, until);
						packed = until;
					}
				}
			}
			from = to;
			from_width = wide ? 2 : 1;
		}
		if (packed < pairs)
			pack_pairs(a, b, panel + 1, a->v[(panel + 1) % 2], packed, pairs);
	}
	TSTORE(0, from);
	TSTORE(1, from + TILE);
	if (from_width == 2) {
		TSTORE(2, from + 2 * TILE);
		TSTORE(3, from + 3 * TILE);
	}
	a->started = 1;
}

/* ---- the walk ------------------------------------------------------------------------------------------------ */

/* `products` is a constant, so that each type gets its own loops. */
AMX_INLINE void walk_blocks(struct amx *a, int products)
{
	struct walk *w = a->w;
	const int steps = (a->tiles * a->half_steps + a->units * PANELS) * STRIPS; /* of QK and PV */
	const int lines = (KB * a->row_lines + steps * products - 1) / (steps * products);
	int side = 0, turn = 0;
	for (int64_t start = w->begin; start < w->end; start += KB, side ^= 1) {
		struct block *b = &a->blocks[side];
		find_block(a, b, side, start);
		prefetch_from(a, start + KB);
		for (int unit = 0; unit < a->units; unit++, turn ^= 1) {
			if (unit_width(a, unit) == 2)
				qk_wide(a, b, unit, a->s[turn], products, lines);
			else
				qk_narrow(a, b, unit, a->s[turn], products, lines);
			soft_finish(a);
			if (unit == 0 && start > w->begin)
				pv(a, &a->blocks[side ^ 1], products, lines);
			soft_begin(a, b, unit, a->s[turn]);
		}
	}
	soft_finish(a);
	pv(a, &a->blocks[side ^ 1], products, lines);
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
	a->half_steps = (int)w->p->d_qk / 64;
	a->row_lines = (int)w->p->d_qk / 32;
	for (int r = 0; r < a->tiles * 16; r++) {
		w->m[r] = -INFINITY;
		w->l[r] = 0;
		if (r >= w->rows) {
			w->lo[r] = 0;
			w->hi[r] = INT32_MAX;
		}
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
