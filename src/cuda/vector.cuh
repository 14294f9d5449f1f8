/* SPDX-License-Identifier: MIT
 *
 * Eight values at a time between memory and fp32 registers, for the kernels that only stream (merge, append).  16-byte
 * accesses that bypass L1: the data is touched once.  Never the read-only path (ld.global.nc): with programmatic
 * dependent launch the kernel before may still be writing when ours starts. */
#ifndef FMLA_VECTOR_CUH
#define FMLA_VECTOR_CUH

#include "problem.h"
#include "value.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

DEV uint4 load_once(const void *p)
{
	uint4 v;
	asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
	             : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
	             : "l"(p)
	             : "memory");
	return v;
}

/* Values 2i and 2i + 1 of a 16-byte vector of 16-bit values. */
DEV float2 two_of(uint32_t two, int fp16)
{
	if (fp16) {
		__half2 h;
		memcpy(&h, &two, sizeof(h));
		return __half22float2(h);
	}
	return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000));
}

DEV uint32_t pack_two(float lo, float hi, int fp16)
{
	return fp16 ? pack_fp16(lo, hi) : pack_bf16(lo, hi);
}

/* Eight fp32 values to `index` of an array of `type`; `aligned`: 16-byte stores are possible. */
DEV void store_eight(void *base, int64_t index, const float *x, int type, int aligned)
{
	if (type == TYPE_FP32) {
		float *dst = (float *)base + index;
		if (aligned) {
			*(float4 *)dst = make_float4(x[0], x[1], x[2], x[3]);
			*(float4 *)(dst + 4) = make_float4(x[4], x[5], x[6], x[7]);
			return;
		}
#pragma unroll
		for (int i = 0; i < 8; i++)
			dst[i] = x[i];
		return;
	}
	uint16_t *dst = (uint16_t *)base + index;
	uint32_t two[4];
#pragma unroll
	for (int i = 0; i < 4; i++)
		two[i] = pack_two(x[2 * i], x[2 * i + 1], type == TYPE_FP16);
	if (aligned) {
		*(uint4 *)dst = make_uint4(two[0], two[1], two[2], two[3]);
		return;
	}
#pragma unroll
	for (int i = 0; i < 4; i++) {
		dst[2 * i] = (uint16_t)two[i];
		dst[2 * i + 1] = (uint16_t)(two[i] >> 16);
	}
}

#endif
