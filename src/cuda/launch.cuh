/* SPDX-License-Identifier: MIT
 *
 * Launching with programmatic dependent launch: a kernel may start while the one before it on the stream is still
 * running; each of ours begins its dependent work with grid_wait(). */
#ifndef FMLA_LAUNCH_CUH
#define FMLA_LAUNCH_CUH

#include <cuda.h>
#include <cuda_runtime.h>

/* `smem` bytes of dynamic shared memory must have been allowed once per device (fmla_prepare_kernels). */
static inline cudaError_t launch(const void *kernel, dim3 grid, dim3 threads, int smem, cudaStream_t stream,
                                 const void *params, const void *maps = NULL, unsigned cluster = 1)
{
	cudaLaunchAttribute attr[2];
	attr[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
	attr[0].val.programmaticStreamSerializationAllowed = 1;
	attr[1].id = cudaLaunchAttributeClusterDimension;
	attr[1].val.clusterDim.x = cluster;
	attr[1].val.clusterDim.y = 1;
	attr[1].val.clusterDim.z = 1;
	cudaLaunchConfig_t config = {};
	config.gridDim = grid;
	config.blockDim = threads;
	config.dynamicSmemBytes = (size_t)smem;
	config.stream = stream;
	config.attrs = attr;
	config.numAttrs = cluster > 1 ? 2 : 1;
	void *args[2] = {(void *)params, (void *)maps};
	return cudaLaunchKernelExC(&config, kernel, args);
}

#endif
