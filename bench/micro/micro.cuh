/* SPDX-License-Identifier: MIT
 *
 * micro.cuh - what the micro-benchmarks share: a check of CUDA calls, and the driver's encoder of tensor maps. */
#ifndef FMLA_MICRO_CUH
#define FMLA_MICRO_CUH

#include <cuda_runtime.h>
#include <cudaTypedefs.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                            \
	do {                                                       \
		const int error_ = (int)(call);                        \
		if (error_) {                                          \
			fprintf(stderr, "%s failed: %d\n", #call, error_); \
			exit(1);                                           \
		}                                                      \
	} while (0)

static inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder(void)
{
	void *entry = NULL;
	cudaDriverEntryPointQueryResult found;
	CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
	return (PFN_cuTensorMapEncodeTiled_v12000)entry;
}

#endif
