/* SPDX-License-Identifier: MIT
 *
 * dialect.h - the macros in which the kernels of this folder are written.  One text, six compilers:
 *
 *     PK_OPENCL    OpenCL C 1.2                      flattened by the C preprocessor at build time, see the Makefile
 *     PK_EMULATE   C on the CPU                      tests/emulator.h; one fiber per work-item
 *     PK_HIP_BARE  clang -x hip, builtins only       no ROCm headers needed
 *     otherwise    a compiler of CUDA's language     nvcc; hipcc (also DTK's, for Hygon), mcc (Moore Threads), cucc
 *                                                    (MetaX), CoreX clang++ (Iluvatar): written from their manuals,
 *                                                    never compiled by us (docs/gpus.md)
 *
 * Rules of the dialect: a group has PK_ITEMS work-items and nothing is assumed about sub-groups; no shuffles; every
 * work-item meets every PK_SYNC; shared arrays are declared at kernel scope and at most 40 KiB; exp2 and log2 only;
 * parameters are pointers, one shape struct by value, and nothing else. */
#ifndef FMLA_PORTABLE_DIALECT_H
#define FMLA_PORTABLE_DIALECT_H

#define PK_ITEMS 256

#if defined(PK_OPENCL)
/* ---- OpenCL C 1.2 ------------------------------------------------------------------------------------------------ */
#define PK_KERNEL       __kernel __attribute__((reqd_work_group_size(PK_ITEMS, 1, 1))) void
#define PK_FN           static inline
#define PK_GLOBAL       __global
#define PK_LOCAL        __local
#define PK_SHARED       __local
#define PK_RESTRICT     restrict
#define PK_SYNC()       barrier(CLK_LOCAL_MEM_FENCE)
#define PK_ITEM()       ((int)get_local_id(0))
#define PK_GROUP()      ((int)get_group_id(0))
#define PK_EXP2(x)      exp2(x)
#define PK_LOG2(x)      log2(x)
#define PK_FMA(a, b, c) fma(a, b, c)
#define PK_BITS(x)      as_uint(x)
#define PK_FLOAT(x)     as_float(x)
#define PLAN_FN         static inline
#define PLAN_NO_DOUBLE  1
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;

PK_FN float pk_from_fp16(uint16_t v)
{
	return vload_half(0, (const __private half *)&v);
}

PK_FN uint16_t pk_to_fp16(float x)
{
	uint16_t v;
	vstore_half_rte(x, 0, (__private half *)&v);
	return v;
}

#elif defined(PK_EMULATE)
/* ---- C on the CPU ------------------------------------------------------------------------------------------------ */
#include "value.h"

#include <math.h>
#define PK_KERNEL static void
#define PK_FN     static inline
#define PK_GLOBAL
#define PK_LOCAL
#define PK_SHARED       static
#define PK_RESTRICT     restrict
#define PK_SYNC()       emulator_sync(__LINE__)
#define PK_ITEM()       emulator.item
#define PK_GROUP()      emulator.group
#define PK_EXP2(x)      exp2f(x)
#define PK_LOG2(x)      log2f(x)
#define PK_FMA(a, b, c) fmaf(a, b, c)
#define PK_BITS(x)      bits_from_float(x)
#define PK_FLOAT(x)     float_from_bits(x)
#define pk_from_fp16    float_from_fp16
#define pk_to_fp16      fp16_from_float

#else
/* ---- CUDA and its relatives -------------------------------------------------------------------------------------- */
#define PK_GLOBAL
#define PK_LOCAL
#define PK_RESTRICT __restrict__
#if defined(PK_HIP_BARE)
#define PK_KERNEL \
	extern "C" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(PK_ITEMS, PK_ITEMS))) void
#define PK_FN           static inline __attribute__((device)) __attribute__((always_inline))
#define PK_SHARED       __attribute__((shared))
#define PK_ITEM()       ((int)__builtin_amdgcn_workitem_id_x())
#define PK_GROUP()      ((int)__builtin_amdgcn_workgroup_id_x())
#define PK_EXP2(x)      __builtin_exp2f(x)
#define PK_LOG2(x)      __builtin_log2f(x)
#define PK_FMA(a, b, c) __builtin_fmaf(a, b, c)
#define PK_BITS(x)      __builtin_bit_cast(uint32_t, x)
#define PK_FLOAT(x)     __builtin_bit_cast(float, x)
#define PK_SYNC()                                              \
	do {                                                       \
		__builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup"); \
		__builtin_amdgcn_s_barrier();                          \
		__builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup"); \
	} while (0)
#define PLAN_FN PK_FN
typedef unsigned short uint16_t;
typedef int int32_t;
typedef short int16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

PK_FN float pk_from_fp16(uint16_t v)
{
	return (float)__builtin_bit_cast(_Float16, v);
}

PK_FN uint16_t pk_to_fp16(float x)
{
	return __builtin_bit_cast(uint16_t, (_Float16)x);
}
#else
#if defined(__HIPCC__) /* AMD's hipcc, and DTK's for Hygon */
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
#elif defined(__MUSACC__) /* Moore Threads */
#include <musa_fp16.h>
#include <musa_runtime.h>
#else /* NVIDIA; MetaX through cu-bridge and Iluvatar's CoreX take the same headers */
#include <cuda_fp16.h>
#endif
#include <stdint.h>
#define PK_KERNEL       extern "C" __global__ void __launch_bounds__(PK_ITEMS)
#define PK_FN           static __device__ __forceinline__
#define PK_SHARED       __shared__
#define PK_ITEM()       ((int)threadIdx.x)
#define PK_GROUP()      ((int)blockIdx.x)
#define PK_EXP2(x)      exp2f(x)
#define PK_LOG2(x)      log2f(x)
#define PK_FMA(a, b, c) fmaf(a, b, c)
#define PK_BITS(x)      __float_as_uint(x)
#define PK_FLOAT(x)     __uint_as_float(x)
#define PK_SYNC()       __syncthreads()

PK_FN float pk_from_fp16(uint16_t v)
{
	return __half2float(__ushort_as_half(v));
}

PK_FN uint16_t pk_to_fp16(float x)
{
	return __half_as_ushort(__float2half_rn(x));
}
#endif
#endif

/* Two 16-bit values of a row of the cache, read at once. */
#ifdef PK_EMULATE
typedef uint32_t __attribute__((may_alias)) pk_word;
#else
typedef uint32_t pk_word;
#endif

#define PK_INFINITY PK_FLOAT(0x7f800000u)
#define PK_NAN      PK_FLOAT(0x7fc00000u)
#define PK_LN2      0.693147180559945309f
#define PK_LOG2E    1.44269504088896341f

/* A pointer `bytes` behind the start of a buffer: OpenCL buffers are handles, so offsets travel in the shape. */
#define PK_AT(type, buffer, bytes) ((PK_GLOBAL type *)((PK_GLOBAL char *)(buffer) + (bytes)))
#define PK_IN(type, buffer, bytes) ((const PK_GLOBAL type *)((const PK_GLOBAL char *)(buffer) + (bytes)))

PK_FN float pk_from_bf16(uint16_t v)
{
	return PK_FLOAT((uint32_t)v << 16);
}

/* To nearest even; a NaN stays one whatever its low bits were. */
PK_FN uint16_t pk_to_bf16(float x)
{
	const uint32_t u = PK_BITS(x);
	if ((u & 0x7fffffffu) > 0x7f800000u)
		return (uint16_t)(u >> 16 | 0x40u);
	return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

#endif
