/* SPDX-License-Identifier: MIT
 *
 * The ref backend: scalar C with double sums, the definition of the answer.  Only as fast as an oracle must be. */
#ifndef FMLA_REF_H
#define FMLA_REF_H

#include "backend.h"
#include "plan.h"

/* Query rows that share one conversion of a key block to float. */
enum { REF_ROWS = 16 };

/* What one part needs besides its partial results. */
struct ref_scratch {
	float k[BLOCK][D_QK];
	struct ref_row {
		double q[D_QK], sum[D_V]; /* sum: of exp(score - max) * v */
		double max, weight;       /* weight: sum of exp(score - max) */
	} rows[REF_ROWS];
};

/* The workspace.  The plan in use always lies here, so that combine reads what decode used. */
struct ref_workspace {
	struct part *parts;          /* [num_parts]             */
	int32_t *splits;             /* [b + 1]                 */
	struct ref_scratch *scratch; /* [num_parts]             */
	double *lse;                 /* [partial_rows]          */
	double *out;                 /* [partial_rows, d_v]     */
	size_t size;
};

struct ref_workspace ref_layout(const struct fmla_ctx *ctx, const struct problem *p);
struct plan_costs ref_costs(const struct problem *p);

fmla_status ref_decode(struct fmla_ctx *ctx, const struct problem *p);
fmla_status ref_combine(struct fmla_ctx *ctx, const struct problem *p);
fmla_status ref_merge(struct fmla_ctx *ctx, const struct merge_problem *p);
fmla_status ref_kv_append(struct fmla_ctx *ctx, const struct append_problem *p);

/* Value number i of an array; enum value_type, or REF_FP64 for partial results. */
enum { REF_FP64 = TYPE_FP32 + 1 };
double ref_load(int type, const void *base, int64_t i);
void ref_store(int type, void *base, int64_t i, double value);

/* Where one finished row goes. */
struct ref_target {
	int type;
	void *out;
	int64_t at; /* first of d_v values */
	float *lse; /* NULL: not wanted    */
	float empty_lse;
	const float *sink; /* of this head; NULL: none */
};

struct ref_target ref_target_of(const struct problem *p, int64_t req, int64_t s, int64_t h);

/* out = sum / weight with the sink applied, lse = lse; weight 0 marks an empty row. */
void ref_write_row(struct ref_target to, const double *sum, double weight, double lse, int64_t d_v);

#endif
