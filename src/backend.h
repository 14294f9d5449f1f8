/* SPDX-License-Identifier: MIT
 *
 * What a backend is: a table of functions behind one trusted problem.  api.c calls them in the order
 * check -> plan -> decode -> combine. */
#ifndef FMLA_BACKEND_H
#define FMLA_BACKEND_H

#include "problem.h"
#include "status.h"

struct fmla_backend {
	const char *name;
	enum fmla_device_type device_type;

	/* Is it there?  Fills available, device_name, variant, reason, num_workers (api.c fills the rest); strings are
	 * constants or live in the backend's own entry of the context's `info_text`. */
	fmla_status (*probe)(struct fmla_ctx *ctx, struct fmla_backend_info *info);
	/* May it take this problem (NULL: merge and append) here and now?  FMLA_OK, or FMLA_ERR_UNSUPPORTED with the
	 * reason; api.c then asks the next backend for the same device.  Called in every public call, so it must be cheap.
	 */
	fmla_status (*check)(struct fmla_ctx *ctx, const struct problem *p);
	/* Workers that walk the batch: the rows of a plan.  From shapes and device only, >= 1. */
	int64_t (*num_parts)(struct fmla_ctx *ctx, const struct problem *p);
	size_t (*workspace_size)(struct fmla_ctx *ctx, const struct problem *p);

	/* Writes p->plan_parts [p->num_parts] and p->plan_splits [b + 1]. */
	fmla_status (*plan)(struct fmla_ctx *ctx, const struct problem *p);
	/* Unsplit requests to out and lse, pieces of split ones to the workspace; plans itself when p->plan_parts is NULL.
	 * p->workspace is 256-byte aligned and holds workspace_size bytes (NULL only when that is 0). */
	fmla_status (*decode)(struct fmla_ctx *ctx, const struct problem *p);
	/* Merges the pieces that decode left in the workspace. */
	fmla_status (*combine)(struct fmla_ctx *ctx, const struct problem *p);

	fmla_status (*merge)(struct fmla_ctx *ctx, const struct merge_problem *p);
	fmla_status (*kv_append)(struct fmla_ctx *ctx, const struct append_problem *p);

	/* Frees what the backend keeps in the context; NULL when it keeps nothing. */
	void (*release)(struct fmla_ctx *ctx);
};

extern const struct fmla_backend fmla_backend_ref;
extern const struct fmla_backend fmla_backend_opencl; /* needs nothing at build time */
extern const struct fmla_backend fmla_backend_hip;    /* available where clang-19 compiled its kernels */
#ifdef FMLA_WITH_CPU
extern const struct fmla_backend fmla_backend_cpu;
#endif
#ifdef FMLA_WITH_CUDA
extern const struct fmla_backend fmla_backend_cuda;
extern const struct fmla_backend fmla_backend_portable_cuda;
#endif

#endif
