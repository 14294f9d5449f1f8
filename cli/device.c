/* SPDX-License-Identifier: MIT */
#include "device.h"

#include <stdlib.h>
#include <string.h>

#include "flash_mla.h"

#ifdef FMLA_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

void *device_alloc(int type, size_t bytes)
{
	const size_t rounded = (bytes + DEVICE_ALIGNMENT) / DEVICE_ALIGNMENT * DEVICE_ALIGNMENT; /* never 0 */
	if (type == FMLA_DEVICE_CPU)
		return aligned_alloc(DEVICE_ALIGNMENT, rounded);
#ifdef FMLA_WITH_CUDA
	void *data = NULL;
	if (type == FMLA_DEVICE_CUDA && cudaMalloc(&data, rounded) == cudaSuccess)
		return data;
#endif
	return NULL;
}

void device_free(int type, void *data)
{
	if (type == FMLA_DEVICE_CPU)
		free(data);
#ifdef FMLA_WITH_CUDA
	else if (type == FMLA_DEVICE_CUDA)
		cudaFree(data);
#endif
}

bool device_upload(int type, void *device, const void *host, size_t bytes)
{
	if (type == FMLA_DEVICE_CPU) {
		if (device != host)
			memcpy(device, host, bytes);
		return true;
	}
#ifdef FMLA_WITH_CUDA
	return cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice) == cudaSuccess;
#else
	return false;
#endif
}

bool device_download(int type, void *host, const void *device, size_t bytes)
{
	if (type == FMLA_DEVICE_CPU) {
		if (device != host)
			memcpy(host, device, bytes);
		return true;
	}
#ifdef FMLA_WITH_CUDA
	return cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost) == cudaSuccess;
#else
	return false;
#endif
}

bool device_sync(int type)
{
#ifdef FMLA_WITH_CUDA
	if (type == FMLA_DEVICE_CUDA)
		return cudaDeviceSynchronize() == cudaSuccess;
#endif
	return type == FMLA_DEVICE_CPU;
}

const char *device_error(int type)
{
	if (type == FMLA_DEVICE_CPU)
		return "out of memory";
#ifdef FMLA_WITH_CUDA
	if (type == FMLA_DEVICE_CUDA)
		return cudaGetErrorString(cudaGetLastError());
#endif
	return "this build has no such device";
}
