/* SPDX-License-Identifier: MIT */
#include "device.h"

#include "../src/portable/cl_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef FMLA_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

static int selected; /* --device */

void device_select(int ordinal)
{
	selected = ordinal;
#ifdef FMLA_WITH_CUDA
	int devices = 0;
	if (cudaGetDeviceCount(&devices) == cudaSuccess && ordinal < devices)
		cudaSetDevice(ordinal);
	(void)cudaGetLastError();
#endif
}

struct fmla_device device_of(int type)
{
	return (struct fmla_device){.type = type, .id = type == FMLA_DEVICE_CPU ? 0 : selected};
}

/* ---- OpenCL ----------------------------------------------------------------------------------------------------- */

/* The selected device, opened at the first use and kept until the command ends. */
static struct {
	bool tried;
	struct cl_api cl;
	cl_context context;
	cl_queue queue; /* NULL: there is none, see error */
	char name[256], error[128];
} opencl;

static bool open_opencl(void)
{
	if (opencl.tried)
		return opencl.queue != NULL;
	opencl.tried = true;
	const char *trouble = cl_open(&opencl.cl);
	if (trouble) {
		snprintf(opencl.error, sizeof(opencl.error), "%s", trouble);
		return false;
	}
	struct cl_devices devices;
	int32_t error = 0;
	cl_list_devices(&opencl.cl, &devices);
	if (selected >= devices.count) {
		snprintf(opencl.error, sizeof(opencl.error), "there is no OpenCL device %d, only %d", selected, devices.count);
		return false;
	}
	const cl_device id = devices.at[selected].id;
	opencl.cl.clGetDeviceInfo(id, CL_DEVICE_NAME, sizeof(opencl.name) - 1, opencl.name, NULL);
	opencl.context = opencl.cl.clCreateContext(NULL, 1, &id, NULL, NULL, &error);
	if (opencl.context)
		opencl.queue = opencl.cl.clCreateCommandQueue(opencl.context, id, 0, &error);
	if (!opencl.queue)
		snprintf(opencl.error, sizeof(opencl.error), "OpenCL device %d: error %d", selected, error);
	return opencl.queue != NULL;
}

static bool opencl_ok(int32_t error, const char *what)
{
	if (error != CL_SUCCESS)
		snprintf(opencl.error, sizeof(opencl.error), "OpenCL: %s failed with %d", what, error);
	return error == CL_SUCCESS;
}

static void *opencl_alloc(size_t bytes)
{
	int32_t error = 0;
	if (!open_opencl())
		return NULL;
	void *buffer = opencl.cl.clCreateBuffer(opencl.context, CL_MEM_READ_WRITE, bytes, NULL, &error);
	return opencl_ok(error, "clCreateBuffer") ? buffer : NULL;
}

void *device_stream(int type)
{
	return type == FMLA_DEVICE_OPENCL && open_opencl() ? opencl.queue : NULL;
}

const char *device_name(int type)
{
	return type == FMLA_DEVICE_OPENCL && open_opencl() ? opencl.name : NULL;
}

/* ---- any device ------------------------------------------------------------------------------------------------- */

/* Large buffers lie in huge pages where the kernel gives them, as a server's cache should: with pages of 4 KiB the cpu
 * backend spends 3 % and more on address translation. */
static void *host_alloc(size_t bytes)
{
	const size_t huge = (size_t)2 << 20, unit = bytes < huge / 2 ? DEVICE_ALIGNMENT : huge;
	const size_t rounded = (bytes + unit) / unit * unit; /* never 0 */
	void *data = aligned_alloc(unit, rounded);
#ifdef MADV_HUGEPAGE
	if (data && unit == huge)
		madvise(data, rounded, MADV_HUGEPAGE);
#endif
	return data;
}

void *device_alloc(int type, size_t bytes)
{
	if (type == FMLA_DEVICE_CPU)
		return host_alloc(bytes);
	if (type == FMLA_DEVICE_OPENCL)
		return opencl_alloc(bytes > 0 ? bytes : 1); /* not rounded: oclgrind sees every access past the end */
#ifdef FMLA_WITH_CUDA
	void *data = NULL;
	if (type == FMLA_DEVICE_CUDA && cudaMalloc(&data, bytes > 0 ? bytes : 1) == cudaSuccess)
		return data;
#endif
	return NULL;
}

void device_free(int type, void *data)
{
	if (type == FMLA_DEVICE_CPU)
		free(data);
	else if (type == FMLA_DEVICE_OPENCL && data)
		opencl.cl.clReleaseMemObject(data);
#ifdef FMLA_WITH_CUDA
	else if (type == FMLA_DEVICE_CUDA)
		cudaFree(data);
#endif
}

bool device_upload(int type, void *device, size_t offset, const void *host, size_t bytes)
{
	if (type == FMLA_DEVICE_CPU) {
		if ((char *)device + offset != host)
			memcpy((char *)device + offset, host, bytes);
		return true;
	}
	if (type == FMLA_DEVICE_OPENCL)
		return bytes == 0 ||
		       opencl_ok(opencl.cl.clEnqueueWriteBuffer(opencl.queue, device, 1, offset, bytes, host, 0, NULL, NULL),
		                 "clEnqueueWriteBuffer");
#ifdef FMLA_WITH_CUDA
	return cudaMemcpy((char *)device + offset, host, bytes, cudaMemcpyHostToDevice) == cudaSuccess;
#else
	return false;
#endif
}

bool device_download(int type, void *host, const void *device, size_t bytes)
{
	if (type == FMLA_DEVICE_CPU) {
		if (host != device)
			memcpy(host, device, bytes);
		return true;
	}
	if (type == FMLA_DEVICE_OPENCL)
		return bytes == 0 || opencl_ok(opencl.cl.clEnqueueReadBuffer(opencl.queue, (cl_buffer)(uintptr_t)device, 1, 0,
		                                                             bytes, host, 0, NULL, NULL),
		                               "clEnqueueReadBuffer");
#ifdef FMLA_WITH_CUDA
	return cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost) == cudaSuccess;
#else
	return false;
#endif
}

bool device_sync(int type)
{
	if (type == FMLA_DEVICE_OPENCL)
		return open_opencl() && opencl_ok(opencl.cl.clFinish(opencl.queue), "clFinish");
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
	if (type == FMLA_DEVICE_OPENCL)
		return opencl.error;
#ifdef FMLA_WITH_CUDA
	if (type == FMLA_DEVICE_CUDA)
		return cudaGetErrorString(cudaGetLastError());
#endif
	return "this build has no such device";
}
