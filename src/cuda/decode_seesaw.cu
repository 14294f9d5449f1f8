/* SPDX-License-Identifier: MIT
 *
 * The variants of decode_seesaw.cuh and their launcher. */
#include "gather.cuh"
#include "launch.cuh"
#include "seesaw.cuh"
#include "value.cuh"
#include "wgmma.cuh"

#define KERNEL          fmla_decode_seesaw_bf16
#define KERNEL_FN(name) name##_bf16
#define MMA             MMA_BF16
#define PACK            pack_bf16
#include "decode_seesaw.cuh"

#define KERNEL          fmla_decode_seesaw_fp16
#define KERNEL_FN(name) name##_fp16
#define MMA             MMA_FP16
#define PACK            pack_fp16
#include "decode_seesaw.cuh"

enum { SMEM_BYTES = 3 * TILE_BYTES };

extern "C" cudaError_t fmla_prepare_decode_seesaw(void)
{
	const cudaError_t error = cudaFuncSetAttribute((const void *)fmla_decode_seesaw_bf16,
	                                               cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES);
	return error != cudaSuccess ? error
	                            : cudaFuncSetAttribute((const void *)fmla_decode_seesaw_fp16,
	                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES);
}

extern "C" cudaError_t fmla_launch_decode_seesaw(const struct decode_params *p, const struct kv_maps *kv, int fp16,
                                                 cudaStream_t stream)
{
	const void *kernel = fp16 ? (const void *)fmla_decode_seesaw_fp16 : (const void *)fmla_decode_seesaw_bf16;
	const dim3 grid((unsigned)p->row_tiles, (unsigned)p->h_kv, (unsigned)p->num_parts);
	return launch(kernel, grid, SEESAW_THREADS, SMEM_BYTES, stream, p, kv, (unsigned)p->cluster);
}
