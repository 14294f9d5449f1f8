/* SPDX-License-Identifier: MIT
 *
 * avx512.h - the 16-bit formats and the row arithmetic of the AVX-512 and AMX variants. */
#ifndef FMLA_AVX512_H
#define FMLA_AVX512_H

#include "cpu.h"
#include "value.h"

#include <immintrin.h>

#define AVX512_FN __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")))

/* One line of 32 values.  bf16 is cut into its even and its odd values: one instruction for 16 values, where the
 * natural order takes two. */
AVX512_FN static inline void avx512_widen32(enum value_type type, const void *in, float *out)
{
	const __m512i x = _mm512_loadu_si512(in);
	if (type == TYPE_BF16) {
		_mm512_store_si512(out, _mm512_slli_epi32(x, 16));
		_mm512_store_si512(out + 16, _mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)));
	} else {
		_mm512_store_ps(out, _mm512_cvtph_ps(_mm512_castsi512_si256(x)));
		_mm512_store_ps(out + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)));
	}
}

static inline int avx512_from_order(enum value_type type, int i)
{
	return type == TYPE_BF16 ? i % 16 * 2 + i / 16 : i;
}

/* n values in natural order. */
AVX512_FN static inline void avx512_widen(enum value_type type, const void *in, float *out, int64_t n)
{
	const uint16_t *v = in;
	int64_t i = 0;
	for (; i + 16 <= n; i += 16) {
		const __m256i x = _mm256_loadu_si256((const __m256i *)(v + i));
		if (type == TYPE_BF16)
			_mm512_storeu_si512(out + i, _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
		else
			_mm512_storeu_ps(out + i, _mm512_cvtph_ps(x));
	}
	for (; i < n; i++)
		out[i] = type == TYPE_BF16 ? float_from_bf16(v[i]) : float_from_fp16(v[i]);
}

AVX512_FN static inline void avx512_narrow(enum value_type type, const float *in, void *out, int64_t n)
{
	uint16_t *v = out;
	int64_t i = 0;
	for (; i + 16 <= n; i += 16) {
		const __m512 x = _mm512_loadu_ps(in + i);
		__m256i y;
		if (type == TYPE_BF16) {
			const __m512i u = (__m512i)x, even = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
			const __m512i round = _mm512_add_epi32(u, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
			const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
			y = _mm512_cvtepi32_epi16(
			    _mm512_srli_epi32(_mm512_mask_or_epi32(round, nan, u, _mm512_set1_epi32(0x400000)), 16));
		} else {
			y = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
		}
		_mm256_storeu_si256((__m256i *)(v + i), y);
	}
	for (; i < n; i++)
		v[i] = type == TYPE_BF16 ? bf16_from_float(in[i]) : fp16_from_float(in[i]);
}

#endif
