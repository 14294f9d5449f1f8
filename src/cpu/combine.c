/* SPDX-License-Identifier: MIT
 *
 * Stage 4, combine, with its public sister fmla_merge, and kv_append: all three only move memory. */
#include "cpu.h"

#include <math.h>
#include <string.h>

/* ---- one row ------------------------------------------------------------------------------------------------- */

/* One after the other in a fixed order: the result does not depend on who folds. */
void cpu_fold(const struct cpu_kernel *kernel, struct merging *to, float m, float l, const float *o)
{
	if (l == 0)
		return;
	if (to->l == 0) {
		kernel->fold(to->o, 0, o, 1, D_V);
		to->m = m;
		to->l = l;
		return;
	}
	const float max = m > to->m ? m : to->m, a = expf(to->m - max), b = expf(m - max);
	kernel->fold(to->o, a, o, b, D_V);
	to->m = max;
	to->l = to->l * a + l * b;
}

static float sink_factor(const float *attn_sink, int64_t h, float lse)
{
	return attn_sink ? 1 / (1 + expf(attn_sink[h] - lse)) : 1;
}

void cpu_finish(const struct cpu_kernel *kernel, const struct problem *p, int64_t req, int64_t s, int64_t h, float m,
                float l, float *o)
{
	const int64_t token = (p->cu_seqlens_q ? p->cu_seqlens_q[req] : 0) + s;
	uint16_t *out = (uint16_t *)p->out + (req * p->out_b + token * p->out_s + h * p->out_h);
	const float lse = l == 0 ? p->empty_lse : m + logf(l);
	if (p->lse)
		p->lse[req * p->lse_b + h * p->lse_h + token * p->lse_s] = lse;
	if (l == 0) {
		memset(out, 0, D_V * sizeof(*out));
		return;
	}
	kernel->fold(o, 0, o, sink_factor(p->attn_sink, h, lse) / l, D_V);
	kernel->narrow(p->type, o, out, D_V);
}

/* ---- combine ------------------------------------------------------------------------------------------------- */

static bool split_request(const struct problem *p, const struct cpu_workspace *ws, int64_t i, struct pieces *pieces)
{
	const int32_t chunk = cpu_costs(p).chunk;
	if (chunk == 0)
		return plan_started(p, &ws->parts[i], i, ws->splits, pieces);
	*pieces = plan_chunked(p, chunk, i);
	return pieces->n > 1;
}

static void combine_row(const struct cpu_kernel *kernel, const struct problem *p, const struct cpu_workspace *ws,
                        const struct pieces *pieces, int64_t row)
{
	float o[D_V] __attribute__((aligned(LINE)));
	struct merging sum = {.o = o};
	for (int64_t j = 0; j < pieces->n; j++) {
		const int64_t at = (j == 0 ? pieces->first : pieces->second + (j - 1) * pieces->step) + row;
		cpu_fold(kernel, &sum, ws->m[at], ws->l[at], ws->o + at * D_V);
	}
	cpu_finish(kernel, p, pieces->req, row / p->h_q, row % p->h_q, sum.m, sum.l, o);
}

/* Dealt out in 16 rows: the rows of one split request are work for all threads. */
fmla_status cpu_combine(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct cpu_kernel *kernel = cpu_kernel_of(ctx);
	const struct cpu_workspace ws = cpu_layout(ctx, p, kernel);
	const int64_t n = ws.by_rows ? 0 : p->batch_invariant ? p->b : ws.num_parts, rows = p->s_q * p->h_q;
	struct pieces pieces;
	int64_t first = 0;
	while (first < n && !split_request(p, &ws, first, &pieces))
		first++;
	if (first >= n) /* the usual case with many requests a thread: do not wake the others */
		return FMLA_OK;

#pragma omp parallel for num_threads(ctx->num_threads) schedule(static, 16) private(pieces)
	for (int64_t i = first * rows; i < n * rows; i++)
		if (split_request(p, &ws, i / rows, &pieces) && i % rows < request_s_q(p, pieces.req) * p->h_q)
			combine_row(kernel, p, &ws, &pieces, i % rows);
	return FMLA_OK;
}

/* ---- merge --------------------------------------------------------------------------------------------------- */

static void merge_row(const struct cpu_kernel *kernel, const struct merge_problem *p, int64_t i, int64_t s, int64_t h)
{
	const size_t in_size = p->in_type == TYPE_FP32 ? 4 : 2;
	const char *in = NULL;
	const float *in_lse = NULL;
	if (p->n > 0) { /* the pointers of no partials may be NULL */
		in = (const char *)p->in + (i * p->in_b + s * p->in_s + h * p->in_h) * (int64_t)in_size;
		in_lse = p->in_lse + (i * p->in_lse_b + h * p->in_lse_h + s * p->in_lse_s);
	}
	const int64_t out_at = i * p->out_b + s * p->out_s + h * p->out_h;

	float max = -INFINITY, weight = 0;
	for (int64_t j = 0; j < p->n; j++) {
		const float lse = in_lse[j * p->in_lse_n];
		if (!isinf(lse) && !(lse <= max)) /* NaN becomes the maximum, and everything NaN */
			max = lse;
	}
	for (int64_t j = 0; j < p->n; j++)
		if (!isinf(in_lse[j * p->in_lse_n]))
			weight += expf(in_lse[j * p->in_lse_n] - max);
	const float lse = weight == 0 ? p->empty_lse : max + logf(weight);
	const float factor = weight == 0 ? 0 : sink_factor(p->attn_sink, h, lse) / weight;

	for (int64_t d = 0; d < p->d_v; d += D_V) {
		const int64_t n = p->d_v - d < D_V ? p->d_v - d : D_V;
		float sum[D_V] __attribute__((aligned(LINE))) = {0}, wide[D_V] __attribute__((aligned(LINE)));
		for (int64_t j = 0; j < p->n; j++) {
			const float lse_j = in_lse[j * p->in_lse_n];
			if (isinf(lse_j))
				continue;
			const char *from = in + (j * p->in_n + d) * (int64_t)in_size;
			if (p->in_type != TYPE_FP32)
				kernel->widen(p->in_type, from, wide, n);
			kernel->fold(sum, 1, p->in_type == TYPE_FP32 ? (const float *)(const void *)from : wide,
			             expf(lse_j - max) * factor, n);
		}
		if (p->out_type == TYPE_FP32)
			memcpy((float *)p->out + out_at + d, sum, (size_t)n * sizeof(*sum));
		else
			kernel->narrow(p->out_type, sum, (uint16_t *)p->out + out_at + d, n);
	}
	if (p->lse)
		p->lse[i * p->lse_b + h * p->lse_h + s * p->lse_s] = lse;
}

fmla_status cpu_merge(struct fmla_ctx *ctx, const struct merge_problem *p)
{
	const struct cpu_kernel *kernel = cpu_kernel_of(ctx);
	const int64_t rows = p->b * p->s_q * p->h_q;

#pragma omp parallel for num_threads(ctx->num_threads) schedule(static)
	for (int64_t row = 0; row < rows; row++)
		merge_row(kernel, p, row / p->h_q / p->s_q, row / p->h_q % p->s_q, row % p->h_q);
	return FMLA_OK;
}

/* ---- kv_append ----------------------------------------------------------------------------------------------- */

static void append_row(const struct append_problem *p, int64_t n, int64_t slot)
{
	for (int64_t h = 0; h < p->h_kv; h++) {
		uint16_t *to =
		    (uint16_t *)p->kv + (slot / p->page * p->kv_page + slot % p->page * p->kv_token + h * p->kv_head);
		if (p->d_latent > 0)
			memcpy(to, (const uint16_t *)p->latent + (n * p->latent_n + h * p->latent_h), (size_t)p->d_latent * 2);
		if (p->d_rope > 0)
			memcpy(to + p->d_latent, (const uint16_t *)p->rope + (n * p->rope_n + h * p->rope_h),
			       (size_t)p->d_rope * 2);
	}
}

/* Each worker writes the slots that are its own, in order: of two equal slots the later row wins, whole. */
fmla_status cpu_kv_append(struct fmla_ctx *ctx, const struct append_problem *p)
{
	const int64_t enough = 64; /* rows worth waking another thread for */
	const int workers = p->n / enough + 1 < ctx->num_threads ? (int)(p->n / enough) + 1 : ctx->num_threads;

#pragma omp parallel for num_threads(workers) schedule(static, 1)
	for (int worker = 0; worker < workers; worker++)
		for (int64_t n = 0; n < p->n; n++) {
			const int64_t slot = append_slot(p, n);
			if (slot >= 0 && slot % workers == worker)
				append_row(p, n, slot);
		}
	return FMLA_OK;
}
