/* SPDX-License-Identifier: MIT
 *
 * The ref backend's table, its workspace, and how it reads and writes values. */
#include "ref.h"

#include "value.h"

#include <math.h>

enum { ALIGN = 256 };

/* ---- values ---------------------------------------------------------------------------------------------------- */

double ref_load(int type, const void *base, int64_t i)
{
	switch (type) {
	case TYPE_BF16:
		return float_from_bf16(((const uint16_t *)base)[i]);
	case TYPE_FP16:
		return float_from_fp16(((const uint16_t *)base)[i]);
	case TYPE_FP32:
		return ((const float *)base)[i];
	default:
		return ((const double *)base)[i];
	}
}

void ref_store(int type, void *base, int64_t i, double value)
{
	switch (type) {
	case TYPE_BF16:
		((uint16_t *)base)[i] = bf16_from_float((float)value);
		break;
	case TYPE_FP16:
		((uint16_t *)base)[i] = fp16_from_float((float)value);
		break;
	default:
		((float *)base)[i] = (float)value;
		break;
	}
}

struct ref_target ref_target_of(const struct problem *p, int64_t req, int64_t s, int64_t h)
{
	const int64_t token = p->cu_seqlens_q ? p->cu_seqlens_q[req] + s : s;
	return (struct ref_target){.type = p->type,
	                           .out = p->out,
	                           .at = req * p->out_b + token * p->out_s + h * p->out_h,
	                           .lse = p->lse ? p->lse + (req * p->lse_b + h * p->lse_h + token * p->lse_s) : NULL,
	                           .empty_lse = p->empty_lse,
	                           .sink = p->attn_sink ? p->attn_sink + h : NULL};
}

void ref_write_row(struct ref_target to, const double *sum, double weight, double lse, int64_t d_v)
{
	const int empty = weight == 0;
	double factor = empty ? 0 : 1 / weight;
	if (to.sink && !empty)
		factor /= 1 + exp(*to.sink - lse);
	for (int64_t d = 0; d < d_v; d++)
		ref_store(to.type, to.out, to.at + d, empty ? 0 : sum[d] * factor);
	if (to.lse)
		*to.lse = empty ? to.empty_lse : (float)lse;
}

/* ---- workspace ------------------------------------------------------------------------------------------------- */

/* In blocks of 64 keys: a split costs two rows of 512 doubles per query row, less than one key. */
struct plan_costs ref_costs(const struct problem *p)
{
	return (struct plan_costs){
	    .overhead = 1, .min_blocks = 1, .max_snap = 1, .chunk = p->batch_invariant ? PLAN_CHUNK : 0};
}

static size_t take(size_t *size, size_t bytes)
{
	const size_t at = *size;
	*size = (at + bytes + ALIGN - 1) / ALIGN * ALIGN;
	return at;
}

struct ref_workspace ref_layout(const struct fmla_ctx *ctx, const struct problem *p)
{
	const size_t parts = (size_t)ctx->num_threads;
	const size_t rows = (size_t)plan_partial_rows(p, ref_costs(p).chunk, ctx->num_threads);
	const uintptr_t base = (uintptr_t)p->workspace;
	size_t size = 0;
	struct ref_workspace w;
	w.parts = (struct part *)(base + take(&size, parts * sizeof(*w.parts)));
	w.splits = (int32_t *)(base + take(&size, (size_t)(p->b + 1) * sizeof(*w.splits)));
	w.scratch = (struct ref_scratch *)(base + take(&size, parts * sizeof(*w.scratch)));
	w.lse = (double *)(base + take(&size, rows * sizeof(*w.lse)));
	w.out = (double *)(base + take(&size, rows * (size_t)p->d_v * sizeof(*w.out)));
	w.size = size;
	return w;
}

static size_t ref_workspace_size(struct fmla_ctx *ctx, const struct problem *p)
{
	struct problem sizes_only = *p;
	sizes_only.workspace = NULL;
	return ref_layout(ctx, &sizes_only).size;
}

/* ---- the table ------------------------------------------------------------------------------------------------- */

static fmla_status ref_probe(struct fmla_ctx *ctx, struct fmla_backend_info *info)
{
	info->available = 1;
	info->device_name = "any CPU";
	info->variant = "scalar, double sums";
	info->num_workers = ctx->num_threads;
	return FMLA_OK;
}

static fmla_status ref_check(struct fmla_ctx *ctx, const struct problem *p)
{
	(void)ctx, (void)p;
	return FMLA_OK;
}

static int64_t ref_num_parts(struct fmla_ctx *ctx, const struct problem *p)
{
	(void)p;
	return ctx->num_threads;
}

static fmla_status ref_plan(struct fmla_ctx *ctx, const struct problem *p)
{
	plan_build(p, ref_costs(p), ctx->num_threads, p->plan_parts, p->num_parts, p->plan_splits);
	return FMLA_OK;
}

const struct fmla_backend fmla_backend_ref = {.name = "ref",
                                              .device_type = FMLA_DEVICE_CPU,
                                              .probe = ref_probe,
                                              .check = ref_check,
                                              .num_parts = ref_num_parts,
                                              .workspace_size = ref_workspace_size,
                                              .plan = ref_plan,
                                              .decode = ref_decode,
                                              .combine = ref_combine,
                                              .merge = ref_merge,
                                              .kv_append = ref_kv_append};
