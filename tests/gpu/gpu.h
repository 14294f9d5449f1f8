/* SPDX-License-Identifier: MIT
 *
 * Pieces of the GPU tests: device copies of the shared test data (tests/data.h), and a decode case with its reference
 * on both sides. */
#ifndef TESTS_GPU_H
#define TESTS_GPU_H

#include "../cases.h"
#include "../close.h"
#include "../data.h"

#include "flash_mla.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- report ---- */

/* Adds a sentence to the report of the running test and returns false. */
bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define EXPECT(cond, ...)             \
	do {                              \
		if (!(cond))                  \
			return fail(__VA_ARGS__); \
	} while (0)
#define EXPECT_CUDA(call)                                                                                     \
	do {                                                                                                      \
		const cudaError_t cuda_error_ = (call);                                                               \
		EXPECT(cuda_error_ == cudaSuccess, "%s:%d: %s", __FILE__, __LINE__, cudaGetErrorString(cuda_error_)); \
	} while (0)
#define EXPECT_OK(ctx, call) EXPECT((call) == FMLA_OK, "%s:%d: %s", __FILE__, __LINE__, fmla_last_error(ctx))

/* One test of a list.  `brief`: also part of the list that runs under compute-sanitizer. */
struct test {
	const char *name;
	bool (*run)(fmla_ctx *gpu, const void *arg);
	const void *arg;
	bool brief;
};
extern const struct test decode_tests[], plan_tests[], stream_tests[]; /* each ends with a NULL name */

/* Decode cases beyond tests/cases.c, in its notation. */
extern const char *const gpu_cases[];
extern const size_t gpu_case_count;

/* ---- a tensor on the device ---- */

/* A copy of a data_tensor, all bytes of it, between two guards. */
struct gpu_tensor {
	struct fmla_tensor t;
	char *memory;
	size_t bytes;
};

/* Allocates at the first call; bytes 0: nothing to do. */
bool gpu_upload(struct gpu_tensor *g, const struct data_tensor *from);
/* Waits for the device; fails when something was written beside the tensor. */
bool gpu_download(const struct gpu_tensor *g, struct data_tensor *to);
void gpu_free(struct gpu_tensor *g);

/* Everything in host memory closer than `limits`, NaN (poison) in the same places; got and want of one dtype. */
bool gpu_same(const struct gpu_tensor *got, const struct data_tensor *want, struct limits limits, const char *what);

/* ---- a decode case ---- */

struct job {
	struct data data;
	struct result want;
	struct gpu_tensor tensors[DATA_TENSORS];
	struct fmla_decode_args args; /* on the device */
	void *workspace;
	size_t workspace_size;
};

/* Data and reference; touches no GPU, so cases can be made on all cores.  Do not copy the struct. */
bool job_make(struct job *job, const char *line);
/* The reference again, after a change of the host's tensors. */
bool job_reference(struct job *job);
/* Everything to the device, poison into outputs and workspace. */
bool job_upload(struct job *job, fmla_ctx *gpu);
bool job_upload_tensor(struct job *job, enum data_name name);
bool job_poison(struct job *job); /* the outputs */
/* The device's outputs against `want`; gaps between output rows must be untouched. */
bool job_compare(struct job *job, const char *what);
/* Upload, decode, compare. */
bool job_run(struct job *job, fmla_ctx *gpu);
void job_free(struct job *job);

/* All of out and lse as they are on the device now; NULL on failure. */
char *job_snapshot(struct job *job);
bool job_unchanged(struct job *job, const char *snapshot, const char *what);

#endif
