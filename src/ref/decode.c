/* SPDX-License-Identifier: MIT
 *
 * Stage 3, decode, as its definition reads: for each query row, over its visible keys,
 *
 *     score = scale * dot(q, k)      out = sum exp(score - max) * v / sum exp(score - max)      lse = max + ln sum
 *
 * summed in double over one key block after another; `max` grows as larger scores are met and the sums shrink with it.
 */
#include "ref.h"

#include <math.h>

static const void *page_row(const struct problem *p, int64_t req, int64_t kv_head, int64_t t, int64_t *at)
{
	const int64_t page = p->block_table[req * p->table_stride + t / p->page];
	*at = page * p->kv_page + t % p->page * p->kv_token + kv_head * p->kv_head;
	return p->kv;
}

static void load_keys(const struct problem *p, int64_t req, int64_t kv_head, struct keys keys,
                      struct ref_scratch *scratch)
{
	for (int64_t t = keys.begin; t < keys.end; t++) {
		int64_t at;
		const void *base = page_row(p, req, kv_head, t, &at);
		float *k = scratch->k[t % BLOCK];
		for (int64_t d = 0; d < p->d_qk; d++)
			k[d] = (float)ref_load(p->type, base, at + d);
	}
}

/* Adds the keys of one block that this row sees. */
static void add_keys(const struct problem *p, struct ref_row *row, const struct ref_scratch *scratch, struct keys keys)
{
	double score[BLOCK] = {0}, max = row->max;
	for (int64_t t = keys.begin; t < keys.end; t++) {
		const float *k = scratch->k[t % BLOCK];
		double dot = 0;
#pragma omp simd reduction(+ : dot)
		for (int64_t d = 0; d < p->d_qk; d++)
			dot += row->q[d] * k[d];
		score[t % BLOCK] = dot * p->scale;
		if (score[t % BLOCK] > max)
			max = score[t % BLOCK];
	}
	if (max > row->max) {
		const double shrink = exp(row->max - max); /* 0 for the first block, where row->max is -inf */
		row->max = max;
		row->weight *= shrink;
		for (int64_t d = 0; d < p->d_v; d++)
			row->sum[d] *= shrink;
	}
	for (int64_t t = keys.begin; t < keys.end; t++) {
		const float *k = scratch->k[t % BLOCK];
		if (score[t % BLOCK] == -INFINITY)
			continue; /* weighs nothing, also before any larger score was met */
		const double w = exp(score[t % BLOCK] - row->max);
		row->weight += w;
#pragma omp simd
		for (int64_t d = 0; d < p->d_v; d++)
			row->sum[d] += w * k[d];
	}
}

static void start_row(const struct problem *p, struct ref_row *row, int64_t req, int64_t s, int64_t h)
{
	const int64_t token = p->cu_seqlens_q ? p->cu_seqlens_q[req] + s : s;
	for (int64_t d = 0; d < p->d_qk; d++)
		row->q[d] = ref_load(p->type, p->q, req * p->q_b + token * p->q_s + h * p->q_h + d);
	for (int64_t d = 0; d < p->d_v; d++)
		row->sum[d] = 0;
	row->max = -INFINITY;
	row->weight = 0;
}

static void finish_row(const struct problem *p, const struct ref_row *row, const struct piece *piece, int64_t s,
                       int64_t h, const struct ref_workspace *w)
{
	const double lse = row->weight == 0 ? -INFINITY : row->max + log(row->weight);
	if (piece->row < 0) {
		ref_write_row(ref_target_of(p, piece->req, s, h), row->sum, row->weight, lse, p->d_v);
		return;
	}
	const int64_t at = piece->row + s * p->h_q + h;
	w->lse[at] = lse;
	for (int64_t d = 0; d < p->d_v; d++)
		w->out[at * p->d_v + d] = row->weight == 0 ? 0 : row->sum[d] / row->weight;
}

static struct keys overlap(struct keys a, struct keys b)
{
	struct keys k = {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
	if (k.end < k.begin)
		k.end = k.begin;
	return k;
}

/* Rows first .. first + n - 1 of one KV head; row = s * group + g. */
static void decode_rows(const struct problem *p, const struct piece *piece, int64_t kv_head, int64_t first, int64_t n,
                        struct ref_scratch *scratch, const struct ref_workspace *w)
{
	for (int64_t r = 0; r < n; r++) {
		const int64_t s = (first + r) / p->group, h = kv_head * p->group + (first + r) % p->group;
		start_row(p, &scratch->rows[r], piece->req, s, h);
	}
	for (int64_t block = piece->begin; block < piece->end; block++) {
		const struct keys all = overlap(request_keys(p, piece->req), (struct keys){block * BLOCK, (block + 1) * BLOCK});
		load_keys(p, piece->req, kv_head, all, scratch);
		for (int64_t r = 0; r < n; r++)
			add_keys(p, &scratch->rows[r], scratch, overlap(all, row_keys(p, piece->req, (first + r) / p->group)));
	}
	for (int64_t r = 0; r < n; r++) {
		const int64_t s = (first + r) / p->group, h = kv_head * p->group + (first + r) % p->group;
		finish_row(p, &scratch->rows[r], piece, s, h, w);
	}
}

fmla_status ref_decode(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct ref_workspace w = ref_layout(ctx, p);
	const struct plan_costs costs = ref_costs(p);
	plan_ready(p, costs, ctx->num_threads, w.parts, w.splits);

#pragma omp parallel for num_threads(ctx->num_threads) schedule(static, 1)
	for (int part = 0; part < ctx->num_threads; part++) {
		struct piece piece = {.req = -1};
		while (plan_next_piece(p, costs.chunk, &w.parts[part], part, &piece)) {
			const int64_t rows = request_s_q(p, piece.req) * p->group;
			for (int64_t kv_head = 0; kv_head < p->h_kv; kv_head++)
				for (int64_t first = 0; first < rows; first += REF_ROWS)
					decode_rows(p, &piece, kv_head, first, rows - first < REF_ROWS ? rows - first : REF_ROWS,
					            &w.scratch[part], &w);
		}
	}
	return FMLA_OK;
}
