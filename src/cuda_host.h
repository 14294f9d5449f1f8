/* SPDX-License-Identifier: MIT
 *
 * cuda_host.h - what the hosts of the two CUDA backends (src/cuda/backend.c, src/portable/cuda.c) share: errors of the
 * run-time as statuses, and the way back to the caller's device. */
#ifndef FMLA_CUDA_HOST_H
#define FMLA_CUDA_HOST_H

#include "status.h"

#include <cuda_runtime_api.h>

static inline fmla_status fail_cuda(struct fmla_ctx *ctx, cudaError_t error, const char *what)
{
	(void)cudaGetLastError(); /* a launch error must not surface in somebody else's call */
	return fmla_fail(ctx, FMLA_ERR_DEVICE, "CUDA: %s failed: %s (%s)", what, cudaGetErrorName(error),
	                 cudaGetErrorString(error));
}

#define TRY_CUDA(ctx, call)                         \
	do {                                            \
		const cudaError_t error_ = (call);          \
		if (error_ != cudaSuccess)                  \
			return fail_cuda((ctx), error_, #call); \
	} while (0)

/* Ends a call on device `id`: the caller's device, `previous`, is current again. */
static inline fmla_status leave_device(struct fmla_ctx *ctx, int id, int previous, fmla_status status)
{
	if (previous != id) {
		const cudaError_t error = cudaSetDevice(previous);
		if (status == FMLA_OK && error != cudaSuccess)
			return fail_cuda(ctx, error, "cudaSetDevice");
	}
	return status;
}

#endif
