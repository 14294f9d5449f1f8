/* SPDX-License-Identifier: MIT
 *
 * The two cache types.  MMA_BF16 / MMA_FP16 name the type in wgmma; pack_* put two floats into one register. */
#ifndef FMLA_VALUE_CUH
#define FMLA_VALUE_CUH

#include "ptx.cuh"

#define MMA_BF16 "bf16"
#define MMA_FP16 "f16"

DEV uint32_t pack_bf16(float lo, float hi)
{
	uint32_t d;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
	return d;
}

DEV uint32_t pack_fp16(float lo, float hi)
{
	uint32_t d;
	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
	return d;
}

DEV float2 unpack_fp16(uint32_t two)
{
	float2 x;
	asm("{\n"
	    ".reg .b16 lo, hi;\n"
	    "mov.b32 {lo, hi}, %2;\n"
	    "cvt.f32.f16 %0, lo;\n"
	    "cvt.f32.f16 %1, hi;\n"
	    "}"
	    : "=f"(x.x), "=f"(x.y)
	    : "r"(two));
	return x;
}

#endif
