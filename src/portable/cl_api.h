/* SPDX-License-Identifier: MIT
 *
 * cl_api.h - the part of OpenCL 1.2 that this project calls, declared here and found at run time, so that neither headers
 * nor a loader are needed to build.  Names, numbers and signatures are the standard's. */
#ifndef FMLA_PORTABLE_CL_API_H
#define FMLA_PORTABLE_CL_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cl_platform_ *cl_platform;
typedef struct cl_device_ *cl_device;
typedef struct cl_context_ *cl_context;
typedef struct cl_queue_ *cl_queue;
typedef struct cl_buffer_ *cl_buffer;
typedef struct cl_program_ *cl_program;
typedef struct cl_kernel_ *cl_kernel;

enum {
	CL_SUCCESS = 0,
	CL_DEVICE_NOT_FOUND = -1,
	CL_PLATFORM_NAME = 0x0902,
	CL_PLATFORM_VERSION = 0x0901,
	CL_DEVICE_MAX_COMPUTE_UNITS = 0x1002,
	CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004,
	CL_DEVICE_LOCAL_MEM_SIZE = 0x1023,
	CL_DEVICE_ENDIAN_LITTLE = 0x1026,
	CL_DEVICE_AVAILABLE = 0x1027,
	CL_DEVICE_COMPILER_AVAILABLE = 0x1028,
	CL_DEVICE_NAME = 0x102b,
	CL_DRIVER_VERSION = 0x102d,
	CL_QUEUE_CONTEXT = 0x1090,
	CL_QUEUE_DEVICE = 0x1091,
	CL_QUEUE_PROPERTIES = 0x1093,
	CL_QUEUE_OUT_OF_ORDER = 1,
	CL_MEM_READ_WRITE = 1,
	CL_PROGRAM_BINARY_SIZES = 0x1165,
	CL_PROGRAM_BINARIES = 0x1166,
	CL_PROGRAM_BUILD_LOG = 0x1183,
};
static const uint64_t CL_DEVICE_TYPE_CPU = 2, CL_DEVICE_TYPE_GPU_OR_ACCELERATOR = 4 | 8;

/* F(result, name, parameters) */
#define CL_FUNCTIONS(F)                                                                                        \
	F(int32_t, clGetPlatformIDs, (uint32_t, cl_platform *, uint32_t *))                                        \
	F(int32_t, clGetPlatformInfo, (cl_platform, uint32_t, size_t, void *, size_t *))                           \
	F(int32_t, clGetDeviceIDs, (cl_platform, uint64_t, uint32_t, cl_device *, uint32_t *))                     \
	F(int32_t, clGetDeviceInfo, (cl_device, uint32_t, size_t, void *, size_t *))                               \
	F(cl_context, clCreateContext, (const intptr_t *, uint32_t, const cl_device *, void *, void *, int32_t *)) \
	F(int32_t, clRetainContext, (cl_context))                                                                  \
	F(int32_t, clReleaseContext, (cl_context))                                                                 \
	F(cl_queue, clCreateCommandQueue, (cl_context, cl_device, uint64_t, int32_t *))                            \
	F(int32_t, clReleaseCommandQueue, (cl_queue))                                                              \
	F(int32_t, clGetCommandQueueInfo, (cl_queue, uint32_t, size_t, void *, size_t *))                          \
	F(cl_buffer, clCreateBuffer, (cl_context, uint64_t, size_t, void *, int32_t *))                            \
	F(int32_t, clReleaseMemObject, (cl_buffer))                                                                \
	F(int32_t, clEnqueueReadBuffer,                                                                            \
	  (cl_queue, cl_buffer, uint32_t, size_t, size_t, void *, uint32_t, const void *, void *))                 \
	F(int32_t, clEnqueueWriteBuffer,                                                                           \
	  (cl_queue, cl_buffer, uint32_t, size_t, size_t, const void *, uint32_t, const void *, void *))           \
	F(int32_t, clFinish, (cl_queue))                                                                           \
	F(cl_program, clCreateProgramWithSource, (cl_context, uint32_t, const char **, const size_t *, int32_t *)) \
	F(cl_program, clCreateProgramWithBinary,                                                                   \
	  (cl_context, uint32_t, const cl_device *, const size_t *, const unsigned char **, int32_t *, int32_t *)) \
	F(int32_t, clBuildProgram, (cl_program, uint32_t, const cl_device *, const char *, void *, void *))        \
	F(int32_t, clGetProgramInfo, (cl_program, uint32_t, size_t, void *, size_t *))                             \
	F(int32_t, clGetProgramBuildInfo, (cl_program, cl_device, uint32_t, size_t, void *, size_t *))             \
	F(int32_t, clReleaseProgram, (cl_program))                                                                 \
	F(cl_kernel, clCreateKernel, (cl_program, const char *, int32_t *))                                        \
	F(int32_t, clReleaseKernel, (cl_kernel))                                                                   \
	F(int32_t, clSetKernelArg, (cl_kernel, uint32_t, size_t, const void *))                                    \
	F(int32_t, clEnqueueNDRangeKernel,                                                                         \
	  (cl_queue, cl_kernel, uint32_t, const size_t *, const size_t *, const size_t *, uint32_t, const void *, void *))

struct cl_api {
	void *library;
#define F(result, name, parameters) result(*name) parameters;
	CL_FUNCTIONS(F)
#undef F
};

enum { CL_MOST_DEVICES = 32 };

/* All devices of all platforms in the order of the loader, CPUs last: `--device N` and struct fmla_device's id count
 * these. */
struct cl_devices {
	int count;
	struct {
		cl_platform platform;
		cl_device id;
	} at[CL_MOST_DEVICES];
};

/* Loads the loader, for good.  NULL, or a sentence that says what is missing. */
const char *cl_open(struct cl_api *cl);

void cl_list_devices(const struct cl_api *cl, struct cl_devices *devices);

#endif
