/* SPDX-License-Identifier: MIT */
#include "cl_api.h"

#include <dlfcn.h>
#include <string.h>

/* The library stays loaded: drivers behind it keep threads and memory that unloading would cut off or leak. */
const char *cl_open(struct cl_api *cl)
{
	*cl = (struct cl_api){.library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL)};
	if (!cl->library)
		return "no OpenCL loader (libOpenCL.so.1)";
	const char *missing = NULL;
	void *symbol;
	/* The standard lets an object pointer from dlsym become a function pointer by copying its bytes. */
#define F(result, name, parameters)             \
	symbol = dlsym(cl->library, #name);         \
	memcpy(&cl->name, &symbol, sizeof(symbol)); \
	missing = symbol ? missing : "libOpenCL.so.1 lacks " #name;
	CL_FUNCTIONS(F)
#undef F
	if (missing)
		cl->library = NULL;
	return missing;
}

void cl_list_devices(const struct cl_api *cl, struct cl_devices *devices)
{
	enum { MOST_PLATFORMS = 16 };
	cl_platform platform[MOST_PLATFORMS];
	uint32_t platforms = 0;
	*devices = (struct cl_devices){.count = 0};
	if (cl->clGetPlatformIDs(MOST_PLATFORMS, platform, &platforms) != CL_SUCCESS)
		return;
	if (platforms > MOST_PLATFORMS)
		platforms = MOST_PLATFORMS;
	for (uint32_t i = 0; i < 2 * platforms; i++) {
		cl_device device[CL_MOST_DEVICES];
		uint32_t n = 0;
		const uint64_t type = i < platforms ? CL_DEVICE_TYPE_GPU_OR_ACCELERATOR : CL_DEVICE_TYPE_CPU;
		if (cl->clGetDeviceIDs(platform[i % platforms], type, CL_MOST_DEVICES, device, &n) != CL_SUCCESS)
			continue;
		for (uint32_t d = 0; d < n && d < CL_MOST_DEVICES && devices->count < CL_MOST_DEVICES; d++) {
			devices->at[devices->count].platform = platform[i % platforms];
			devices->at[devices->count++].id = device[d];
		}
	}
}
