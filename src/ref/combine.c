/* SPDX-License-Identifier: MIT
 *
 * Stage 4, combine, and its public sister fmla_merge.  Both are
 *
 *     m = max lse_j      w_j = exp(lse_j - m)      out = sum w_j out_j / sum w_j      lse = m + ln sum w_j
 *
 * over the partial results j of a row.  An infinite lse_j marks an empty partial. */
#include "ref.h"

#include <math.h>

enum { COLUMNS = 64 }; /* values summed at a time */

/* Partial j of one row: where its values start and its lse. */
struct partials {
	int type;
	const void *out;
	const void *lse;
	int lse_type;
	int64_t n;
	int64_t out_first, out_second, out_step; /* j == 0 ? first : second + (j - 1) * step */
	int64_t lse_first, lse_second, lse_step;
};

static int64_t nth(int64_t first, int64_t second, int64_t step, int64_t j)
{
	return j == 0 ? first : second + (j - 1) * step;
}

static double partial_lse(const struct partials *from, int64_t j)
{
	return ref_load(from->lse_type, from->lse, nth(from->lse_first, from->lse_second, from->lse_step, j));
}

static void merge_row(const struct partials *from, struct ref_target to, int64_t d_v)
{
	double max = -INFINITY, weight = 0;
	for (int64_t j = 0; j < from->n; j++) {
		const double lse = partial_lse(from, j);
		if (!isinf(lse) && !(lse <= max)) /* NaN becomes the maximum, and everything NaN */
			max = lse;
	}
	for (int64_t j = 0; j < from->n; j++)
		if (!isinf(partial_lse(from, j)))
			weight += exp(partial_lse(from, j) - max);
	const double lse = weight == 0 ? -INFINITY : max + log(weight);

	for (int64_t d0 = 0; d0 < d_v; d0 += COLUMNS) {
		const int64_t n = d_v - d0 < COLUMNS ? d_v - d0 : COLUMNS;
		double sum[COLUMNS] = {0};
		for (int64_t j = 0; j < from->n; j++) {
			const double lse_j = partial_lse(from, j);
			if (isinf(lse_j))
				continue;
			const double w = exp(lse_j - max);
			const int64_t at = nth(from->out_first, from->out_second, from->out_step, j) + d0;
			for (int64_t d = 0; d < n; d++)
				sum[d] += w * ref_load(from->type, from->out, at + d);
		}
		ref_write_row(to, sum, weight, lse, n);
		to.at += n;
	}
}

static void combine_row(const struct problem *p, const struct pieces *pieces, const struct ref_workspace *w, int64_t s,
                        int64_t h)
{
	const int64_t row = s * p->h_q + h;
	const struct partials from = {.type = REF_FP64,
	                              .out = w->out,
	                              .lse = w->lse,
	                              .lse_type = REF_FP64,
	                              .n = pieces->n,
	                              .out_first = (pieces->first + row) * p->d_v,
	                              .out_second = (pieces->second + row) * p->d_v,
	                              .out_step = pieces->step * p->d_v,
	                              .lse_first = pieces->first + row,
	                              .lse_second = pieces->second + row,
	                              .lse_step = pieces->step};
	merge_row(&from, ref_target_of(p, pieces->req, s, h), p->d_v);
}

fmla_status ref_combine(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct ref_workspace w = ref_layout(ctx, p);
	const int32_t chunk = ref_costs(p).chunk;
	const int64_t n = chunk > 0 ? p->b : ctx->num_threads;

#pragma omp parallel for num_threads(ctx->num_threads) schedule(dynamic, 1)
	for (int64_t i = 0; i < n; i++) {
		struct pieces pieces;
		if (chunk > 0)
			pieces = plan_chunked(p, chunk, i);
		else if (!plan_started(p, &w.parts[i], i, w.splits, &pieces))
			continue;
		if (pieces.n == 1)
			continue;
		for (int64_t s = 0; s < request_s_q(p, pieces.req); s++)
			for (int64_t h = 0; h < p->h_q; h++)
				combine_row(p, &pieces, &w, s, h);
	}
	return FMLA_OK;
}

fmla_status ref_merge(struct fmla_ctx *ctx, const struct merge_problem *p)
{
	const int64_t rows = p->b * p->s_q * p->h_q;
	(void)ctx; /* unused without OpenMP */

#pragma omp parallel for num_threads(ctx->num_threads) schedule(static)
	for (int64_t row = 0; row < rows; row++) {
		const int64_t h = row % p->h_q, s = row / p->h_q % p->s_q, i = row / p->h_q / p->s_q;
		const int64_t out_at = i * p->in_b + s * p->in_s + h * p->in_h;
		const int64_t lse_at = i * p->in_lse_b + h * p->in_lse_h + s * p->in_lse_s;
		const struct partials from = {.type = p->in_type,
		                              .out = p->in,
		                              .lse = p->in_lse,
		                              .lse_type = TYPE_FP32,
		                              .n = p->n,
		                              .out_first = out_at,
		                              .out_second = out_at + p->in_n,
		                              .out_step = p->in_n,
		                              .lse_first = lse_at,
		                              .lse_second = lse_at + p->in_lse_n,
		                              .lse_step = p->in_lse_n};
		const struct ref_target to = {.type = p->out_type,
		                              .out = p->out,
		                              .at = i * p->out_b + s * p->out_s + h * p->out_h,
		                              .lse = p->lse ? p->lse + (i * p->lse_b + h * p->lse_h + s * p->lse_s) : NULL,
		                              .empty_lse = p->empty_lse,
		                              .sink = p->attn_sink ? p->attn_sink + h : NULL};
		merge_row(&from, to, p->d_v);
	}
	return FMLA_OK;
}
