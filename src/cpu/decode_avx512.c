/* SPDX-License-Identifier: MIT
 *
 * decode_avx512.c - a walk on AVX-512 (F, BW, DQ, VL), for processors without AMX.
 *
 * fp32 products, not VDPBF16PS: on Intel that instruction has half the rate of fp32 FMA (measured on Emerald Rapids:
 * 106 against 215 GFLOP/s a core). */
#if defined(__x86_64__)

#include "avx512.h"

#define LANES        16
#define COLUMNS      4
#define NAME(x)      x##_avx512
#define VARIANT      "avx512"
#define FN           AVX512_FN
#define FMA(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define widen32      avx512_widen32
#define from_order   avx512_from_order
#define narrow_row   avx512_narrow
#define widen_row    avx512_widen

#include "decode_tmpl.h"

#endif
