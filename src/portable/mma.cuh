/* SPDX-License-Identifier: MIT
 *
 * mma.cuh - the PTX of sm_80 that decode_mma.cu needs, one wrapper per instruction. */
#ifndef FMLA_PORTABLE_MMA_CUH
#define FMLA_PORTABLE_MMA_CUH

#include <stdint.h>

#define DEV                  static __device__ __forceinline__
#define COLD                 static __device__ __noinline__ /* seldom run: kept out of the way of what is */
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) char name[]

DEV uint32_t shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes from global to shared memory, past L1; `bytes` 0: zeros, and `from` is not read. */
DEV void copy_async(uint32_t to, const void *from, int bytes)
{
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

DEV void copy_commit(void)
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int LEFT> DEV void copy_wait(void)
{
	asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* Four 8x8 matrices of 16-bit values; lane 8 i + j names row j of matrix i. */
struct four {
	uint32_t x[4];
};

DEV struct four load_matrices(uint32_t from)
{
	struct four m;
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
	             : "=r"(m.x[0]), "=r"(m.x[1]), "=r"(m.x[2]), "=r"(m.x[3])
	             : "r"(from)
	             : "memory");
	return m;
}

DEV struct four load_matrices_transposed(uint32_t from)
{
	struct four m;
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
	             : "=r"(m.x[0]), "=r"(m.x[1]), "=r"(m.x[2]), "=r"(m.x[3])
	             : "r"(from)
	             : "memory");
	return m;
}

/* c [16 x 8] += a [16 x 16] b [16 x 8].  Lane l has c of rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next. */
template <bool FP16> DEV void mma(float (&c)[4], const struct four &a, uint32_t b0, uint32_t b1)
{
	if (FP16)
		asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
		    "{%0, %1, %2, %3};"
		    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
		    : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
	else
		asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
		    "{%0, %1, %2, %3};"
		    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
		    : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

/* Two floats as 16-bit values, `low` in the low half. */
template <bool FP16> DEV uint32_t pack(float low, float high)
{
	uint32_t v;
	if (FP16)
		asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
	else
		asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
	return v;
}

DEV float exp2_approx(float x)
{
	float y;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* Sum and maximum over a warp, of values below 2^26. */
DEV int warp_sum(int x)
{
	return __reduce_add_sync(0xffffffff, x);
}

DEV int warp_max(int x)
{
	return __reduce_max_sync(0xffffffff, x);
}

/* A barrier of `threads` threads of the CTA; number 0 is __syncthreads(). */
DEV void barrier_of(int number, int threads)
{
	asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

#endif
