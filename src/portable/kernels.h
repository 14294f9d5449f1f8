/* SPDX-License-Identifier: MIT
 *
 * kernels.h - the kernel source: every kernel of the portable backends, in one translation unit of any dialect. */
#include "dialect.h"

#include "merge.h"
#include "plan.h"
#ifdef PK_WAVES
#include "wave.h"
#endif

#define PK_TILE_ROWS 16
#define PK_TILE_KEYS 16             /* their product is PK_ITEMS */
#define PK_STRIDE    (D_QK / 2 + 1) /* words of a row in shared memory: odd */

#define PK_NAME(x)   x##_bf16
#define PK_LOW(w)    PK_FLOAT((w) << 16)
#define PK_HIGH(w)   PK_FLOAT((w)&0xffff0000u)
#define PK_NARROW(x) pk_to_bf16(x)
#include "decode.h"
#ifdef PK_WAVES
#ifdef PK_EMULATE
#include "wave_emulation.h"
#else
#define PK_MMA(d, a, b) (d) = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, d, 0, 0, 0)
#endif
#include "decode_wave.h"
#ifndef PK_EMULATE
#undef PK_MMA
#endif
#endif
#undef PK_NAME
#undef PK_LOW
#undef PK_HIGH
#undef PK_NARROW

#define PK_NAME(x)   x##_fp16
#define PK_LOW(w)    pk_from_fp16((uint16_t)(w))
#define PK_HIGH(w)   pk_from_fp16((uint16_t)((w) >> 16))
#define PK_NARROW(x) pk_to_fp16(x)
#include "decode.h"
#ifdef PK_WAVES
#ifdef PK_EMULATE
#include "wave_emulation.h"
#else
#define PK_MMA(d, a, b)                                                              \
	(d) = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(pk_four_fp16, a), \
	                                            __builtin_bit_cast(pk_four_fp16, b), d, 0, 0, 0)
#endif
#include "decode_wave.h"
#endif
#undef PK_NAME
#undef PK_LOW
#undef PK_HIGH
#undef PK_NARROW
