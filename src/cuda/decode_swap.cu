/* SPDX-License-Identifier: MIT
 *
 * The variants of decode_swap.cuh and their launcher. */
#include "gather.cuh"
#include "launch.cuh"
#include "tile.cuh"
#include "value.cuh"
#include "wgmma.cuh"

enum {
	CONSUMERS = 1,     /* a named barrier                                       */
	SPLITS_FOUND = 2,  /* another                                               */
	SPLIT_FINDER = 224 /* a thread of the last warp, which has time once q is there */
};

/* By the last warp; the consumers wait for it before they tell others of a piece. */
DEV void publish_splits(const struct decode_params &p, struct schedule &schedule)
{
	if (threadIdx.x == SPLIT_FINDER)
		find_splits(p, schedule);
	__syncwarp();
	named_barrier_arrive(SPLITS_FOUND, 160);
}

/* A barrier of the consumers, after the first of which they know the splits. */
DEV void consumers_meet(bool &splits_known)
{
	if (splits_known)
		named_barrier(CONSUMERS, 128);
	else
		named_barrier(SPLITS_FOUND, 160);
	splits_known = true;
}

#define ROWS   8
#define KERNEL fmla_decode_swap8_bf16
#define MMA    MMA_BF16
#define PACK   pack_bf16
#define WGMMA  WGMMA_N8_SS
#include "decode_swap.cuh"

#define ROWS   16
#define KERNEL fmla_decode_swap16_bf16
#define MMA    MMA_BF16
#define PACK   pack_bf16
#define WGMMA  WGMMA_N16_SS
#include "decode_swap.cuh"

#define ROWS   32
#define KERNEL fmla_decode_swap32_bf16
#define MMA    MMA_BF16
#define PACK   pack_bf16
#define WGMMA  WGMMA_N32_SS
#include "decode_swap.cuh"

#define ROWS   8
#define KERNEL fmla_decode_swap8_fp16
#define MMA    MMA_FP16
#define PACK   pack_fp16
#define WGMMA  WGMMA_N8_SS
#include "decode_swap.cuh"

#define ROWS   16
#define KERNEL fmla_decode_swap16_fp16
#define MMA    MMA_FP16
#define PACK   pack_fp16
#define WGMMA  WGMMA_N16_SS
#include "decode_swap.cuh"

#define ROWS   32
#define KERNEL fmla_decode_swap32_fp16
#define MMA    MMA_FP16
#define PACK   pack_fp16
#define WGMMA  WGMMA_N32_SS
#include "decode_swap.cuh"

typedef void (*kernel)(const struct decode_params, const CUtensorMap);
static const kernel kernels[2][3] = {
    {fmla_decode_swap8_bf16, fmla_decode_swap16_bf16, fmla_decode_swap32_bf16},
    {fmla_decode_swap8_fp16, fmla_decode_swap16_fp16, fmla_decode_swap32_fp16},
};

static int smem_bytes(int rows)
{
	const int p_bytes = rows * 128 < 1024 ? 1024 : rows * 128;
	return 2 * (TILE_BYTES + QK_SLICES * rows * 128 + p_bytes);
}

extern "C" cudaError_t fmla_prepare_decode_swap(void)
{
	for (int i = 0; i < 6; i++) {
		const cudaError_t error = cudaFuncSetAttribute(
		    (const void *)kernels[i / 3][i % 3], cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes(8 << i % 3));
		if (error != cudaSuccess)
			return error;
	}
	return cudaSuccess;
}

extern "C" cudaError_t fmla_launch_decode_swap(const struct decode_params *p, const CUtensorMap *kv, int fp16,
                                               cudaStream_t stream)
{
	const kernel k = kernels[fp16][p->tile_rows == 8 ? 0 : p->tile_rows == 16 ? 1 : 2];
	const dim3 grid((unsigned)p->row_tiles, (unsigned)p->h_kv, (unsigned)p->num_parts);
	return launch((const void *)k, grid, SWAP_THREADS, smem_bytes(p->tile_rows), stream, p, kv);
}
