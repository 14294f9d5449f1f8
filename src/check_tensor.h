/* SPDX-License-Identifier: MIT
 *
 * Stage 1, check: reading one tensor of the caller, and the rules that any tensor may have to keep.  A failed rule
 * leaves its sentence in the context. */
#ifndef FMLA_CHECK_TENSOR_H
#define FMLA_CHECK_TENSOR_H

#include "problem.h"
#include "status.h"

#include <stddef.h>

enum { MAX_DIMS = 5 };

/* A tensor as it was described, with strides filled in. */
struct view {
	const char *name;
	char *data; /* OpenCL: the buffer's handle, and `at` is the first byte in it; else at is 0 */
	int64_t at;
	struct fmla_device device;
	struct fmla_dtype dtype;
	int ndim;
	int64_t n[MAX_DIMS], stride[MAX_DIMS];
};

/* A tensor of `ndim` dimensions (or ndim_2, where that is not 0), described as `axes` in messages. */
fmla_status read_tensor(struct fmla_ctx *ctx, const char *name, const struct fmla_tensor *t, int ndim, int ndim_2,
                        const char *axes, struct view *v);
/* A vector [n] whose elements lie side by side, on the device of `as`. */
fmla_status read_vector(struct fmla_ctx *ctx, const char *name, const struct fmla_tensor *t, int64_t n, const char *why,
                        struct fmla_dtype dtype, const char *dtype_name, const struct view *as, struct view *v);
fmla_status read_value_type(struct fmla_ctx *ctx, const struct view *v, int fp32_too, enum value_type *type);

size_t value_bytes(struct fmla_dtype t);
int is_dtype(struct fmla_dtype t, struct fmla_dtype want);

fmla_status check_dtype(struct fmla_ctx *ctx, const struct view *v, struct fmla_dtype want, const char *want_name);
fmla_status check_same_dtype(struct fmla_ctx *ctx, const struct view *v, const struct view *as);
fmla_status check_device(struct fmla_ctx *ctx, const struct view *v, const struct view *as);
fmla_status check_dim(struct fmla_ctx *ctx, const struct view *v, int d, int64_t want, const char *why);
fmla_status check_last_stride(struct fmla_ctx *ctx, const struct view *v);
fmla_status check_strides_of_8(struct fmla_ctx *ctx, const struct view *v);
/* No two elements of an output may share an address. */
fmla_status check_no_overlap(struct fmla_ctx *ctx, const struct view *v);
/* There unless the tensor is empty, aligned to `align` bytes. */
fmla_status check_data(struct fmla_ctx *ctx, const struct view *v, size_t align);

#endif
