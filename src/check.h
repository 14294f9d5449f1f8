/* SPDX-License-Identifier: MIT
 *
 * Stage 1: user structs in, one trusted problem out.  A failed check leaves a sentence and writes nothing else. */
#ifndef FMLA_CHECK_H
#define FMLA_CHECK_H

#include "problem.h"
#include "status.h"

#include <stddef.h>

/* How much of fmla_decode_args a call needs: shapes only; the lengths and the plan's buffers; everything. */
enum check_level { CHECK_SHAPES, CHECK_PLAN, CHECK_DECODE };

/* Copies a caller's struct, whose first member is its size, into ours.  A larger one (of a newer caller) must hold
 * zeros where we know no field; all callers of version 0.1 know all fields of today. */
fmla_status check_struct(struct fmla_ctx *ctx, const char *name, const void *user, void *ours, size_t our_size);

fmla_status check_context(struct fmla_ctx *ctx); /* also clears the last error */
fmla_status check_decode(struct fmla_ctx *ctx, const struct fmla_decode_args *args, enum check_level level,
                         struct problem *p);
fmla_status check_plan_rows(struct fmla_ctx *ctx, const struct problem *p, int64_t num_parts);
fmla_status check_workspace(struct fmla_ctx *ctx, const struct problem *p, size_t needed);
fmla_status check_merge(struct fmla_ctx *ctx, const struct fmla_merge_args *args, struct merge_problem *p);
fmla_status check_append(struct fmla_ctx *ctx, const struct fmla_kv_append_args *args, struct append_problem *p);

#endif
