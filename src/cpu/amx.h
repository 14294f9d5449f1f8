/* SPDX-License-Identifier: MIT
 *
 * amx.h - one wrapper per AMX instruction, and the few vector idioms of decode_amx.c.
 *
 * Own inline asm instead of the intrinsics: those of gcc 12 do not say which memory they read, and the compiler then
 * drops the stores before them (seen with _tile_loadconfig). */
#ifndef FMLA_AMX_H
#define FMLA_AMX_H

#include <immintrin.h>
#include <stdint.h>

#define AMX_FN \
	__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16"))) static
#define AMX_INLINE AMX_FN inline __attribute__((always_inline))

enum { TILE = 1024 }; /* bytes: 16 rows of 64 */

/* Tiles 0-3 hold C, 4-5 A, 6-7 B: C[16][16] fp32 += A[16][32] bf16 * B[16 pairs][16][2] bf16. */
#define TLOAD(reg, p, stride) \
	__asm__ volatile("tileloadd (%0,%1,1), %%tmm" #reg ::"r"((const void *)(p)), "r"((int64_t)(stride)) : "memory")
#define TLOAD_T1(reg, p, stride) \
	__asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #reg ::"r"((const void *)(p)), "r"((int64_t)(stride)) : "memory")
#define TSTORE(reg, p) \
	__asm__ volatile("tilestored %%tmm" #reg ", (%0,%1,1)" ::"r"((void *)(p)), "r"((int64_t)64) : "memory")
#define TZERO(reg)   __asm__ volatile("tilezero %%tmm" #reg ::)
#define TDP(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

struct tile_config {
	uint8_t palette, start_row, reserved[14];
	uint16_t bytes_per_row[16];
	uint8_t rows[16];
} __attribute__((packed, aligned(64)));

/* All eight tiles 16 rows of 64 bytes; denormal results are zeros.  Tile state is the caller's to save in the psABI:
 * configure on entry, release on exit.  Returns what amx_end restores. */
AMX_INLINE unsigned amx_begin(void)
{
	const unsigned mxcsr = _mm_getcsr();
	struct tile_config c = {.palette = 1};
	for (int i = 0; i < 8; i++) {
		c.bytes_per_row[i] = 64;
		c.rows[i] = 16;
	}
	__asm__ volatile("ldtilecfg %0" ::"m"(c) : "memory");
	_mm_setcsr(mxcsr | _MM_FLUSH_ZERO_ON);
	return mxcsr;
}

AMX_INLINE void amx_end(unsigned mxcsr)
{
	_mm_setcsr(mxcsr);
	__asm__ volatile("tilerelease" ::: "memory");
}

/* 2^x, relative error 1.5e-7.  For code between amx_begin and amx_end, where denormal results are zeros: each would
 * cost a microcode assist, 50 times the instruction, and real attention is full of them. */
AMX_INLINE __m512 exp2_ps(__m512 x)
{
	const __m512 f = _mm512_reduce_ps(x, 0x01); /* x - floor(x) */
	__m512 p = _mm512_set1_ps(1.8775767e-3f);
	p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.9893397e-3f));
	p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5826318e-2f));
	p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4015361e-1f));
	p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9315308e-1f));
	p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.9999994e-1f));
	return _mm512_scalef_ps(p, x);
}

/* Transposes 16 x 16 dwords in place, in three parts that other work may come between. */
AMX_INLINE void transpose16_part(__m512i *r, int part)
{
	if (part == 0) { /* inside the 128-bit lanes */
		__m512i t[16];
#pragma GCC unroll 8
		for (int i = 0; i < 16; i += 2) {
			t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
			t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
		}
#pragma GCC unroll 4
		for (int i = 0; i < 16; i += 4) {
			r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
			r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
			r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
			r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
		}
		return;
	}
	/* the lanes themselves: among four rows 4 apart, then among two rows 8 apart */
	const int far = part == 1 ? 4 : 8;
#pragma GCC unroll 16
	for (int i = 0; i < 16; i++) {
		if (i & far)
			continue;
		const __m512i x = r[i], y = r[i + far];
		r[i] = _mm512_shuffle_i32x4(x, y, 0x88);
		r[i + far] = _mm512_shuffle_i32x4(x, y, 0xdd);
	}
}

AMX_INLINE void transpose16(__m512i *r)
{
	transpose16_part(r, 0);
	transpose16_part(r, 1);
	transpose16_part(r, 2);
}

/* Two vectors of fp32 to one of bf16 (a in the lower half), rounded to nearest even. */
AMX_INLINE __m512i to_bf16(__m512 b, __m512 a)
{
	return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

AMX_INLINE void from_bf16(__m512i v, __m512 *b, __m512 *a)
{
	*a = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v)), 16);
	*b = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1)), 16);
}

#endif
