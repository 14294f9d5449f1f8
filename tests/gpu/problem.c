/* SPDX-License-Identifier: MIT
 *
 * Decode problems with everything hostile that the header allows: NaN in unused tokens, pages and padding, wild page
 * numbers in unused table entries, workspace and results full of NaN beforehand. */
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WILD_PAGE = 2147480000, POISON = 0x7fff };

void shape_name(const struct shape *s, char *text, size_t size)
{
	int n = snprintf(text, size, "b=%d s_q=%d h_q=%d h_kv=%d page=%d s_k=%d %s %s", s->b, s->s_q, s->h_q, s->h_kv,
	                 s->page, s->s_k, s->lengths == MIXED ? "mixed" : "uniform", s->fp16 ? "fp16" : "bf16");
	const struct {
		int on;
		const char *word;
	} words[] = {
	    {s->d_qk == 512, " d_qk=512"}, {s->causal, " causal"},   {s->window > 0, " window"},
	    {s->ragged_q, " ragged_q"},    {s->strided, " strided"}, {s->odd, " odd"},
	    {s->cycle > 0, " cycle"},       {s->sink, " sink"},       {s->no_lse, " no_lse"},
	    {s->loud != 0, " loud"},       {s->scale != 0, " scale"}, {(s->flags & FMLA_EMPTY_LSE_NEG_INF) != 0, " -inf"},
	    {(s->flags & FMLA_BATCH_INVARIANT) != 0, " invariant"},
	};
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (words[i].on && n >= 0 && (size_t)n < size)
			n += snprintf(text + n, size - (size_t)n, "%s", words[i].word);
}

static int32_t draw_length(const struct shape *s, int i, uint64_t *rng)
{
	static const int edges[] = {0, 1, 63, 64, 65};
	if (s->lengths == UNIFORM)
		return s->s_k;
	if (i < (int)(sizeof(edges) / sizeof(edges[0])) && edges[i] <= s->s_k)
		return edges[i];
	return (int32_t)(random_next(rng) % (uint64_t)(s->s_k + 1));
}

/* Lengths, table and the rows of the cache that requests use. */
static bool make_cache(struct problem_pair *p, uint64_t *rng)
{
	const struct shape *s = &p->shape;
	const int d_qk = s->d_qk ? s->d_qk : 576;
	const int64_t max_pages = (s->s_k + s->page - 1) / s->page + 2;
	int32_t *lengths = p->lengths.on_host.data, *table = p->table.on_host.data;
	int64_t used = 0;
	for (int i = 0; i < s->b; i++) {
		lengths[i] = draw_length(s, i, rng);
		used += (lengths[i] + s->page - 1) / s->page;
	}
	const int64_t num_pages = (s->cycle > 0 ? s->cycle : used) + 3;
	const int64_t token = d_qk + (s->strided ? 64 : 0), head = token, row = head * s->h_kv;
	const int64_t page = row * s->page + (s->strided ? 128 : 0);
	if (!mirror_make(&p->kv, (struct fmla_dtype){s->fp16 ? 2 : 4, 16, 1}, 4,
	                 (int64_t[]){num_pages, s->page, s->h_kv, d_qk}, (int64_t[]){page, row, head, 1}))
		return false;

	int32_t *order = malloc((size_t)num_pages * sizeof(*order)); /* pages in random order */
	EXPECT(order, "out of host memory");
	for (int64_t i = 0; i < num_pages; i++)
		order[i] = (int32_t)i;
	for (int64_t i = num_pages - 1; i > 0; i--) {
		const int64_t j = (int64_t)(random_next(rng) % (uint64_t)(i + 1));
		const int32_t t = order[i];
		order[i] = order[j];
		order[j] = t;
	}
	const int64_t stride = p->table.strides[0];
	for (int64_t i = 0; i < s->b * stride - (stride - max_pages); i++)
		table[i] = WILD_PAGE;
	int64_t next = 0;
	uint16_t *kv = p->kv.on_host.data;
	for (int i = 0; i < s->b; i++) {
		for (int64_t t = 0; t < lengths[i]; t++) {
			int32_t *entry = &table[i * stride + t / s->page];
			if (t % s->page == 0)
				*entry = order[s->cycle > 0 ? next++ % s->cycle : next++];
			uint16_t *to = kv + *entry * page + t % s->page * row;
			if (s->cycle > 0 && to[0] != POISON)
				continue;
			for (int h = 0; h < s->h_kv; h++)
				for (int d = 0; d < d_qk; d++)
					to[h * head + d] = value_from(0.3f * (float)random_normal(rng), s->fp16);
		}
	}
	free(order);
	return true;
}

static void fill_q(struct problem_pair *p, int64_t tokens, uint64_t *rng)
{
	const struct shape *s = &p->shape;
	const int64_t *n = p->q.shape + p->q.on_host.ndim - 2, *stride = p->q.strides + p->q.on_host.ndim - 2;
	const float loud = s->loud != 0 ? s->loud : 1.0f;
	uint16_t *q = p->q.on_host.data;
	for (int64_t i = 0; i < tokens; i++)
		for (int64_t h = 0; h < n[0]; h++) {
			const int64_t at = s->ragged_q ? i * p->q.strides[0]
			                               : i / s->s_q * p->q.strides[0] + i % s->s_q * p->q.strides[1];
			for (int64_t d = 0; d < n[1]; d++)
				q[at + h * stride[0] + d] = value_from(3.0f * loud * (float)random_normal(rng), s->fp16);
		}
}

static void bind(struct problem_pair *p, struct fmla_decode_args *a, bool device)
{
#define TENSOR(m) (p->m.used ? (device ? &p->m.on_device : &p->m.on_host) : NULL)
	const struct shape *s = &p->shape;
	*a = (struct fmla_decode_args){.struct_size = sizeof(*a),
	                               .q = TENSOR(q),
	                               .kv_cache = TENSOR(kv),
	                               .block_table = TENSOR(table),
	                               .cache_seqlens = TENSOR(lengths),
	                               .cu_seqlens_q = TENSOR(cu),
	                               .attn_sink = TENSOR(sink),
	                               .out = TENSOR(out),
	                               .lse = TENSOR(lse),
	                               .softmax_scale = s->scale != 0 ? s->scale : 1 / sqrt(s->d_qk ? s->d_qk : 576),
	                               .causal = s->causal,
	                               .max_seqlen_q = s->ragged_q ? s->s_q : 0,
	                               .window = s->window,
	                               .flags = s->flags};
#undef TENSOR
}

bool problem_make(struct problem_pair *p, const struct shape *s)
{
	*p = (struct problem_pair){.shape = *s};
	shape_name(s, p->name, sizeof(p->name));
	uint64_t rng = s->seed * 7919 + (uint64_t)s->b * 31 + (uint64_t)s->h_q;
	const struct fmla_dtype value = {s->fp16 ? 2 : 4, 16, 1}, int32 = FMLA_INT32, fp32 = FMLA_FP32;
	const int64_t d_qk = s->d_qk ? s->d_qk : 576, d_v = 512, max_pages = (s->s_k + s->page - 1) / s->page + 2;

	if (!mirror_make(&p->lengths, int32, 1, (int64_t[]){s->b}, NULL) ||
	    !mirror_make(&p->table, int32, 2, (int64_t[]){s->b, max_pages}, (int64_t[]){max_pages + 3 * s->strided, 1}) ||
	    !make_cache(p, &rng))
		return false;

	int64_t tokens = (int64_t)s->b * s->s_q;
	if (s->ragged_q) {
		if (!mirror_make(&p->cu, int32, 1, (int64_t[]){s->b + 1}, NULL))
			return false;
		int32_t *cu = p->cu.on_host.data;
		cu[0] = 0;
		for (int i = 0; i < s->b; i++)
			cu[i + 1] = cu[i] + (int32_t)(i == 0 ? s->s_q : (int64_t)(random_next(&rng) % (uint64_t)(s->s_q + 1)));
		tokens = cu[s->b];
	}
	const int64_t pad = s->odd ? 3 : s->strided ? 8 : 0;
	const int64_t q_h = d_qk + pad, q_s = q_h * s->h_q + pad, q_b = q_s * s->s_q + pad;
	const int64_t o_h = d_v + pad, o_s = o_h * s->h_q + pad, o_b = o_s * s->s_q + pad;
	if (s->ragged_q) {
		if (!mirror_make(&p->q, value, 3, (int64_t[]){tokens, s->h_q, d_qk}, (int64_t[]){q_s, q_h, 1}) ||
		    !mirror_make(&p->out, value, 3, (int64_t[]){tokens, s->h_q, d_v}, (int64_t[]){o_s, o_h, 1}) ||
		    !mirror_make(&p->lse, fp32, 2, (int64_t[]){s->h_q, tokens}, NULL))
			return false;
	} else if (!mirror_make(&p->q, value, 4, (int64_t[]){s->b, s->s_q, s->h_q, d_qk}, (int64_t[]){q_b, q_s, q_h, 1}) ||
	           !mirror_make(&p->out, value, 4, (int64_t[]){s->b, s->s_q, s->h_q, d_v},
	                        (int64_t[]){o_b, o_s, o_h, 1}) ||
	           !mirror_make(&p->lse, fp32, 3, (int64_t[]){s->b, s->h_q, s->s_q},
	                        s->strided ? (int64_t[]){1, (int64_t)s->b * s->s_q, s->b} : NULL)) {
		return false;
	}
	fill_q(p, tokens, &rng);
	if (s->sink) {
		if (!mirror_make(&p->sink, fp32, 1, (int64_t[]){s->h_q}, NULL))
			return false;
		float *sink = p->sink.on_host.data;
		for (int h = 0; h < s->h_q; h++)
			sink[h] = h == 1 ? INFINITY : h == 2 ? -INFINITY : (float)(3 * random_normal(&rng));
	}
	if (s->no_lse)
		mirror_free(&p->lse);
	bind(p, &p->host, false);
	bind(p, &p->device, true);
	return problem_reference(p);
}

bool problem_reference(struct problem_pair *p)
{
	fmla_ctx *ref = NULL;
	const struct fmla_ctx_options options = {.struct_size = sizeof(options), .backend = "ref", .num_threads = 1};
	EXPECT_OK(ref, fmla_ctx_create(&ref, &options));
	size_t size = 0;
	fmla_status status = fmla_workspace_size(ref, &p->host, &size);
	void *workspace = aligned_alloc(256, (size + 511) / 256 * 256);
	p->host.workspace = workspace;
	p->host.workspace_size = size;
	if (status == FMLA_OK)
		status = fmla_decode(ref, &p->host);
	const bool ok = status == FMLA_OK || fail("ref: %s", fmla_last_error(ref));
	fmla_ctx_destroy(ref);
	free(workspace);
	p->host.workspace = NULL;
	return ok;
}

bool problem_upload(struct problem_pair *p, fmla_ctx *gpu)
{
	struct mirror *inputs[] = {&p->q, &p->kv, &p->table, &p->lengths, &p->cu, &p->sink};
	for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++)
		if (!mirror_upload(inputs[i], NULL))
			return false;
	if (!mirror_poison(&p->out) || !mirror_poison(&p->lse))
		return false;
	size_t size = 0;
	EXPECT_OK(gpu, fmla_workspace_size(gpu, &p->device, &size));
	if (size > p->workspace_size) {
		cudaFree(p->workspace);
		EXPECT_CUDA(cudaMalloc(&p->workspace, size));
	}
	p->workspace_size = size > p->workspace_size ? size : p->workspace_size;
	if (p->workspace)
		EXPECT_CUDA(cudaMemset(p->workspace, 0xff, p->workspace_size));
	p->device.workspace = p->workspace;
	p->device.workspace_size = size;
	EXPECT_CUDA(cudaDeviceSynchronize());
	return true;
}

static bool compare_one(const struct mirror *m, struct tolerance t, const char *what)
{
	if (!m->used || m->bytes == 0)
		return true;
	void *got = malloc(m->bytes);
	EXPECT(got, "out of host memory");
	const bool ok = mirror_download(m, got) && values_close(got, m->on_host.data,
	                                                        (int64_t)(m->bytes / (m->on_host.dtype.bits / 8)),
	                                                        m->on_host.dtype, t, what);
	free(got);
	return ok;
}

bool problem_compare(const struct problem_pair *p, const char *what)
{
	char name[384];
	snprintf(name, sizeof(name), "%s%sout", what, *what ? ": " : "");
	if (!compare_one(&p->out, out_tolerance, name))
		return false;
	snprintf(name, sizeof(name), "%s%slse", what, *what ? ": " : "");
	return compare_one(&p->lse, lse_tolerance, name);
}

bool problem_run(struct problem_pair *p, fmla_ctx *gpu)
{
	if (!problem_upload(p, gpu))
		return false;
	EXPECT_OK(gpu, fmla_decode(gpu, &p->device));
	return problem_compare(p, "");
}

void problem_free(struct problem_pair *p)
{
	struct mirror *all[] = {&p->q, &p->kv, &p->table, &p->lengths, &p->cu, &p->sink, &p->out, &p->lse};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		mirror_free(all[i]);
	cudaFree(p->workspace);
	p->workspace = NULL;
}
