/* SPDX-License-Identifier: MIT
 *
 * Status plumbing and the context.  A failing check leaves one sentence in the context and returns. */
#ifndef FMLA_STATUS_H
#define FMLA_STATUS_H

#include "flash_mla.h"

struct fmla_backend;

/* What FMLA_CPU allows: the fastest CPU variant that may be used.  CPU_REF leaves only the ref backend. */
enum cpu_variant { CPU_REF, CPU_C, CPU_AVX2, CPU_AVX512, CPU_AMX };

/* Strings that a backend's probe writes for fmla_backend_info. */
struct info_text {
	char device_name[256];
	char reason[256];
};
enum info_owner { INFO_CUDA, INFO_PORTABLE_CUDA, INFO_CPU, INFO_REF, INFO_OPENCL, INFO_HIP, INFO_OWNERS };

struct fmla_ctx {
	const struct fmla_backend *forced; /* NULL: by the tensors' device                                   */
	int num_threads;                   /* > 0; 0 in a context whose creation failed                      */
	int cpu_variant;                   /* enum cpu_variant: the cap of FMLA_CPU, CPU_AMX without one      */
	uint64_t cuda_state[128];          /* the CUDA backend's memory, zero at first                       */
	void *portable_cuda_state;         /* the portable-cuda backend's, NULL at first                     */
	void *hip_state;                   /* the HIP backend's, NULL at first                               */
	void *opencl_state;                /* the OpenCL backend's, NULL at first                            */
	char error[512];
	struct info_text info_text[INFO_OWNERS];
};

/* Stores a printf-style sentence and returns `status`. */
fmla_status fmla_fail(struct fmla_ctx *ctx, fmla_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* TRY: forward a failure.  REQUIRE: an argument rule; the sentence is made from the check. */
#define TRY(expr)                         \
	do {                                  \
		fmla_status try_status_ = (expr); \
		if (try_status_ != FMLA_OK)       \
			return try_status_;           \
	} while (0)
#define REQUIRE(ctx, cond, ...)                                      \
	do {                                                             \
		if (!(cond))                                                 \
			return fmla_fail((ctx), FMLA_ERR_ARGUMENT, __VA_ARGS__); \
	} while (0)

#endif
