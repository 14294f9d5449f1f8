/* SPDX-License-Identifier: MIT
 *
 * Stage 1, check: the rules about structs and arguments, in the order of the public header.  Nothing behind this file
 * looks at a user's struct again. */
#include "check.h"

#include "check_tensor.h"
#include "plan.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { MAX_STRUCT = 4096 };

fmla_status check_context(struct fmla_ctx *ctx)
{
	if (!ctx)
		return FMLA_ERR_ARGUMENT;
	if (ctx->num_threads == 0) /* its error says why creation failed: keep it */
		return FMLA_ERR_ARGUMENT;
	ctx->error[0] = '\0';
	return FMLA_OK;
}

fmla_status check_struct(struct fmla_ctx *ctx, const char *name, const void *user, void *ours, size_t our_size)
{
	REQUIRE(ctx, user, "%s is NULL", name);
	size_t size;
	memcpy(&size, user, sizeof(size));
	REQUIRE(ctx, size >= our_size && size <= MAX_STRUCT, "%s.struct_size is %zu, must be sizeof(struct %s) = %zu", name,
	        size, name, our_size);
	const unsigned char *bytes = user;
	for (size_t i = our_size; i < size; i++)
		if (bytes[i])
			return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED,
			                 "%s.struct_size is %zu and byte %zu is set: a field that version %s does not know", name,
			                 size, i, fmla_version_string());
	memcpy(ours, user, our_size);
	return FMLA_OK;
}

/* ---- decode ---------------------------------------------------------------------------------------------------- */

static fmla_status read_q(struct fmla_ctx *ctx, const struct fmla_decode_args *a, struct view *q, struct problem *p)
{
	const int ragged = a->cu_seqlens_q != NULL;
	TRY(read_tensor(ctx, "q", a->q, ragged ? 3 : 4, 0,
	                ragged ? "[total_q, h_q, d_qk] with cu_seqlens_q" : "[b, s_q, h_q, d_qk]", q));
	TRY(read_value_type(ctx, q, 0, &p->type));
	TRY(check_last_stride(ctx, q));
	const int64_t *n = q->n + !ragged, *stride = q->stride + !ragged; /* [tokens, h_q, d_qk] */
	p->device = q->device;
	p->h_q = n[1];
	p->d_qk = n[2];
	REQUIRE(ctx, p->h_q >= 1, "h_q (dimension %d of q) is 0", ragged ? 1 : 2);
	p->d_v = a->head_dim_v ? a->head_dim_v : D_V;
	REQUIRE(ctx, p->d_v == D_V, "head_dim_v is %lld, must be %d", (long long)p->d_v, D_V);
	REQUIRE(ctx, p->d_qk == D_QK || p->d_qk == D_V, "d_qk (last dimension of q) is %lld, must be %d or %d",
	        (long long)p->d_qk, D_QK, D_V);
	p->q = q->data;
	p->at.q = q->at;
	p->q_b = ragged ? 0 : q->stride[0];
	p->q_s = stride[0];
	p->q_h = stride[1];

	if (ragged) {
		TRY(read_tensor(ctx, "cu_seqlens_q", a->cu_seqlens_q, 1, 0, "[b + 1]", &(struct view){0}));
		p->b = a->cu_seqlens_q->shape[0] - 1;
		REQUIRE(ctx, p->b >= 0, "cu_seqlens_q has no values, must be [b + 1]");
		p->total_q = n[0];
		p->s_q = a->max_seqlen_q ? a->max_seqlen_q : p->total_q;
		REQUIRE(ctx, p->s_q >= 0 && p->s_q <= p->total_q, "max_seqlen_q is %d, must be 0 .. total_q = %lld",
		        a->max_seqlen_q, (long long)p->total_q);
	} else {
		p->b = q->n[0];
		p->s_q = q->n[1];
		REQUIRE(ctx, p->s_q >= 1 || p->b == 0, "s_q (dimension 1 of q) is 0");
		REQUIRE(ctx, a->max_seqlen_q == 0, "max_seqlen_q is %d, must be 0 without cu_seqlens_q", a->max_seqlen_q);
		REQUIRE(ctx, p->b == 0 || p->s_q <= INT32_MAX / p->b, "b * s_q is %lld * %lld, must not exceed 2147483647",
		        (long long)p->b, (long long)p->s_q);
		p->total_q = p->b * p->s_q;
	}
	REQUIRE(ctx, p->total_q <= INT32_MAX / p->h_q, "query rows are %lld * h_q %lld, must not exceed 2147483647",
	        (long long)p->total_q, (long long)p->h_q);
	return FMLA_OK;
}

static fmla_status read_cache(struct fmla_ctx *ctx, const struct fmla_decode_args *a, const struct view *q,
                              struct view *kv, struct view *table, struct problem *p)
{
	TRY(read_tensor(ctx, "kv_cache", a->kv_cache, 4, 0, "[num_pages, page, h_kv, d_qk]", kv));
	TRY(check_same_dtype(ctx, kv, q));
	TRY(check_device(ctx, kv, q));
	TRY(check_last_stride(ctx, kv));
	TRY(check_strides_of_8(ctx, kv));
	TRY(check_dim(ctx, kv, 3, p->d_qk, "d_qk of q"));
	p->num_pages = kv->n[0];
	p->page = kv->n[1];
	p->h_kv = kv->n[2];
	REQUIRE(ctx, p->page >= 1, "page (dimension 1 of kv_cache) is 0");
	REQUIRE(ctx, p->h_kv >= 1 && p->h_q % p->h_kv == 0, "h_q %lld is not a multiple of h_kv %lld", (long long)p->h_q,
	        (long long)p->h_kv);
	p->group = p->h_q / p->h_kv;
	p->rows = p->s_q * p->group;
	p->kv = kv->data;
	p->at.kv = kv->at;
	p->kv_page = kv->stride[0];
	p->kv_token = kv->stride[1];
	p->kv_head = kv->stride[2];

	TRY(read_tensor(ctx, "block_table", a->block_table, 2, 0, "[b, max_pages]", table));
	TRY(check_dtype(ctx, table, (struct fmla_dtype)FMLA_INT32, "int32"));
	TRY(check_device(ctx, table, q));
	TRY(check_dim(ctx, table, 0, p->b, "b"));
	TRY(check_last_stride(ctx, table));
	p->max_pages = table->n[1];
	p->block_table = (const int32_t *)(const void *)table->data;
	p->at.table = table->at;
	p->table_stride = table->stride[0];
	return FMLA_OK;
}

static fmla_status read_outputs(struct fmla_ctx *ctx, const struct fmla_decode_args *a, const struct view *q,
                                struct view *out, struct view *lse, struct problem *p)
{
	const int ragged = a->cu_seqlens_q != NULL, first = !ragged;
	if (a->out) {
		TRY(read_tensor(ctx, "out", a->out, 3 + first, 0, ragged ? "[total_q, h_q, d_v]" : "[b, s_q, h_q, d_v]", out));
		TRY(check_same_dtype(ctx, out, q));
		TRY(check_device(ctx, out, q));
		TRY(check_last_stride(ctx, out));
		if (!ragged)
			TRY(check_dim(ctx, out, 0, p->b, "b"));
		TRY(check_dim(ctx, out, first, ragged ? p->total_q : p->s_q, ragged ? "total_q" : "s_q"));
		TRY(check_dim(ctx, out, first + 1, p->h_q, "h_q"));
		TRY(check_dim(ctx, out, first + 2, p->d_v, "d_v"));
		TRY(check_no_overlap(ctx, out));
		p->out = out->data;
		p->at.out = out->at;
		p->out_b = ragged ? 0 : out->stride[0];
		p->out_s = out->stride[first];
		p->out_h = out->stride[first + 1];
	}
	if (a->lse) {
		TRY(read_tensor(ctx, "lse", a->lse, 2 + first, 0, ragged ? "[h_q, total_q]" : "[b, h_q, s_q]", lse));
		TRY(check_dtype(ctx, lse, (struct fmla_dtype)FMLA_FP32, "fp32"));
		TRY(check_device(ctx, lse, q));
		if (!ragged)
			TRY(check_dim(ctx, lse, 0, p->b, "b"));
		TRY(check_dim(ctx, lse, first, p->h_q, "h_q"));
		TRY(check_dim(ctx, lse, first + 1, ragged ? p->total_q : p->s_q, ragged ? "total_q" : "s_q"));
		TRY(check_no_overlap(ctx, lse));
		p->lse = (float *)(void *)lse->data;
		p->at.lse = lse->at;
		p->lse_b = ragged ? 0 : lse->stride[0];
		p->lse_h = lse->stride[first];
		p->lse_s = lse->stride[first + 1];
	}
	return FMLA_OK;
}

static fmla_status read_plan(struct fmla_ctx *ctx, const struct fmla_decode_args *a, enum check_level level,
                             const struct view *q, struct problem *p)
{
	REQUIRE(ctx, !a->plan_parts == !a->plan_splits, "%s is NULL, %s is not: a plan is both or neither",
	        a->plan_parts ? "plan_splits" : "plan_parts", a->plan_parts ? "plan_parts" : "plan_splits");
	if (level == CHECK_SHAPES || (level == CHECK_DECODE && !a->plan_parts))
		return FMLA_OK;
	struct view parts, splits;
	TRY(read_tensor(ctx, "plan_parts", a->plan_parts, 2, 0, "[num_parts, 8]", &parts));
	TRY(check_dtype(ctx, &parts, (struct fmla_dtype)FMLA_INT32, "int32"));
	TRY(check_device(ctx, &parts, q));
	TRY(check_dim(ctx, &parts, 1, PLAN_FIELDS, "fields of a row"));
	REQUIRE(ctx, parts.n[0] >= 1, "plan_parts has no rows");
	TRY(check_last_stride(ctx, &parts));
	REQUIRE(ctx, parts.stride[0] == PLAN_FIELDS, "stride 0 of plan_parts is %lld, must be %d",
	        (long long)parts.stride[0], PLAN_FIELDS);
	TRY(check_data(ctx, &parts, sizeof(int32_t)));
	TRY(read_vector(ctx, "plan_splits", a->plan_splits, p->b + 1, "b + 1", (struct fmla_dtype)FMLA_INT32, "int32", q,
	                &splits));
	TRY(check_data(ctx, &splits, sizeof(int32_t)));
	p->plan_parts = (struct part *)(void *)parts.data;
	p->at.parts = parts.at;
	p->at.splits = splits.at;
	p->num_parts = parts.n[0];
	p->plan_splits = (int32_t *)(void *)splits.data;
	return FMLA_OK;
}

/* What only the host can see: the values of lengths and offsets. */
static fmla_status check_lengths(struct fmla_ctx *ctx, const struct problem *p)
{
	const int64_t capacity = p->max_pages * p->page;
	for (int64_t i = 0; i < p->b; i++)
		REQUIRE(ctx, p->cache_seqlens[i] >= 0 && p->cache_seqlens[i] <= capacity,
		        "cache_seqlens[%lld] is %d, must be 0 .. max_pages * page = %lld", (long long)i, p->cache_seqlens[i],
		        (long long)capacity);
	if (!p->cu_seqlens_q)
		return FMLA_OK;
	REQUIRE(ctx, p->cu_seqlens_q[0] == 0, "cu_seqlens_q[0] is %d, must be 0", p->cu_seqlens_q[0]);
	for (int64_t i = 0; i < p->b; i++) {
		const int64_t s_q = (int64_t)p->cu_seqlens_q[i + 1] - p->cu_seqlens_q[i];
		REQUIRE(ctx, s_q >= 0 && s_q <= p->s_q, "cu_seqlens_q[%lld] - cu_seqlens_q[%lld] is %lld, must be 0 .. %lld",
		        (long long)i + 1, (long long)i, (long long)s_q, (long long)p->s_q);
	}
	REQUIRE(ctx, p->cu_seqlens_q[p->b] == p->total_q, "cu_seqlens_q[%lld] is %d, must be total_q = %lld",
	        (long long)p->b, p->cu_seqlens_q[p->b], (long long)p->total_q);
	return FMLA_OK;
}

/* Every table entry whose page holds a key that some row of the request may see. */
static fmla_status check_pages(struct fmla_ctx *ctx, const struct problem *p)
{
	for (int64_t i = 0; i < p->b; i++) {
		const struct keys k = request_keys(p, i);
		for (int64_t e = k.begin / p->page; e * p->page < k.end; e++) {
			const int32_t page = p->block_table[i * p->table_stride + e];
			if (page < 0 || page >= p->num_pages)
				return fmla_fail(ctx, FMLA_ERR_PAGE, "block_table[%lld, %lld] is %d, kv_cache has %lld pages",
				                 (long long)i, (long long)e, page, (long long)p->num_pages);
		}
	}
	return FMLA_OK;
}

fmla_status check_decode(struct fmla_ctx *ctx, const struct fmla_decode_args *args, enum check_level level,
                         struct problem *p)
{
	TRY(check_context(ctx));
	struct fmla_decode_args a;
	TRY(check_struct(ctx, "fmla_decode_args", args, &a, sizeof(a)));
	*p = (struct problem){.causal = a.causal, .window = a.window, .stream = a.stream};

	struct view q, kv, table, lens, cu, sink, out, lse; /* the optional ones are read where they are given */
	TRY(read_q(ctx, &a, &q, p));
	TRY(read_cache(ctx, &a, &q, &kv, &table, p));
	TRY(read_vector(ctx, "cache_seqlens", a.cache_seqlens, p->b, "b", (struct fmla_dtype)FMLA_INT32, "int32", &q,
	                &lens));
	p->cache_seqlens = (const int32_t *)(const void *)lens.data;
	p->at.lens = lens.at;
	if (a.cu_seqlens_q) {
		TRY(read_vector(ctx, "cu_seqlens_q", a.cu_seqlens_q, p->b + 1, "b + 1", (struct fmla_dtype)FMLA_INT32, "int32",
		                &q, &cu));
		p->cu_seqlens_q = (const int32_t *)(const void *)cu.data;
		p->at.cu = cu.at;
	}
	if (a.attn_sink) {
		TRY(read_vector(ctx, "attn_sink", a.attn_sink, p->h_q, "h_q", (struct fmla_dtype)FMLA_FP32, "fp32", &q, &sink));
		p->attn_sink = (const float *)(const void *)sink.data;
		p->at.sink = sink.at;
	}
	TRY(read_outputs(ctx, &a, &q, &out, &lse, p));

	p->scale = (float)a.softmax_scale;
	REQUIRE(ctx, isfinite(a.softmax_scale) && fabs(a.softmax_scale) <= FLT_MAX,
	        "softmax_scale is %g, must be finite in fp32", a.softmax_scale);
	REQUIRE(ctx, a.causal == 0 || a.causal == 1, "causal is %d, must be 0 or 1", a.causal);
	REQUIRE(ctx, a.window >= 0, "window is %lld, must not be negative", (long long)a.window);
	const uint32_t known = FMLA_EMPTY_LSE_NEG_INF | FMLA_BATCH_INVARIANT | FMLA_CHECK_PAGES;
	REQUIRE(ctx, (a.flags & ~known) == 0, "flags is 0x%x, known are 0x%x", a.flags, known);
	p->empty_lse = a.flags & FMLA_EMPTY_LSE_NEG_INF ? -INFINITY : INFINITY;
	p->batch_invariant = (a.flags & FMLA_BATCH_INVARIANT) != 0;
	p->check_pages = (a.flags & FMLA_CHECK_PAGES) != 0;

	TRY(read_plan(ctx, &a, level, &q, p));
	p->workspace = a.workspace;
	p->workspace_size = a.workspace_size;
	if (level == CHECK_SHAPES)
		return FMLA_OK;

	TRY(check_data(ctx, &lens, sizeof(int32_t)));
	if (a.cu_seqlens_q)
		TRY(check_data(ctx, &cu, sizeof(int32_t)));
	const int host = p->device.type == FMLA_DEVICE_CPU;
	if (host)
		TRY(check_lengths(ctx, p));
	if (level == CHECK_PLAN)
		return FMLA_OK;

	REQUIRE(ctx, a.out, "out is NULL, must be a tensor");
	TRY(check_data(ctx, &q, value_bytes(q.dtype)));
	TRY(check_data(ctx, &kv, 16));
	TRY(check_data(ctx, &table, sizeof(int32_t)));
	if (a.attn_sink)
		TRY(check_data(ctx, &sink, sizeof(float)));
	TRY(check_data(ctx, &out, value_bytes(out.dtype)));
	if (a.lse)
		TRY(check_data(ctx, &lse, sizeof(float)));
	return host ? check_pages(ctx, p) : FMLA_OK;
}

fmla_status check_plan_rows(struct fmla_ctx *ctx, const struct problem *p, int64_t num_parts)
{
	REQUIRE(ctx, p->num_parts >= num_parts, "plan_parts has %lld rows, fmla_plan_parts says %lld",
	        (long long)p->num_parts, (long long)num_parts);
	return FMLA_OK;
}

fmla_status check_workspace(struct fmla_ctx *ctx, const struct problem *p, size_t needed)
{
	if (needed == 0)
		return FMLA_OK;
	if (!p->workspace)
		return fmla_fail(ctx, FMLA_ERR_WORKSPACE, "workspace is NULL, %zu bytes are needed", needed);
	if (p->device.type != FMLA_DEVICE_OPENCL && (uintptr_t)p->workspace % 256 != 0)
		return fmla_fail(ctx, FMLA_ERR_WORKSPACE, "workspace is %p, must be 256-byte aligned", p->workspace);
	if (p->workspace_size < needed)
		return fmla_fail(ctx, FMLA_ERR_WORKSPACE, "workspace_size is %zu, %zu bytes are needed", p->workspace_size,
		                 needed);
	return FMLA_OK;
}

/* ---- merge ----------------------------------------------------------------------------------------------------- */

fmla_status check_merge(struct fmla_ctx *ctx, const struct fmla_merge_args *args, struct merge_problem *p)
{
	TRY(check_context(ctx));
	struct fmla_merge_args a;
	TRY(check_struct(ctx, "fmla_merge_args", args, &a, sizeof(a)));
	*p = (struct merge_problem){.stream = a.stream};

	struct view in, in_lse, sink, out, lse;
	TRY(read_tensor(ctx, "partial_out", a.partial_out, 5, 0, "[n, b, s_q, h_q, d_v]", &in));
	TRY(read_value_type(ctx, &in, 1, &p->in_type));
	TRY(check_last_stride(ctx, &in));
	TRY(check_strides_of_8(ctx, &in));
	p->device = in.device;
	p->n = in.n[0];
	p->b = in.n[1];
	p->s_q = in.n[2];
	p->h_q = in.n[3];
	p->d_v = in.n[4];
	REQUIRE(ctx, p->d_v >= 8 && p->d_v % 8 == 0, "d_v (last dimension of partial_out) is %lld, must be a multiple of 8",
	        (long long)p->d_v);
	int64_t rows;
	const int overflow = __builtin_mul_overflow(p->b, p->s_q, &rows) || __builtin_mul_overflow(rows, p->h_q, &rows);
	REQUIRE(ctx, !overflow && rows <= INT32_MAX, "b * s_q * h_q is %lld * %lld * %lld, must not exceed 2147483647",
	        (long long)p->b, (long long)p->s_q, (long long)p->h_q);
	TRY(check_data(ctx, &in, 16));
	p->in = in.data;
	p->at.in = in.at;
	p->in_n = in.stride[0];
	p->in_b = in.stride[1];
	p->in_s = in.stride[2];
	p->in_h = in.stride[3];

	TRY(read_tensor(ctx, "partial_lse", a.partial_lse, 4, 0, "[n, b, h_q, s_q]", &in_lse));
	TRY(check_dtype(ctx, &in_lse, (struct fmla_dtype)FMLA_FP32, "fp32"));
	TRY(check_device(ctx, &in_lse, &in));
	TRY(check_dim(ctx, &in_lse, 0, p->n, "n"));
	TRY(check_dim(ctx, &in_lse, 1, p->b, "b"));
	TRY(check_dim(ctx, &in_lse, 2, p->h_q, "h_q"));
	TRY(check_dim(ctx, &in_lse, 3, p->s_q, "s_q"));
	TRY(check_data(ctx, &in_lse, sizeof(float)));
	p->in_lse = (const float *)(const void *)in_lse.data;
	p->at.in_lse = in_lse.at;
	p->in_lse_n = in_lse.stride[0];
	p->in_lse_b = in_lse.stride[1];
	p->in_lse_h = in_lse.stride[2];
	p->in_lse_s = in_lse.stride[3];

	if (a.attn_sink) {
		TRY(read_vector(ctx, "attn_sink", a.attn_sink, p->h_q, "h_q", (struct fmla_dtype)FMLA_FP32, "fp32", &in,
		                &sink));
		TRY(check_data(ctx, &sink, sizeof(float)));
		p->attn_sink = (const float *)(const void *)sink.data;
		p->at.sink = sink.at;
	}

	TRY(read_tensor(ctx, "out", a.out, 4, 0, "[b, s_q, h_q, d_v]", &out));
	TRY(read_value_type(ctx, &out, 1, &p->out_type));
	TRY(check_device(ctx, &out, &in));
	TRY(check_last_stride(ctx, &out));
	TRY(check_dim(ctx, &out, 0, p->b, "b"));
	TRY(check_dim(ctx, &out, 1, p->s_q, "s_q"));
	TRY(check_dim(ctx, &out, 2, p->h_q, "h_q"));
	TRY(check_dim(ctx, &out, 3, p->d_v, "d_v"));
	TRY(check_no_overlap(ctx, &out));
	TRY(check_data(ctx, &out, value_bytes(out.dtype)));
	p->out = out.data;
	p->at.out = out.at;
	p->out_b = out.stride[0];
	p->out_s = out.stride[1];
	p->out_h = out.stride[2];

	if (a.lse) {
		TRY(read_tensor(ctx, "lse", a.lse, 3, 0, "[b, h_q, s_q]", &lse));
		TRY(check_dtype(ctx, &lse, (struct fmla_dtype)FMLA_FP32, "fp32"));
		TRY(check_device(ctx, &lse, &in));
		TRY(check_dim(ctx, &lse, 0, p->b, "b"));
		TRY(check_dim(ctx, &lse, 1, p->h_q, "h_q"));
		TRY(check_dim(ctx, &lse, 2, p->s_q, "s_q"));
		TRY(check_no_overlap(ctx, &lse));
		TRY(check_data(ctx, &lse, sizeof(float)));
		p->lse = (float *)(void *)lse.data;
		p->at.lse = lse.at;
		p->lse_b = lse.stride[0];
		p->lse_h = lse.stride[1];
		p->lse_s = lse.stride[2];
	}
	REQUIRE(ctx, (a.flags & ~(uint32_t)FMLA_EMPTY_LSE_NEG_INF) == 0, "flags is 0x%x, known is 0x%x", a.flags,
	        FMLA_EMPTY_LSE_NEG_INF);
	p->empty_lse = a.flags & FMLA_EMPTY_LSE_NEG_INF ? -INFINITY : INFINITY;
	return FMLA_OK;
}

/* ---- kv_append ------------------------------------------------------------------------------------------------- */

/* New rows [n, d] or [n, h_kv, d], in the shape of `as` but for the last dimension. */
static fmla_status read_rows(struct fmla_ctx *ctx, const char *name, const struct fmla_tensor *t, const struct view *kv,
                             struct view *v)
{
	TRY(read_tensor(ctx, name, t, 3, 2, "[n, d] or [n, h_kv, d]", v));
	TRY(check_same_dtype(ctx, v, kv));
	TRY(check_device(ctx, v, kv));
	TRY(check_last_stride(ctx, v));
	if (v->ndim == 3)
		TRY(check_dim(ctx, v, 1, kv->n[2], "h_kv of kv_cache"));
	else
		REQUIRE(ctx, kv->n[2] == 1, "%s is [n, d], but kv_cache has h_kv = %lld: must be [n, h_kv, d]", name,
		        (long long)kv->n[2]);
	return check_data(ctx, v, value_bytes(v->dtype));
}

static fmla_status check_slots(struct fmla_ctx *ctx, const struct append_problem *p)
{
	for (int64_t i = 0; i < p->n; i++) {
		const int64_t slot = append_slot(p, i);
		REQUIRE(ctx, slot < p->num_pages * p->page, "slot_mapping[%lld] is %lld, kv_cache has %lld * %lld slots",
		        (long long)i, (long long)slot, (long long)p->num_pages, (long long)p->page);
	}
	return FMLA_OK;
}

fmla_status check_append(struct fmla_ctx *ctx, const struct fmla_kv_append_args *args, struct append_problem *p)
{
	TRY(check_context(ctx));
	struct fmla_kv_append_args a;
	TRY(check_struct(ctx, "fmla_kv_append_args", args, &a, sizeof(a)));
	*p = (struct append_problem){.stream = a.stream};

	struct view kv, latent, rope, slots;
	TRY(read_tensor(ctx, "kv_cache", a.kv_cache, 4, 0, "[num_pages, page, h_kv, d_latent + d_rope]", &kv));
	TRY(read_value_type(ctx, &kv, 0, &p->type));
	TRY(check_last_stride(ctx, &kv));
	TRY(check_no_overlap(ctx, &kv));
	TRY(check_data(ctx, &kv, value_bytes(kv.dtype)));
	p->device = kv.device;
	p->num_pages = kv.n[0];
	p->page = kv.n[1];
	p->h_kv = kv.n[2];
	p->kv = kv.data;
	p->at.kv = kv.at;
	p->kv_page = kv.stride[0];
	p->kv_token = kv.stride[1];
	p->kv_head = kv.stride[2];
	REQUIRE(ctx, p->page >= 1, "page (dimension 1 of kv_cache) is 0");
	REQUIRE(ctx, p->h_kv >= 1, "h_kv (dimension 2 of kv_cache) is 0");

	TRY(read_rows(ctx, "kv_latent", a.kv_latent, &kv, &latent));
	p->n = latent.n[0];
	p->d_latent = latent.n[latent.ndim - 1];
	p->latent = latent.data;
	p->at.latent = latent.at;
	p->latent_n = latent.stride[0];
	p->latent_h = latent.ndim == 3 ? latent.stride[1] : 0;
	if (a.k_rope) {
		TRY(read_rows(ctx, "k_rope", a.k_rope, &kv, &rope));
		TRY(check_dim(ctx, &rope, 0, p->n, "n of kv_latent"));
		p->d_rope = rope.n[rope.ndim - 1];
		p->rope = rope.data;
		p->at.rope = rope.at;
		p->rope_n = rope.stride[0];
		p->rope_h = rope.ndim == 3 ? rope.stride[1] : 0;
	}
	REQUIRE(ctx, kv.n[3] >= 1 && p->d_latent + p->d_rope == kv.n[3],
	        "kv_latent has %lld values and k_rope %lld, kv_cache rows have %lld", (long long)p->d_latent,
	        (long long)p->d_rope, (long long)kv.n[3]);

	TRY(read_tensor(ctx, "slot_mapping", a.slot_mapping, 1, 0, "[n]", &slots));
	TRY(check_dim(ctx, &slots, 0, p->n, "n of kv_latent"));
	p->slots_64 = is_dtype(slots.dtype, (struct fmla_dtype)FMLA_INT64);
	if (!p->slots_64)
		TRY(check_dtype(ctx, &slots, (struct fmla_dtype)FMLA_INT32, "int64 or int32"));
	TRY(check_device(ctx, &slots, &kv));
	TRY(check_data(ctx, &slots, value_bytes(slots.dtype)));
	p->slots = slots.data;
	p->at.slots = slots.at;
	p->slots_stride = slots.stride[0];
	return p->device.type == FMLA_DEVICE_CPU ? check_slots(ctx, p) : FMLA_OK;
}
