/* SPDX-License-Identifier: MIT
 *
 * decode_avx2.c - a walk on AVX2 with FMA and F16C (Haswell, Zen and later). */
#if defined(__x86_64__)

#include "cpu.h"
#include "value.h"

#include <immintrin.h>

#define LANES        8
#define COLUMNS      3
#define NAME(x)      x##_avx2
#define VARIANT      "avx2"
#define FN           __attribute__((target("avx2,fma,f16c")))
#define FMA(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))

/* bf16: the even and the odd values of each half line, one instruction for 8 values. */
FN static inline void widen32(enum value_type type, const void *in, float *out)
{
	const uint16_t *v = in;
	for (int i = 0; i < 32; i += 16) {
		if (type == TYPE_BF16) {
			const __m256i x = _mm256_loadu_si256((const __m256i *)(v + i));
			_mm256_store_si256((__m256i *)(out + i), _mm256_slli_epi32(x, 16));
			_mm256_store_si256((__m256i *)(out + i + 8), _mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000)));
		} else {
			_mm256_store_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(v + i))));
			_mm256_store_ps(out + i + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(v + i + 8))));
		}
	}
}

static inline int from_order(enum value_type type, int i)
{
	return type == TYPE_BF16 ? i / 16 * 16 + i % 8 * 2 + i / 8 % 2 : i;
}

FN static void widen_row(enum value_type type, const void *in, float *out, int64_t n)
{
	const uint16_t *v = in;
	int64_t i = 0;
	for (; i + 8 <= n; i += 8) {
		const __m128i x = _mm_loadu_si128((const __m128i *)(v + i));
		if (type == TYPE_BF16)
			_mm256_storeu_si256((__m256i *)(out + i), _mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
		else
			_mm256_storeu_ps(out + i, _mm256_cvtph_ps(x));
	}
	for (; i < n; i++)
		out[i] = type == TYPE_BF16 ? float_from_bf16(v[i]) : float_from_fp16(v[i]);
}

/* bf16 rounds by integer addition; the loop vectorises. */
FN static void narrow_row(enum value_type type, const float *in, void *out, int64_t n)
{
	uint16_t *v = out;
	int64_t i = 0;
	if (type == TYPE_FP16)
		for (; i + 8 <= n; i += 8)
			_mm_storeu_si128((__m128i *)(v + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
	for (; i < n; i++)
		v[i] = type == TYPE_BF16 ? bf16_from_float(in[i]) : fp16_from_float(in[i]);
}

#include "decode_tmpl.h"

#endif
