/* SPDX-License-Identifier: MIT
 *
 * amx_softmax.h - from S^T to tiles of P, in slices that fit between the tile products of a pass.
 *
 * The scores of 32 keys and 16 rows stay in registers from the exponentials to the finished A tile; O, l and the P that
 * waits for PV are rescaled only when a maximum grew. */
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

/* The registers of one softmax between its slices. */
struct soft_registers {
	__m512 m, l;
	__m512i hi[16], lo[16]; /* pairs of keys, then rows of the A tile */
};

/* Slice 0: the maximum.  O is only rescaled when it grew by more than MARGIN: exp(MARGIN) is far from overflow. */
AMX_INLINE void soft_maximum(struct amx *a, const struct soft *f, struct soft_registers *r)
{
	const float MARGIN = 6.f;
	__m512 top[4];
	for (int i = 0; i < 4; i++)
		top[i] = _mm512_load_ps(f->s + i * 16);
	if (f->scale >= 0) {
		for (int i = 4; i < 32; i++)
			top[i % 4] = _mm512_max_ps(top[i % 4], _mm512_load_ps(f->s + i * 16));
		top[0] = _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));
	} else {
		for (int i = 4; i < 32; i++)
			top[i % 4] = _mm512_min_ps(top[i % 4], _mm512_load_ps(f->s + i * 16));
		top[0] = _mm512_min_ps(_mm512_min_ps(top[0], top[1]), _mm512_min_ps(top[2], top[3]));
	}
	top[0] = _mm512_mul_ps(top[0], _mm512_set1_ps(f->scale));
	r->m = _mm512_load_ps(a->w->m + f->tile * 16);
	const __mmask16 grew = _mm512_cmp_ps_mask(top[0], _mm512_add_ps(r->m, _mm512_set1_ps(MARGIN)), _CMP_GT_OQ);
	if (__builtin_expect(grew != 0, 0)) {
		raise_maximum(a, f, top[0], grew);
		r->m = _mm512_load_ps(a->w->m + f->tile * 16);
	}
	r->l = _mm512_load_ps(a->w->l + f->tile * 16);
	/* No key seen yet: all scores are -inf, and so must their differences be. */
	r->m = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(r->m, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ), r->m);
}

/* Slices 1 to 4: P of 8 keys, in pairs: dword = row, key 2i in its lower half. */
AMX_INLINE void soft_exp8(const struct soft *f, struct soft_registers *r, int first, int fp16)
{
	const __m512i pair = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
	                                      21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
	const __m512 log2e = _mm512_set1_ps(1.44269504f), scale = _mm512_set1_ps(f->scale);
#pragma GCC unroll 4
	for (int i = first / 2; i < first / 2 + 4; i++) {
		const float *s = f->s + i * 32;
		const __m512 x = exp2_ps(_mm512_mul_ps(_mm512_fmsub_ps(_mm512_load_ps(s), scale, r->m), log2e));
		const __m512 y = exp2_ps(_mm512_mul_ps(_mm512_fmsub_ps(_mm512_load_ps(s + 16), scale, r->m), log2e));
		r->l = _mm512_add_ps(r->l, _mm512_add_ps(x, y));
		r->hi[i] = _mm512_permutexvar_epi16(pair, to_bf16(y, x));
		if (fp16) {
			const __m512 xh = (__m512)_mm512_slli_epi32(r->hi[i], 16);
			const __m512 yh = (__m512)_mm512_and_si512(r->hi[i], _mm512_set1_epi32((int)0xffff0000));
			r->lo[i] = _mm512_permutexvar_epi16(pair, to_bf16(_mm512_sub_ps(y, yh), _mm512_sub_ps(x, xh)));
		}
	}
}

/* Slices 5 to 7: the transposition to an A tile, row = query row. */
AMX_INLINE void soft_transpose(struct amx *a, const struct soft *f, struct soft_registers *r, int slice, int fp16)
{
	if (slice == 5)
		_mm512_store_ps(a->w->l + f->tile * 16, r->l);
	transpose16_part(r->hi, slice - 5);
	if (fp16)
		transpose16_part(r->lo, slice - 5);
	if (slice != 7)
		return;
#pragma GCC unroll 16
	for (int i = 0; i < 16; i++) {
		_mm512_store_si512(a->p[0] + f->p + i * 64, r->hi[i]);
		if (fp16)
			_mm512_store_si512(a->p[1] + f->p + i * 64, r->lo[i]);
	}
}

enum { SLICES = 8 };

AMX_INLINE void soft_slice(struct amx *a, const struct soft *f, struct soft_registers *r, int slice, int fp16)
{
	if (slice == 0)
		soft_maximum(a, f, r);
	else if (slice < 5)
		soft_exp8(f, r, (slice - 1) * 8, fp16);
	else
		soft_transpose(a, f, r, slice, fp16);
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
