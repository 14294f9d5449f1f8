/* SPDX-License-Identifier: MIT
 *
 * Random data for the benchmark, and the memory ceiling: pages read by bulk copies, as the decode kernels read them. */
#include "bench.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ __forceinline__ uint64_t mix(uint64_t z)
{
	z += 0x9e3779b97f4a7c15;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* Two normal numbers (Box-Muller). */
static __device__ __forceinline__ float2 normal_pair(uint64_t seed, uint64_t i)
{
	const uint64_t bits = mix(seed * 0x100000001b3 + i);
	const float u = ((uint32_t)bits + 1.0f) * 2.3283064e-10f, v = (float)(uint32_t)(bits >> 32) * 2.3283064e-10f;
	const float r = sqrtf(-2.0f * logf(u < 1.0f ? u : 1.0f));
	float s, c;
	sincospif(2.0f * v, &s, &c);
	return make_float2(r * c, r * s);
}

static __global__ void normal_16(uint32_t *data, size_t pairs, float deviation, int fp16, uint64_t seed)
{
	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < pairs; i += gridDim.x * (size_t)blockDim.x) {
		const float2 x = normal_pair(seed, i);
		if (fp16) {
			const __half2 h = __floats2half2_rn(x.x * deviation, x.y * deviation);
			data[i] = *(const uint32_t *)&h;
		} else {
			const __nv_bfloat162 h = __floats2bfloat162_rn(x.x * deviation, x.y * deviation);
			data[i] = *(const uint32_t *)&h;
		}
	}
}

static __global__ void normal_32(float *data, size_t count, uint64_t seed)
{
	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += gridDim.x * (size_t)blockDim.x)
		data[i] = normal_pair(seed, i).x;
}

extern "C" cudaError_t fill_normal(void *data, size_t count, float deviation, int fp16, uint64_t seed,
                                   cudaStream_t stream)
{
	normal_16<<<2048, 256, 0, stream>>>((uint32_t *)data, count / 2, deviation, fp16, seed);
	return cudaGetLastError();
}

extern "C" cudaError_t fill_floats(float *data, size_t count, uint64_t seed, cudaStream_t stream)
{
	normal_32<<<256, 256, 0, stream>>>(data, count, seed);
	return cudaGetLastError();
}

/* ---- ceiling ---- */

enum { SLOTS = 2, PIECES = 9, PIECE_BYTES = READ_PAGE_BYTES / PIECES };

static __global__ void __launch_bounds__(32, 1) read_kernel(const char *data, const int32_t *pages, int32_t count)
{
	extern __shared__ __align__(128) char smem[];
	__shared__ __align__(8) uint64_t full[SLOTS];
	if (threadIdx.x != 0)
		return;
	uint32_t bar[SLOTS];
	for (int s = 0; s < SLOTS; s++) {
		bar[s] = (uint32_t)__cvta_generic_to_shared(&full[s]);
		asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar[s]));
	}
	asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
	/* The slot of page n is free once page n - SLOTS has landed: nobody reads it. */
	int n = 0;
	for (int page = blockIdx.x; page < count + SLOTS * (int)gridDim.x; page += gridDim.x, n++) {
		const int slot = n % SLOTS;
		if (n >= SLOTS && page - SLOTS * (int)gridDim.x < count)
			asm volatile(
			    "{\n.reg .pred done;\nREAD_%=:\n"
			    "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra READ_%=;\n}" ::"r"(bar[slot]),
			    "r"((n / SLOTS - 1) & 1)
			    : "memory");
		if (page >= count)
			continue;
		asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar[slot]), "r"(READ_PAGE_BYTES)
		             : "memory");
		const char *src = data + (size_t)pages[page] * READ_PAGE_BYTES;
		const uint32_t dst = (uint32_t)__cvta_generic_to_shared(smem + slot * READ_PAGE_BYTES);
		for (int i = 0; i < PIECES; i++)
			asm volatile(
			    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
			        dst + i * PIECE_BYTES),
			    "l"(src + i * PIECE_BYTES), "r"(PIECE_BYTES), "r"(bar[slot])
			    : "memory");
	}
}

extern "C" cudaError_t read_pages(const void *data, const int32_t *pages, int32_t count, int num_sms,
                                  cudaStream_t stream)
{
	const cudaError_t error =
	    cudaFuncSetAttribute(read_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SLOTS * READ_PAGE_BYTES);
	if (error != cudaSuccess)
		return error;
	read_kernel<<<num_sms, 32, SLOTS * READ_PAGE_BYTES, stream>>>((const char *)data, pages, count);
	return cudaGetLastError();
}
