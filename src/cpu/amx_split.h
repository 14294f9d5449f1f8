/* SPDX-License-Identifier: MIT
 *
 * amx_split.h - fp16 as a sum of two bf16, exactly: what K, V and Q are before the tile products.
 *
 * K and V enter the products times 2^-8, Q times 2^8, and O leaves them times 2^8: so K and V of 2^-22 to 255 are, times
 * 2^8, normal numbers in fp16 (by = 0x5c00), and integers can split them. */
#ifndef FMLA_AMX_SPLIT_H
#define FMLA_AMX_SPLIT_H

#include "amx.h"

/* Which of hi (0) and lo (1) of A and B make up a product; bf16 needs the first only. */
static const uint8_t side_a[3] = {0, 1, 0}, side_b[3] = {0, 0, 1};

/* 32 fp16 values times `scale` as bf16 hi + bf16 lo.  Exact for finite values (11 bits of mantissa in 8 + 8, and lo is a
 * normal number); an infinity stays in hi, with lo 0, for infinity - infinity would be NaN. */
AMX_INLINE void split_fp16(__m512i x, float scale, __m512i *hi, __m512i *lo)
{
	const __m512 s = _mm512_set1_ps(scale);
	const __m512 a = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(x)), s);
	const __m512 b = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)), s);
	const __m512i h = to_bf16(b, a);
	__m512 ah, bh;
	from_bf16(h, &bh, &ah);
	const __m512 al = _mm512_maskz_sub_ps(_mm512_cmp_ps_mask(a, ah, _CMP_NEQ_UQ), a, ah);
	const __m512 bl = _mm512_maskz_sub_ps(_mm512_cmp_ps_mask(b, bh, _CMP_NEQ_UQ), b, bh);
	*hi = h;
	*lo = to_bf16(bl, al);
}

/* The same of 2^8 x in integers, a third of the instructions: hi is fp16 cut to 7 bits of mantissa in an exponent of 8
 * bits, lo the three bits left.  Where they are 0, lo is 2^-96 of x instead.  Not for zeros, denormals, infinities, NaN. */
AMX_INLINE void split_normal(__m512i x, __m512i *hi, __m512i *lo)
{
#define LO(exponent, rest) (short)((86 + (exponent)) << 7 | (rest))
#define LO8                LO(2, 0x60), LO(2, 0x40), LO(2, 0x20), LO(2, 0), LO(1, 0x40), LO(1, 0), LO(0, 0), 0
	const __m512i rest = _mm512_set_epi16(LO8, LO8, LO8, LO8);
#undef LO8
#undef LO
	const __m512i cut = _mm512_srai_epi16(x, 3); /* the sign four times, 5 bits of exponent, 7 of mantissa */
	*hi = _mm512_ternarylogic_epi32(cut, _mm512_set1_epi16((short)0x8fff), _mm512_set1_epi16(96 << 7),
	                                0xea); /* c & 1 | 2 */
	*lo = _mm512_add_epi16(_mm512_and_si512(cut, _mm512_set1_epi16((short)0x8f80)), _mm512_permutexvar_epi16(x, rest));
}

/* AVX512-FP16 in assembly: clang 14 has no intrinsics for functions, only for whole files. */
AMX_INLINE __m512i mul_fp16(const unsigned char *line, __m512i by)
{
	__m512i x;
	__asm__("vmulph %1, %2, %0" : "=v"(x) : "m"(*(const __m512i *)(const void *)line), "v"(by));
	return x;
}

/* Zero, denormal, infinity, NaN. */
AMX_INLINE __mmask32 is_special(__m512i x)
{
	__mmask32 k;
	__asm__("vfpclassph $0xbf, %1, %0" : "=k"(k) : "v"(x));
	return k;
}

/* 16 rows of one line to a tile of hi and one of lo behind it; true when a value is special. */
AMX_INLINE __mmask32 split_rows(const unsigned char *row, int64_t stride, unsigned char *to)
{
	const __m512i by = _mm512_set1_epi16(0x5c00);
	__mmask32 special = 0;
#pragma GCC unroll 16
	for (int r = 0; r < 16; r++, row += stride) {
		__m512i hi, lo;
		const __m512i x = mul_fp16(row, by);
		special |= is_special(x);
		split_normal(x, &hi, &lo);
		_mm512_store_si512(to + r * 64, hi);
		_mm512_store_si512(to + TILE + r * 64, lo);
	}
	return special;
}

/* Out of line for the size of unrolled passes. */
AMX_FN __attribute__((noinline)) int split_rows_normal(const unsigned char *row, int64_t stride, unsigned char *to)
{
	return split_rows(row, stride, to) != 0;
}

AMX_FN __attribute__((noinline)) void split_rows_special(const unsigned char *row, int64_t stride, unsigned char *to)
{
	for (int r = 0; r < 16; r++, row += stride) {
		__m512i hi, lo;
		split_fp16(_mm512_load_si512(row), 1 / 256.f, &hi, &lo);
		_mm512_store_si512(to + r * 64, hi);
		_mm512_store_si512(to + TILE + r * 64, lo);
	}
}

/* `pairs` pairs of rows, interleaved: a pair makes a row of four B tiles, `upper` bytes apart: lower and upper dims of hi,
 * then of lo. */
AMX_INLINE void split_pairs(const unsigned char *row, int64_t stride, int pairs, unsigned char *to, int64_t upper)
{
	const __m512i by = _mm512_set1_epi16(0x5c00);
#pragma GCC unroll 8
	for (int r = 0; r < pairs; r++, row += 2 * stride, to += 64) {
		const __m512i x = mul_fp16(row, by);
		const __m512i y = mul_fp16(row + stride, by);
		__m512i h, l;
		split_normal(_mm512_unpacklo_epi16(x, y), &h, &l);
		_mm512_store_si512(to, h);
		_mm512_store_si512(to + 2 * upper, l);
		split_normal(_mm512_unpackhi_epi16(x, y), &h, &l);
		_mm512_store_si512(to + upper, h);
		_mm512_store_si512(to + 3 * upper, l);
	}
}

#endif
