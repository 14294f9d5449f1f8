/* SPDX-License-Identifier: MIT */
#include "device.h"

#include <stdlib.h>
#include <string.h>

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

static bool copy(int type, void *to, const void *from, size_t bytes, bool upload)
{
	(void)upload; /* CUDA finds the direction out by itself, but checks what it is told */
	if (type == FMLA_DEVICE_CPU) {
		if (to != from)
			memcpy(to, from, bytes);
		return true;
	}
#ifdef FMLA_WITH_CUDA
	return cudaMemcpy(to, from, bytes, upload ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost) == cudaSuccess;
#else
	return false;
#endif
}

bool device_upload(int type, void *device, const void *host, size_t bytes)
{
	return copy(type, device, host, bytes, true);
}

bool device_download(int type, void *host, const void *device, size_t bytes)
{
	return copy(type, host, device, bytes, false);
}

bool device_sync(int type)
{
#ifdef FMLA_WITH_CUDA
	if (type == FMLA_DEVICE_CUDA)
		return cudaDeviceSynchronize() == cudaSuccess;
#endif
	return type == FMLA_DEVICE_CPU;
}

size_t tensor_bytes(const struct fmla_tensor *tensor)
{
	size_t bytes = tensor->dtype.bits / 8u;
	for (int i = 0; i < tensor->ndim; i++)
		bytes *= (size_t)tensor->shape[i];
	return bytes;
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
