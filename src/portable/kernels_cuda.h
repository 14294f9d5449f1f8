/* SPDX-License-Identifier: MIT
 *
 * kernels_cuda.h - the kernels of the portable-cuda backend, for the host. */
#ifndef FMLA_PORTABLE_KERNELS_CUDA_H
#define FMLA_PORTABLE_KERNELS_CUDA_H

#include "mma_buffers.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pk_call;

/* decode_mma.cu */

/* For the current device: allows the kernels of this tile their shared memory, and how many fit an SM. */
cudaError_t fmla_mma_prepare(int tile_rows, int *ctas_per_sm);
cudaError_t fmla_mma_launch(const struct pk_shape *p, const struct mma_buffers *g, int64_t ctas, cudaStream_t stream);

/* Stage 4 after it, on g->combine_ctas CTAs. */
cudaError_t fmla_mma_combine_launch(const struct pk_shape *p, const struct mma_buffers *g, cudaStream_t stream);

/* generic.cu: the kernels of kernels.h. */
cudaError_t fmla_generic_launch(const struct pk_call *call, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
