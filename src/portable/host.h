/* SPDX-License-Identifier: MIT
 *
 * host.h - what all hosts of the portable kernels share: from a checked problem to kernel calls.  A host (opencl.c,
 * cuda.c, hip.c, tests/test_portable.c) only has to find devices and to enqueue a struct pk_call. */
#ifndef FMLA_PORTABLE_HOST_H
#define FMLA_PORTABLE_HOST_H

#include "../backend.h"
#include "../plan.h"
#include "mma_buffers.h"
#include "shape.h"

enum pk_kernel { PK_PLAN, PK_DECODE_BF16, PK_DECODE_FP16, PK_COMBINE, PK_MERGE, PK_APPEND, PK_PAGES, PK_KERNELS };
extern const char *const pk_kernel_name[PK_KERNELS];

enum { PK_GROUP_ITEMS = 256, PK_PORTABLE_ROWS = 16, PK_MOST_BUFFERS = 9 };

/* A kernel over `groups` groups: buffers in the order of its parameters, then the shape by value. */
struct pk_call {
	enum pk_kernel kernel;
	int64_t groups;
	int num_buffers;
	const void *buffer[PK_MOST_BUFFERS];
	union {
		struct pk_shape decode;
		struct pk_merge_shape merge;
		struct pk_append_shape append;
	} shape;
	size_t shape_size;
};

/* What is known of the device: groups that run at a time, and the query rows of a group. */
struct pk_target {
	int64_t workers;
	int tile_rows;
};

int64_t pk_num_parts(const struct problem *p, struct pk_target t);
size_t pk_workspace_size(const struct problem *p, struct pk_target t);
int pk_splits_requests(const struct problem *p, struct pk_target t); /* 0: combine has nothing to do */

struct pk_call pk_plan_call(const struct problem *p, struct pk_target t);     /* into the caller's plan      */
struct pk_call pk_own_plan_call(const struct problem *p, struct pk_target t); /* into the workspace, for decode */
struct pk_call pk_pages_call(const struct problem *p, struct pk_target t);
struct pk_call pk_decode_call(const struct problem *p, struct pk_target t);
int pk_mma_plans_itself(const struct problem *p); /* 1: decode_mma.cu needs no plan kernel before it */
struct mma_buffers pk_mma_buffers(const struct problem *p, struct pk_target t, const struct pk_call *decode);
struct pk_call pk_combine_call(const struct problem *p, struct pk_target t);
struct pk_call pk_merge_call(const struct merge_problem *p);
struct pk_call pk_append_call(const struct append_problem *p);

/* What the pages kernel left at the start of the workspace, as a status. */
fmla_status pk_pages_answer(struct fmla_ctx *ctx, const struct problem *p, const int32_t answer[3]);

#endif
