/* SPDX-License-Identifier: MIT
 *
 * amx_softmax.h - from S^T to tiles of P, in slices that fit between the tile products of a pass.
 *
 * The scores of 32 keys and 16 rows stay in registers from the exponentials to the finished A tile; O, l and the P that
 * waits for PV are rescaled only when a maximum grew.  Vector work here is not hidden by the tile products, so there is
 * little of it: no maximum is looked for while the sums of P stay small. */
#ifndef FMLA_AMX_SOFTMAX_H
#define FMLA_AMX_SOFTMAX_H

#include "amx_walk.h"

#include <math.h>

AMX_FN void rescale_o(struct amx *a, int tile, __m512 alpha)
{
	float f[16] __attribute__((aligned(64)));
	_mm512_store_ps(f, alpha);
	for (int panel = 0; panel < PANELS; panel++) {
		float *o = (float *)(o_tiles(a, tile / 2, panel) + tile % 2 * 2 * TILE);
		for (int r = 0; r < 32; r++)
			_mm512_store_ps(o + r * 16, _mm512_mul_ps(_mm512_load_ps(o + r * 16), _mm512_set1_ps(f[r % 16])));
	}
}

/* P of this block's strips before `strip`, which wait for PV. */
AMX_FN void rescale_p(struct amx *a, int tile, int strip, __m512 alpha)
{
	float f[16] __attribute__((aligned(64)));
	_mm512_store_ps(f, alpha);
	for (int r = 0; r < strip * 16; r++) {
		if (f[r % 16] == 1)
			continue;
		unsigned char *hi = a->p[0] + tile * a->strips * TILE + r * 64,
		              *lo = a->p[1] + tile * a->strips * TILE + r * 64;
		const __m512 by = _mm512_set1_ps(f[r % 16]);
		__m512 x, y, xl, yl;
		from_bf16(_mm512_load_si512(hi), &y, &x);
		if (a->fp16) {
			from_bf16(_mm512_load_si512(lo), &yl, &xl);
			x = _mm512_add_ps(x, xl);
			y = _mm512_add_ps(y, yl);
		}
		x = _mm512_mul_ps(x, by);
		y = _mm512_mul_ps(y, by);
		const __m512i h = to_bf16(y, x);
		_mm512_store_si512(hi, h);
		if (a->fp16) {
			from_bf16(h, &yl, &xl);
			_mm512_store_si512(lo, to_bf16(_mm512_sub_ps(y, yl), _mm512_sub_ps(x, xl)));
		}
	}
}

/* The maximum grew by more than the margin in some rows: O, l and the waiting P shrink there.  Other rows keep their
 * values bit for bit: what happens in one row never touches another. */
AMX_FN __attribute__((noinline)) void raise_maximum(struct amx *a, const struct soft *f, __m512 top, __mmask16 grew)
{
	const int tile = f->tile;
	float *m = a->w->m + tile * 16, *l = a->w->l + tile * 16;
	const __m512 old = _mm512_load_ps(m), change = _mm512_mul_ps(_mm512_sub_ps(old, top), _mm512_set1_ps(1.44269504f));
	const __m512 alpha = _mm512_mask_mov_ps(_mm512_set1_ps(1.f), grew, exp2_ps(change));
	_mm512_store_ps(m, _mm512_mask_mov_ps(old, grew, top));
	_mm512_store_ps(l, _mm512_mul_ps(_mm512_load_ps(l), alpha));
	rescale_p(a, tile, (int)(f->p / TILE) - tile * a->strips, alpha);
	if (a->started)
		rescale_o(a, tile, alpha);
}

/* The registers of one softmax between its slices.  P = 2^(S * by - m). */
struct soft_registers {
	__m512 by, m, sum;
	__m512i hi[16], lo[16]; /* pairs of keys, then rows of the A tile */
	int done;               /* by soft_exact, which stored P */
};

enum { SLICES = 8 };

/* From natural to binary exponents.  What is out of proportion has no place in them: -inf (no key seen yet) and lanes
 * whose product would overflow. */
AMX_INLINE __mmask16 soft_units(const struct soft *f, struct soft_registers *r, __m512 m)
{
	const float MOST = 1e37f;
	const __m512 log2e = _mm512_set1_ps(1.44269504f);
	r->by = _mm512_mul_ps(_mm512_set1_ps(f->scale), log2e);
	r->m = _mm512_mul_ps(m, log2e);
	r->sum = _mm512_setzero_ps();
	r->done = 0;
	return fabsf(f->scale) < MOST ? _mm512_cmp_ps_mask(_mm512_abs_ps(m), _mm512_set1_ps(MOST), _CMP_LT_OQ) : 0;
}

/* Slices 1 to 4: P of 8 keys, in pairs: dword = row, key 2i in its lower half.  hi is rounded, lo cut. */
AMX_INLINE void soft_exp8(const struct soft *f, struct soft_registers *r, int first, int fp16)
{
	const __m512i upper = _mm512_set1_epi32((int)0xffff0000), half = _mm512_set1_epi32(0x8000);
#define PAIR(y, x) _mm512_ternarylogic_epi32(y, upper, _mm512_srli_epi32(x, 16), 0xea) /* y & upper | x >> 16 */
#pragma GCC unroll 4
	for (int i = first / 2; i < first / 2 + 4; i++) {
		const float *s = f->s + i * 32;
		const __m512 p = exp2_ps(_mm512_fmsub_ps(_mm512_load_ps(s), r->by, r->m));
		const __m512 q = exp2_ps(_mm512_fmsub_ps(_mm512_load_ps(s + 16), r->by, r->m));
		const __m512i x = _mm512_add_epi32(_mm512_castps_si512(p), half);
		const __m512i y = _mm512_add_epi32(_mm512_castps_si512(q), half);
		r->sum = _mm512_add_ps(r->sum, _mm512_add_ps(p, q));
		r->hi[i] = PAIR(y, x);
		if (fp16) {
			const __m512 xl = _mm512_sub_ps(p, _mm512_castsi512_ps(_mm512_and_si512(x, upper)));
			const __m512 yl = _mm512_sub_ps(q, _mm512_castsi512_ps(_mm512_and_si512(y, upper)));
			r->lo[i] = PAIR(_mm512_castps_si512(yl), _mm512_castps_si512(xl));
		}
	}
#undef PAIR
}

AMX_INLINE void soft_store(unsigned char *p, const __m512i *rows)
{
#pragma GCC unroll 16
	for (int i = 0; i < 16; i++)
		_mm512_store_si512(p + i * 64, rows[i]);
}

/* From pairs of keys to the A tile, row = query row. */
AMX_INLINE void soft_tile(unsigned char *p, __m512i *pairs)
{
	transpose16(pairs);
	soft_store(p, pairs);
}

/* O is only rescaled when a maximum grew by more than MARGIN: exp(MARGIN) is far from overflow. */
static const float MARGIN = 6.f, MOST_SUM = 400.f; /* < exp(MARGIN): a sum above it may hide such a growth */

/* The maximum of 32 keys, scaled. */
AMX_INLINE __m512 soft_maximum(const struct soft *f)
{
	__m512 top = _mm512_load_ps(f->s);
	for (int i = 1; i < 32; i++)
		top = f->scale >= 0 ? _mm512_max_ps(top, _mm512_load_ps(f->s + i * 16))
		                    : _mm512_min_ps(top, _mm512_load_ps(f->s + i * 16));
	return _mm512_mul_ps(top, _mm512_set1_ps(f->scale));
}

/* All slices at once, for any scores: the first keys of a row, and where a maximum may have grown.  Lanes for which the
 * slices would do get what the slices would give them. */
AMX_FN __attribute__((noinline)) void soft_exact(struct amx *a, const struct soft *f)
{
	float *l = a->w->l + f->tile * 16;
	const __m512 top = soft_maximum(f);
	__m512 m = _mm512_load_ps(a->w->m + f->tile * 16);
	const __mmask16 grew = _mm512_cmp_ps_mask(top, _mm512_add_ps(m, _mm512_set1_ps(MARGIN)), _CMP_GT_OQ);
	if (grew) {
		raise_maximum(a, f, top, grew);
		m = _mm512_load_ps(a->w->m + f->tile * 16);
	}
	/* No key seen yet: all scores are -inf, and so must their differences be. */
	m = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(m, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ), m);
	struct soft_registers r;
	const __mmask16 far = (__mmask16)~soft_units(f, &r, m);
	if (far) {
		for (int i = 0; i < 32; i++) {
			const __m512 s = _mm512_load_ps(f->s + i * 16);
			_mm512_mask_store_ps(f->s + i * 16, far, _mm512_fmsub_ps(s, _mm512_set1_ps(f->scale), m));
		}
		r.by = _mm512_mask_mov_ps(r.by, far, _mm512_set1_ps(1.44269504f));
		r.m = _mm512_mask_mov_ps(r.m, far, _mm512_setzero_ps());
	}
	for (int i = 0; i < 32; i += 8)
		a->fp16 ? soft_exp8(f, &r, i, 1) : soft_exp8(f, &r, i, 0);
	_mm512_store_ps(l, _mm512_add_ps(_mm512_load_ps(l), r.sum));
	soft_tile(a->p[0] + f->p, r.hi);
	if (a->fp16)
		soft_tile(a->p[1] + f->p, r.lo);
}

AMX_INLINE void soft_begin(struct amx *a, const struct soft *f, struct soft_registers *r)
{
	r->done = soft_units(f, r, _mm512_load_ps(a->w->m + f->tile * 16)) != 0xffff;
}

/* The sum of P tells whether the maximum may have grown, so that it need not be looked for. */
AMX_INLINE void soft_end(struct amx *a, const struct soft *f, struct soft_registers *r)
{
	float *l = a->w->l + f->tile * 16;
	const __mmask16 small = _mm512_cmp_ps_mask(r->sum, _mm512_set1_ps(MOST_SUM), _CMP_LE_OQ);
	if (__builtin_expect(r->done | (small != 0xffff), 0)) {
		soft_exact(a, f);
		r->done = 1;
		return;
	}
	_mm512_store_ps(l, _mm512_add_ps(_mm512_load_ps(l), r->sum));
}

/* Slices 5 to 7: the end, between the parts of the transposition. */
AMX_INLINE void soft_slice(struct amx *a, const struct soft *f, struct soft_registers *r, int slice, int fp16)
{
	if (slice == 0) {
		soft_begin(a, f, r);
		return;
	}
	if (slice < 5) {
		soft_exp8(f, r, (slice - 1) * 8, fp16);
		return;
	}
	if (slice == 5)
		soft_end(a, f, r);
	transpose16_part(r->hi, slice - 5);
	if (fp16)
		transpose16_part(r->lo, slice - 5);
	if (slice == 7 && !r->done) {
		soft_store(a->p[0] + f->p, r->hi);
		if (fp16)
			soft_store(a->p[1] + f->p, r->lo);
	}
}

/* Queues S of 32 keys from `key` of block b on; hidden keys become -inf here. */
AMX_FN void soft_queue(struct amx *a, struct soft *f, const struct block *b, int tile, int key, unsigned char *s)
{
	const int64_t t0 = b->start + key;
	f->s = (float *)s;
	f->tile = tile;
	f->scale = a->w->p->scale;
	f->p = (tile * a->strips + key / 32) * TILE;
	if (key + 32 <= b->keys && a->lo[tile] <= t0 && t0 + 32 <= a->hi[tile])
		return;
	const __m512i lo = _mm512_loadu_si512(a->w->lo + tile * 16), hi = _mm512_loadu_si512(a->w->hi + tile * 16);
	for (int i = 0; i < 32; i++) {
		const __m512i t = _mm512_set1_epi32((int)(t0 + i));
		__mmask16 seen = _mm512_cmple_epi32_mask(lo, t) & _mm512_cmplt_epi32_mask(t, hi);
		if (key + i >= b->keys)
			seen = 0;
		const __m512 x = _mm512_mul_ps(_mm512_load_ps(f->s + i * 16), _mm512_set1_ps(f->scale));
		_mm512_store_ps(f->s + i * 16, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, x));
	}
	f->scale = 1;
}

#endif
