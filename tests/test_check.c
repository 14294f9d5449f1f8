/* SPDX-License-Identifier: MIT
 *
 * Stage 1.  A valid call, then one broken thing at a time: the status, the words of the sentence, and that nothing was
 * written.  Every rule of src/check.c and src/check_tensor.c has its line here. */
#include "harness.h"

#include "close.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static fmla_ctx *ctx;

/* ---- one valid call of each kind, in parts that a rule may break ------------------------------------------------ */

/* A case with everything in it, its plan and its workspace. */
struct call {
	struct data d;
	struct data_tensor parts, splits;
	void *workspace;
	size_t workspace_size;
};

static void make_call(struct call *k, const char *line)
{
	struct test_case c;
	char why[128];
	if (!case_parse(line, &c, why, sizeof(why)))
		fail_msg("%s", why);
	data_make(&k->d, &c);
	int64_t num_parts;
	assert_ok(ctx, fmla_plan_parts(ctx, &k->d.args, &num_parts));
	const int64_t shape[2] = {num_parts, 8}, n = c.b + 1;
	data_tensor_make(&k->parts, (struct fmla_dtype)FMLA_INT32, 2, shape, NULL, NULL, 0);
	data_tensor_make(&k->splits, (struct fmla_dtype)FMLA_INT32, 1, &n, NULL, NULL, 0);
	memset(k->parts.host, 0, k->parts.bytes);
	memset(k->splits.host, 0, k->splits.bytes);
	assert_ok(ctx, fmla_workspace_size(ctx, &k->d.args, &k->workspace_size));
	k->workspace = guarded_alloc(k->workspace_size, 256);
	k->d.args.workspace = k->workspace;
	k->d.args.workspace_size = k->workspace_size;
}

static void free_call(struct call *k)
{
	guarded_free(k->workspace, k->workspace_size);
	data_tensor_free(&k->parts);
	data_tensor_free(&k->splits);
	data_free(&k->d);
}

static void move(struct call *k, int32_t device_type)
{
	for (int i = 0; i < DATA_TENSORS; i++)
		k->d.tensors[i].t.device.type = device_type;
}

#define ARGS         (k->d.args)
#define T(name)      (k->d.tensors[DATA_##name])
#define INTS(tensor) ((int32_t *)(void *)((tensor).host + (tensor).t.byte_offset))
#define GIVE()       (ARGS.plan_parts = &k->parts.t, ARGS.plan_splits = &k->splits.t)
#define RULE(id)     static void rule_##id(struct call *k)

/* clang-format off */
RULE(args_size_0)         { ARGS.struct_size = 0; }
RULE(args_size_small)     { ARGS.struct_size = sizeof(ARGS) - 8; }
RULE(args_size_wild)      { ARGS.struct_size = (size_t)1 << 40; }
RULE(q_null)              { ARGS.q = NULL; }
RULE(q_ndim)              { T(Q).t.ndim = 3; }
RULE(q_ndim_negative)     { T(Q).t.ndim = -1; }
RULE(q_shape_null)        { T(Q).t.shape = NULL; }
RULE(q_dim_negative)      { T(Q).shape[0] = -1; }
RULE(q_dim_huge)          { T(Q).shape[1] = (int64_t)1 << 31; }
RULE(q_stride_negative)   { T(Q).strides[1] = -8; }
RULE(q_stride_overflow)   { T(Q).strides[0] = INT64_MAX / 2; }
RULE(q_span_overflow)     { T(Q).strides[0] = INT64_MAX / 20; }
RULE(q_last_stride)       { T(Q).strides[3] = 2; }
RULE(q_offset)            { T(Q).t.byte_offset = UINT64_MAX; }
RULE(q_dtype_code)        { T(Q).t.dtype.code = 0; }
RULE(q_dtype_fp32)        { T(Q).t.dtype = (struct fmla_dtype)FMLA_FP32; }
RULE(q_dtype_lanes)       { T(Q).t.dtype.lanes = 2; }
RULE(q_no_heads)          { T(Q).shape[2] = 0; }
RULE(q_no_tokens)         { T(Q).shape[1] = 0; }
RULE(q_dqk)               { T(Q).shape[3] = 575; }
RULE(q_many_tokens)       { T(Q).shape[0] = T(Q).shape[1] = 65536; T(Q).strides[0] = T(Q).strides[1] = 0; }
RULE(q_many_rows)         { T(Q).shape[1] = T(Q).shape[2] = 65536; T(Q).strides[1] = T(Q).strides[2] = 0; }
RULE(q_data)              { T(Q).t.data = NULL; }
RULE(q_odd)               { T(Q).t.byte_offset += 1; }
RULE(head_dim_v)          { ARGS.head_dim_v = 576; }
RULE(head_dim_v_negative) { ARGS.head_dim_v = -512; }
RULE(max_seqlen_uniform)  { ARGS.max_seqlen_q = 2; }

RULE(kv_null)             { ARGS.kv_cache = NULL; }
RULE(kv_ndim)             { T(KV).t.ndim = 3; }
RULE(kv_dtype)            { T(KV).t.dtype = (struct fmla_dtype)FMLA_FP16; }
RULE(kv_device)           { T(KV).t.device.id = 1; }
RULE(kv_last_stride)      { T(KV).strides[3] = 2; }
RULE(kv_stride_of_8)      { T(KV).strides[1] += 4; }
RULE(kv_width)            { T(KV).shape[3] = 512; }
RULE(kv_page_0)           { T(KV).shape[1] = 0; }
RULE(kv_no_heads)         { T(KV).shape[2] = 0; }
RULE(kv_heads)            { T(KV).shape[2] = 3; }
RULE(kv_data)             { T(KV).t.data = NULL; }
RULE(kv_align)            { T(KV).t.byte_offset += 8; }

RULE(table_null)          { ARGS.block_table = NULL; }
RULE(table_ndim)          { T(TABLE).t.ndim = 1; }
RULE(table_dtype)         { T(TABLE).t.dtype = (struct fmla_dtype)FMLA_INT64; }
RULE(table_device)        { T(TABLE).t.device.type = FMLA_DEVICE_CUDA; }
RULE(table_b)             { T(TABLE).shape[0]++; }
RULE(table_stride)        { T(TABLE).strides[1] = 2; }
RULE(table_data)          { T(TABLE).t.data = NULL; }
RULE(table_odd)           { T(TABLE).t.byte_offset = 2; }

RULE(lens_null)           { ARGS.cache_seqlens = NULL; }
RULE(lens_ndim)           { T(LENS).t.ndim = 2; }
RULE(lens_dtype)          { T(LENS).t.dtype = (struct fmla_dtype)FMLA_INT64; }
RULE(lens_b)              { T(LENS).shape[0]--; }
RULE(lens_stride)         { T(LENS).strides[0] = 2; }
RULE(lens_device)         { T(LENS).t.device.type = FMLA_DEVICE_CUDA; }
RULE(lens_data)           { T(LENS).t.data = NULL; }
RULE(lens_odd)            { T(LENS).t.byte_offset = 1; }
RULE(lens_negative)       { INTS(T(LENS))[2] = -5; }
RULE(lens_too_long)       { INTS(T(LENS))[1] = 257; }

RULE(sink_ndim)           { T(SINK).t.ndim = 0; }
RULE(sink_width)          { T(SINK).shape[0]++; }
RULE(sink_dtype)          { T(SINK).t.dtype = (struct fmla_dtype)FMLA_BF16; }
RULE(sink_data)           { T(SINK).t.data = NULL; }

RULE(out_null)            { ARGS.out = NULL; }
RULE(out_ndim)            { T(OUT).t.ndim = 3; }
RULE(out_dtype)           { T(OUT).t.dtype = (struct fmla_dtype)FMLA_FP32; }
RULE(out_device)          { T(OUT).t.device.id = 3; }
RULE(out_b)               { T(OUT).shape[0] = 4; }
RULE(out_s_q)             { T(OUT).shape[1] = 1; }
RULE(out_h_q)             { T(OUT).shape[2] = 5; }
RULE(out_d_v)             { T(OUT).shape[3] = 576; }
RULE(out_last_stride)     { T(OUT).strides[3] = 2; }
RULE(out_stride_0)        { T(OUT).strides[2] = 0; }
RULE(out_overlap)         { T(OUT).strides[1] = T(OUT).strides[2] * 3; }
RULE(out_data)            { T(OUT).t.data = NULL; }
RULE(out_odd)             { T(OUT).t.byte_offset = 1; }
RULE(lse_ndim)            { T(LSE).t.ndim = 2; }
RULE(lse_dtype)           { T(LSE).t.dtype = (struct fmla_dtype)FMLA_FP16; }
RULE(lse_device)          { T(LSE).t.device.id = 3; }
RULE(lse_b)               { T(LSE).shape[0] = 1; }
RULE(lse_h_q)             { T(LSE).shape[1] = 1; }
RULE(lse_s_q)             { T(LSE).shape[2] = 1; }
RULE(lse_overlap)         { T(LSE).strides[1] = 1; }
RULE(lse_data)            { T(LSE).t.data = NULL; }
RULE(lse_odd)             { T(LSE).t.byte_offset = 2; }

RULE(scale_nan)           { ARGS.softmax_scale = NAN; }
RULE(scale_inf)           { ARGS.softmax_scale = INFINITY; }
RULE(scale_fp32)          { ARGS.softmax_scale = -1e39; }
RULE(causal)              { ARGS.causal = 2; }
RULE(causal_negative)     { ARGS.causal = -1; }
RULE(window)              { ARGS.window = -1; }
RULE(flags)               { ARGS.flags = 8; }

RULE(plan_parts_only)     { GIVE(); ARGS.plan_splits = NULL; }
RULE(plan_splits_only)    { GIVE(); ARGS.plan_parts = NULL; }
RULE(parts_ndim)          { GIVE(); k->parts.t.ndim = 1; }
RULE(parts_dtype)         { GIVE(); k->parts.t.dtype = (struct fmla_dtype)FMLA_FP32; }
RULE(parts_device)        { GIVE(); k->parts.t.device.id = 1; }
RULE(parts_fields)        { GIVE(); k->parts.shape[1] = 7; }
RULE(parts_none)          { GIVE(); k->parts.shape[0] = 0; }
RULE(parts_last_stride)   { GIVE(); k->parts.strides[1] = 2; }
RULE(parts_stride)        { GIVE(); k->parts.strides[0] = 16; }
RULE(parts_data)          { GIVE(); k->parts.t.data = NULL; }
RULE(parts_odd)           { GIVE(); k->parts.t.byte_offset = 2; }
RULE(splits_b)            { GIVE(); k->splits.shape[0]--; }
RULE(splits_dtype)        { GIVE(); k->splits.t.dtype = (struct fmla_dtype)FMLA_INT64; }
RULE(splits_data)         { GIVE(); k->splits.t.data = NULL; }

RULE(workspace_null)      { ARGS.workspace = NULL; }
RULE(workspace_odd)       { ARGS.workspace = (char *)ARGS.workspace + 64; }
RULE(workspace_small)     { ARGS.workspace_size--; }
RULE(page_high)           { INTS(T(TABLE))[4 * 1 + 0] = (int32_t)T(KV).shape[0]; }
RULE(page_negative)       { INTS(T(TABLE))[4 * 2 + 3] = -1; }
RULE(device_unknown)      { move(k, 99); }

RULE(opencl)              { move(k, FMLA_DEVICE_OPENCL); }
RULE(opencl_lens_odd)     { move(k, FMLA_DEVICE_OPENCL); T(LENS).t.byte_offset += 2; }
RULE(opencl_q_odd)        { move(k, FMLA_DEVICE_OPENCL); T(Q).t.byte_offset += 1; }
RULE(opencl_kv_align)     { move(k, FMLA_DEVICE_OPENCL); T(KV).t.byte_offset += 8; }
RULE(opencl_kv_data)      { move(k, FMLA_DEVICE_OPENCL); T(KV).t.data = NULL; }

RULE(cu_ndim)             { T(CU).t.ndim = 2; }
RULE(cu_none)             { T(CU).shape[0] = 0; }
RULE(cu_dtype)            { T(CU).t.dtype = (struct fmla_dtype)FMLA_INT64; }
RULE(cu_stride)           { T(CU).strides[0] = 3; }
RULE(cu_device)           { T(CU).t.device.id = 1; }
RULE(cu_data)             { T(CU).t.data = NULL; }
RULE(cu_first)            { INTS(T(CU))[0] = 1; }
RULE(cu_falls)            { INTS(T(CU))[2] = -1; }
RULE(cu_steep)            { ARGS.max_seqlen_q = 1; }
RULE(cu_last)             { INTS(T(CU))[3] = INTS(T(CU))[2]; }
RULE(max_seqlen_negative) { ARGS.max_seqlen_q = -1; }
RULE(max_seqlen_high)     { ARGS.max_seqlen_q = 1000; }
RULE(ragged_q_ndim)       { T(Q).t.ndim = 4; }
RULE(ragged_out_tokens)   { T(OUT).shape[0]--; }
RULE(ragged_lse_tokens)   { T(LSE).shape[1]--; }
/* clang-format on */

enum kind { UNIFORM, RAGGED };

static const struct rule {
	const char *name;
	enum kind kind;
	void (*break_it)(struct call *k);
	fmla_status status;
	const char *words; /* all, separated by '|', must be in the sentence */
} rules[] = {
#define A(id, words)                                      \
	{                                                     \
#id, UNIFORM, rule_##id, FMLA_ERR_ARGUMENT, words \
	}
#define R(id, words)                                     \
	{                                                    \
#id, RAGGED, rule_##id, FMLA_ERR_ARGUMENT, words \
	}
#define S(id, status, words)                              \
	{                                                     \
#id, UNIFORM, rule_##id, FMLA_ERR_##status, words \
	}
    A(args_size_0, "struct_size is 0|sizeof"),
    A(args_size_small, "fmla_decode_args.struct_size"),
    A(args_size_wild, "struct_size is 1099511627776"),
    A(q_null, "q is NULL|[b, s_q, h_q, d_qk]"),
    A(q_ndim, "q has 3 dimensions|[b, s_q, h_q, d_qk]"),
    A(q_ndim_negative, "q has -1 dimensions"),
    A(q_shape_null, "shape of q is NULL"),
    A(q_dim_negative, "dimension 0 of q is -1"),
    A(q_dim_huge, "dimension 1 of q is 2147483648"),
    A(q_stride_negative, "stride 1 of q is -8"),
    A(q_stride_overflow, "strides of q overflow|dimension 0"),
    A(q_span_overflow, "strides of q overflow"),
    A(q_last_stride, "last stride of q is 2"),
    A(q_offset, "byte_offset of q is 18446744073709551615"),
    A(q_dtype_code, "dtype of q is {code 0, bits 16, lanes 1}|bf16 or fp16"),
    A(q_dtype_fp32, "dtype of q is {code 2, bits 32, lanes 1}"),
    A(q_dtype_lanes, "dtype of q is|lanes 2"),
    A(q_no_heads, "h_q (dimension 2 of q) is 0"),
    A(q_no_tokens, "s_q (dimension 1 of q) is 0"),
    A(q_dqk, "d_qk (last dimension of q) is 575|576 or 512"),
    A(q_many_tokens, "b * s_q is 65536 * 65536"),
    A(q_many_rows, "query rows are|65536"),
    A(q_data, "data of q is NULL"),
    A(q_odd, "data of q is|2-byte aligned"),
    A(head_dim_v, "head_dim_v is 576, must be 512"),
    A(head_dim_v_negative, "head_dim_v is -512"),
    A(max_seqlen_uniform, "max_seqlen_q is 2|without cu_seqlens_q"),
    A(kv_null, "kv_cache is NULL"),
    A(kv_ndim, "kv_cache has 3 dimensions|[num_pages, page, h_kv, d_qk]"),
    A(kv_dtype, "dtype of kv_cache is|that of q"),
    A(kv_device, "kv_cache is on device 1:1, q on 1:0"),
    A(kv_last_stride, "last stride of kv_cache is 2"),
    A(kv_stride_of_8, "stride 1 of kv_cache is|multiple of 8"),
    A(kv_width, "dimension 3 of kv_cache is 512, must be 576"),
    A(kv_page_0, "page (dimension 1 of kv_cache) is 0"),
    A(kv_no_heads, "h_q 4 is not a multiple of h_kv 0"),
    A(kv_heads, "h_q 4 is not a multiple of h_kv 3"),
    A(kv_data, "data of kv_cache is NULL"),
    A(kv_align, "data of kv_cache is|16-byte aligned"),
    A(table_null, "block_table is NULL"),
    A(table_ndim, "block_table has 1 dimensions|[b, max_pages]"),
    A(table_dtype, "dtype of block_table is {code 0, bits 64, lanes 1}, must be int32"),
    A(table_device, "block_table is on device 2:0"),
    A(table_b, "dimension 0 of block_table is 4, must be 3 (b)"),
    A(table_stride, "last stride of block_table is 2"),
    A(table_data, "data of block_table is NULL"),
    A(table_odd, "data of block_table is|4-byte aligned"),
    A(lens_null, "cache_seqlens is NULL"),
    A(lens_ndim, "cache_seqlens has 2 dimensions"),
    A(lens_dtype, "dtype of cache_seqlens|int32"),
    A(lens_b, "dimension 0 of cache_seqlens is 2, must be 3 (b)"),
    A(lens_stride, "last stride of cache_seqlens is 2"),
    A(lens_device, "cache_seqlens is on device 2:0"),
    A(lens_data, "data of cache_seqlens is NULL"),
    A(lens_odd, "data of cache_seqlens is|4-byte aligned"),
    A(lens_negative, "cache_seqlens[2] is -5"),
    A(lens_too_long, "cache_seqlens[1] is 257|= 256"),
    A(sink_ndim, "attn_sink has 0 dimensions"),
    A(sink_width, "dimension 0 of attn_sink is 5, must be 4 (h_q)"),
    A(sink_dtype, "dtype of attn_sink|fp32"),
    A(sink_data, "data of attn_sink is NULL"),
    A(out_null, "out is NULL"),
    A(out_ndim, "out has 3 dimensions"),
    A(out_dtype, "dtype of out is|that of q"),
    A(out_device, "out is on device 1:3"),
    A(out_b, "dimension 0 of out is 4, must be 3 (b)"),
    A(out_s_q, "dimension 1 of out is 1, must be 2 (s_q)"),
    A(out_h_q, "dimension 2 of out is 5, must be 4 (h_q)"),
    A(out_d_v, "dimension 3 of out is 576, must be 512 (d_v)"),
    A(out_last_stride, "last stride of out is 2"),
    A(out_stride_0, "stride|of out is|share memory"),
    A(out_overlap, "stride|of out is|share memory"),
    A(out_data, "data of out is NULL"),
    A(out_odd, "data of out is|2-byte aligned"),
    A(lse_ndim, "lse has 2 dimensions"),
    A(lse_dtype, "dtype of lse|fp32"),
    A(lse_device, "lse is on device 1:3"),
    A(lse_b, "dimension 0 of lse is 1, must be 3 (b)"),
    A(lse_h_q, "dimension 1 of lse is 1, must be 4 (h_q)"),
    A(lse_s_q, "dimension 2 of lse is 1, must be 2 (s_q)"),
    A(lse_overlap, "stride|of lse is|share memory"),
    A(lse_data, "data of lse is NULL"),
    A(lse_odd, "data of lse is|4-byte aligned"),
    A(scale_nan, "softmax_scale is|finite"),
    A(scale_inf, "softmax_scale is inf"),
    A(scale_fp32, "softmax_scale is -1e+39"),
    A(causal, "causal is 2"),
    A(causal_negative, "causal is -1"),
    A(window, "window is -1"),
    A(flags, "flags is 0x8"),
    A(plan_parts_only, "plan_splits is NULL, plan_parts is not"),
    A(plan_splits_only, "plan_parts is NULL, plan_splits is not"),
    A(parts_ndim, "plan_parts has 1 dimensions"),
    A(parts_dtype, "dtype of plan_parts"),
    A(parts_device, "plan_parts is on device 1:1"),
    A(parts_fields, "dimension 1 of plan_parts is 7, must be 8"),
    A(parts_none, "plan_parts has no rows"),
    A(parts_last_stride, "last stride of plan_parts is 2"),
    A(parts_stride, "stride 0 of plan_parts is 16, must be 8"),
    A(parts_data, "data of plan_parts is NULL"),
    A(parts_odd, "data of plan_parts is|4-byte aligned"),
    A(splits_b, "dimension 0 of plan_splits is 3, must be 4 (b + 1)"),
    A(splits_dtype, "dtype of plan_splits"),
    A(splits_data, "data of plan_splits is NULL"),
    S(workspace_null, WORKSPACE, "workspace is NULL|bytes are needed"),
    S(workspace_odd, WORKSPACE, "workspace is|256-byte aligned"),
    S(workspace_small, WORKSPACE, "workspace_size is|bytes are needed"),
    S(page_high, PAGE, "block_table[1, 0] is|kv_cache has|pages"),
    S(page_negative, PAGE, "block_table[2, 3] is -1"),
    S(device_unknown, UNSUPPORTED, "device type 99|ref"),
    S(opencl, UNSUPPORTED, "device type 4 (opencl)"), /* all rules kept: it is the context that has no backend for it */
    A(opencl_lens_odd, "byte_offset of cache_seqlens is|multiple of 4"),
    A(opencl_q_odd, "byte_offset of q is|multiple of 2"),
    A(opencl_kv_align, "byte_offset of kv_cache is|multiple of 16"),
    A(opencl_kv_data, "data of kv_cache is NULL"),
    R(cu_ndim, "cu_seqlens_q has 2 dimensions"),
    R(cu_none, "cu_seqlens_q has no values"),
    R(cu_dtype, "dtype of cu_seqlens_q|int32"),
    R(cu_stride, "last stride of cu_seqlens_q is 3"),
    R(cu_device, "cu_seqlens_q is on device 1:1"),
    R(cu_data, "data of cu_seqlens_q is NULL"),
    R(cu_first, "cu_seqlens_q[0] is 1, must be 0"),
    R(cu_falls, "cu_seqlens_q[2] - cu_seqlens_q[1] is"),
    R(cu_steep, "must be 0 .. 1"),
    R(cu_last, "cu_seqlens_q[3] is|total_q"),
    R(max_seqlen_negative, "max_seqlen_q is -1"),
    R(max_seqlen_high, "max_seqlen_q is 1000"),
    R(ragged_q_ndim, "q has 4 dimensions|[total_q, h_q, d_qk]"),
    R(ragged_out_tokens, "dimension 0 of out is|(total_q)"),
    R(ragged_lse_tokens, "dimension 1 of lse is|(total_q)"),
#undef A
#undef R
#undef S
};

static const char *const lines[] = {
    [UNIFORM] = "b=3 s_q=2 h_q=4 s_k=256 sink=1", [RAGGED] = "b=3 s_q=4 h_q=4 s_k=256 ragged=1 seed=3"};

static bool all_bytes(const struct data_tensor *t, unsigned char byte)
{
	for (size_t i = 0; i < t->bytes; i++)
		if ((unsigned char)t->host[i] != byte)
			return false;
	return true;
}

static void test_rule(void **state)
{
	const struct rule *rule = *state;
	struct call k;
	make_call(&k, lines[rule->kind]);
	data_poison_outputs(&k.d);
	const struct data_tensor out = k.d.tensors[DATA_OUT], lse = k.d.tensors[DATA_LSE];
	rule->break_it(&k);
	const fmla_status status = fmla_decode(ctx, &k.d.args);
	if (status != rule->status)
		fail_msg("%s: status %d '%s', expected %d", rule->name, status, fmla_last_error(ctx), rule->status);
	assert_words(rule->name, fmla_last_error(ctx), rule->words);
	assert_true(all_bytes(&out, 0xff) && all_bytes(&lse, 0xff)); /* a rejected call writes nothing */
	free_call(&k);
}

/* ---- calls that need less, structs that grow -------------------------------------------------------------------- */

static void test_valid(void **state)
{
	(void)state;
	for (enum kind kind = UNIFORM; kind <= RAGGED; kind++) {
		struct call call, *k = &call;
		make_call(k, lines[kind]);
		assert_ok(ctx, fmla_decode(ctx, &ARGS));
		assert_string_equal(fmla_last_error(ctx), "");
		GIVE();
		assert_ok(ctx, fmla_plan(ctx, &ARGS));
		assert_ok(ctx, fmla_decode(ctx, &ARGS));
		ARGS.lse = NULL;
		ARGS.head_dim_v = 512;
		ARGS.flags = FMLA_CHECK_PAGES | FMLA_BATCH_INVARIANT | FMLA_EMPTY_LSE_NEG_INF;
		size_t bytes;
		assert_ok(ctx, fmla_workspace_size(ctx, &ARGS, &bytes));
		assert_true(bytes <= k->workspace_size);
		assert_ok(ctx, fmla_decode(ctx, &ARGS));
		free_call(k);
	}
}

/* Sizes come from shapes: no pointers, no outputs, no plan. */
static void test_shapes_only(void **state)
{
	(void)state;
	struct call call, *k = &call;
	make_call(k, lines[UNIFORM]);
	const size_t want = k->workspace_size;
	for (int i = 0; i < DATA_TENSORS; i++)
		k->d.tensors[i].t.data = NULL;
	ARGS.out = ARGS.lse = NULL;
	size_t bytes = 0;
	int64_t num_parts = 0;
	assert_ok(ctx, fmla_workspace_size(ctx, &ARGS, &bytes));
	assert_int_equal(bytes, want);
	assert_ok(ctx, fmla_plan_parts(ctx, &ARGS, &num_parts));
	assert_int_equal(num_parts, k->parts.shape[0]);
	assert_int_equal(fmla_workspace_size(ctx, &ARGS, NULL), FMLA_ERR_ARGUMENT);
	assert_string_equal(fmla_last_error(ctx), "bytes is NULL");
	assert_int_equal(fmla_plan_parts(ctx, &ARGS, NULL), FMLA_ERR_ARGUMENT);
	assert_string_equal(fmla_last_error(ctx), "num_parts is NULL");
	/* a plan needs the lengths as well, and room for its rows */
	assert_int_equal(fmla_plan(ctx, &ARGS), FMLA_ERR_ARGUMENT);
	assert_words("plan", fmla_last_error(ctx), "plan_parts is NULL");
	GIVE();
	assert_int_equal(fmla_plan(ctx, &ARGS), FMLA_ERR_ARGUMENT);
	assert_words("plan", fmla_last_error(ctx), "data of cache_seqlens is NULL");
	T(LENS).t.data = T(LENS).host;
	assert_ok(ctx, fmla_plan(ctx, &ARGS));
	k->parts.shape[0]--;
	assert_int_equal(fmla_plan(ctx, &ARGS), FMLA_ERR_ARGUMENT);
	assert_words("plan", fmla_last_error(ctx), "plan_parts has 1 rows, fmla_plan_parts says 2");
	free_call(k);
}

/* The struct of a newer caller: longer, with zeros or not where this version knows no field. */
static void test_longer_struct(void **state)
{
	(void)state;
	struct call call, *k = &call;
	make_call(k, lines[UNIFORM]);
	struct {
		struct fmla_decode_args args;
		char newer[24];
	} longer = {.args = ARGS};
	longer.args.struct_size = sizeof(longer);
	assert_ok(ctx, fmla_decode(ctx, &longer.args));
	longer.newer[20] = 1;
	assert_int_equal(fmla_decode(ctx, &longer.args), FMLA_ERR_UNSUPPORTED);
	assert_words("newer field", fmla_last_error(ctx), "a field that version|does not know");
	free_call(k);
}

/* Dimensions of size 1 carry no stride, and empty batches no data. */
static void test_meaningless_strides(void **state)
{
	(void)state;
	struct call call, *k = &call;
	make_call(k, "b=1 s_q=1 h_q=1 s_k=64");
	const int64_t wild[4] = {-3, 1, INT64_MAX, 7};
	for (int i = 0; i < 4; i++) {
		T(Q).strides[i % 3] = T(OUT).strides[i % 3] = T(LSE).strides[i % 3] = wild[i];
		T(KV).strides[2] = T(TABLE).strides[i % 2] = T(LENS).strides[0] = wild[i];
	}
	assert_ok(ctx, fmla_decode(ctx, &ARGS));
	struct result dense, got;
	data_result(&k->d, &got);
	T(Q).t.strides = T(KV).t.strides = T(TABLE).t.strides = T(LENS).t.strides = T(OUT).t.strides = NULL;
	assert_ok(ctx, fmla_decode(ctx, &ARGS));
	data_result(&k->d, &dense);
	assert_memory_equal(got.out, dense.out, 512 * sizeof(float));
	result_free(&got);
	result_free(&dense);
	free_call(k);

	make_call(k, "b=0");
	for (int i = 0; i < DATA_TENSORS; i++)
		if (i != DATA_KV)
			k->d.tensors[i].t.data = NULL;
	assert_ok(ctx, fmla_decode(ctx, &ARGS));
	GIVE();
	assert_ok(ctx, fmla_plan(ctx, &ARGS));
	assert_int_equal(INTS(k->parts)[0], INT32_MAX);
	assert_int_equal(INTS(k->splits)[0], 0);
	free_call(k);
}

int main(void)
{
	const struct fmla_ctx_options options = {.struct_size = sizeof(options), .backend = "ref", .num_threads = 2};
	if (fmla_ctx_create(&ctx, &options) != FMLA_OK)
		return 2;
	enum { NUM_RULES = sizeof(rules) / sizeof(rules[0]), NUM_OTHERS = 4 };
	struct CMUnitTest tests[NUM_RULES + NUM_OTHERS];
	for (int i = 0; i < NUM_RULES; i++)
		tests[i] =
		    (struct CMUnitTest){.name = rules[i].name, .test_func = test_rule, .initial_state = (void *)&rules[i]};
	const struct CMUnitTest others[NUM_OTHERS] = {
	    cmocka_unit_test(test_valid),
	    cmocka_unit_test(test_shapes_only),
	    cmocka_unit_test(test_longer_struct),
	    cmocka_unit_test(test_meaningless_strides),
	};
	memcpy(tests + NUM_RULES, others, sizeof(others));
	const int failed = cmocka_run_group_tests_name("check", tests, NULL, NULL);
	fmla_ctx_destroy(ctx);
	return failed != 0;
}
