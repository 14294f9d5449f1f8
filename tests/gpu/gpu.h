/* SPDX-License-Identifier: MIT
 *
 * Pieces of the GPU tests: tensors that live on the host and on the device, decode problems full of poison, and the
 * comparison of what the GPU wrote with what `ref` wrote. */
#ifndef TESTS_GPU_H
#define TESTS_GPU_H

#include "flash_mla.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- report ---- */

/* Prints the sentence under the running test's name and returns false. */
bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define EXPECT(cond, ...)            \
	do {                             \
		if (!(cond))                 \
			return fail(__VA_ARGS__); \
	} while (0)
#define EXPECT_CUDA(call)                                                                              \
	do {                                                                                               \
		const cudaError_t cuda_error_ = (call);                                                        \
		EXPECT(cuda_error_ == cudaSuccess, "%s:%d: %s", __FILE__, __LINE__, cudaGetErrorString(cuda_error_)); \
	} while (0)
#define EXPECT_OK(ctx, call) EXPECT((call) == FMLA_OK, "%s:%d: %s", __FILE__, __LINE__, fmla_last_error(ctx))

/* One test of the list.  `brief`: also part of the list that runs under compute-sanitizer. */
struct test {
	const char *name;
	bool (*run)(fmla_ctx *gpu, const void *arg);
	const void *arg;
	bool brief;
};

/* ---- tensors ---- */

/* A tensor in both memories.  On the device it lies between two guards; both copies start as poison: every 16-bit
 * value 0x7fff, which is a NaN of either type (and of fp32). */
struct mirror {
	struct fmla_tensor on_host, on_device;
	int64_t shape[5], strides[5];
	size_t bytes;
	bool used;
};

/* strides NULL: dense. */
bool mirror_make(struct mirror *m, struct fmla_dtype dtype, int ndim, const int64_t *shape, const int64_t *strides);
bool mirror_upload(struct mirror *m, cudaStream_t stream);
bool mirror_poison(struct mirror *m);               /* the device's copy */
bool mirror_download(const struct mirror *m, void *to); /* waits; fails when a guard was overwritten */
void mirror_free(struct mirror *m);

/* ---- random numbers ---- */

uint64_t random_next(uint64_t *state);
double random_normal(uint64_t *state);
uint16_t value_from(float x, bool fp16);
float value_to(uint16_t v, bool fp16);

/* ---- decode problems ---- */

enum lengths { UNIFORM, MIXED }; /* MIXED: 0, 1, 63, 64, 65 first, then random up to s_k */

struct shape {
	int b, s_q, h_q, h_kv, page, s_k;
	enum lengths lengths;
	int d_qk; /* 0: 576 */
	int causal, window;
	int ragged_q;  /* cu_seqlens_q with 0 .. s_q tokens a request */
	int strided;   /* padding behind every row, page and table row */
	int odd;       /* strides of q and out that allow no wide access */
	int cycle;     /* the cache has so many pages only, which requests use over and over */
	int sink, no_lse, fp16;
	uint32_t flags;
	float loud;  /* factor on q; 0: 1 */
	float scale; /* softmax_scale; 0: d_qk^-0.5 */
	uint64_t seed;
};

struct problem_pair {
	struct shape shape;
	struct mirror q, kv, table, lengths, cu, sink, out, lse;
	struct fmla_decode_args host, device;
	void *workspace; /* on the device */
	size_t workspace_size;
	char name[256];
};

void shape_name(const struct shape *s, char *text, size_t size);

/* Builds the inputs and runs `ref` into the host copies of out and lse; needs no GPU. */
bool problem_make(struct problem_pair *p, const struct shape *s);
bool problem_reference(struct problem_pair *p); /* again, after a change of the host copies */
/* Device copies, workspace full of poison. */
bool problem_upload(struct problem_pair *p, fmla_ctx *gpu);
/* out and lse on the device against the host's. */
bool problem_compare(const struct problem_pair *p, const char *what);
/* Upload, decode, compare. */
bool problem_run(struct problem_pair *p, fmla_ctx *gpu);
void problem_free(struct problem_pair *p);

/* fp16 and bf16 values, all of a buffer: masks of NaN and infinity equal, then absolute or relative, then cosine. */
struct tolerance {
	double abs, rel, cosine;
};
bool values_close(const void *got, const void *want, int64_t count, struct fmla_dtype dtype, struct tolerance t,
                  const char *what);
extern const struct tolerance out_tolerance, lse_tolerance;

/* ---- the lists ---- */

extern const struct test decode_tests[], plan_tests[], stream_tests[]; /* each ends with a NULL name */
extern const struct shape parity_shapes[];
extern const int num_parity_shapes;

#endif
