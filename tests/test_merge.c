/* SPDX-License-Identifier: MIT
 *
 * fmla_merge: a decode cut into pieces of its keys and merged again is the whole decode; empty partials, sinks, wild
 * strides, all dtypes; every rule of its check. */
#include "harness.h"

#include "close.h"
#include "subjects.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct subject subjects[MAX_SUBJECTS];
static int num_subjects;
static fmla_ctx *ctx; /* of the subject at hand */

static const struct fmla_dtype bf16 = FMLA_BF16, fp16 = FMLA_FP16, fp32 = FMLA_FP32;

/* Tensors of one merge over n partials. */
struct merge {
	int64_t n, b, s_q, h_q, d_v;
	struct data_tensor in, in_lse, sink, out, lse;
	struct fmla_merge_args args;
};

static void *at(const struct data_tensor *t, int64_t i, int64_t j, int64_t k, int64_t l)
{
	const int64_t index[4] = {i, j, k, l};
	int64_t element = 0;
	for (int d = 0; d < t->t.ndim && d < 4; d++)
		element += index[d] * t->strides[d];
	return t->host + t->t.byte_offset + element * (t->t.dtype.bits / 8);
}

static void make_merge(struct merge *m, int64_t n, int64_t b, int64_t s_q, int64_t h_q, int64_t d_v,
                       struct fmla_dtype in_type, struct fmla_dtype out_type, bool wild)
{
	*m = (struct merge){.n = n, .b = b, .s_q = s_q, .h_q = h_q, .d_v = d_v};
	static const int in_order[5] = {2, 0, 3, 1, 4}, lse_order[4] = {3, 1, 0, 2}, out_order[4] = {1, 2, 0, 3};
	const int64_t in_pad[5] = {8, 16, 0, 24, 8}, odd_pad[4] = {1, 2, 3, 1};
	const int64_t in_shape[5] = {n, b, s_q, h_q, d_v}, lse_shape[4] = {n, b, h_q, s_q},
	              out_shape[4] = {b, s_q, h_q, d_v};
	data_tensor_make(&m->in, in_type, 5, in_shape, wild ? in_order : NULL, wild ? in_pad : NULL, wild ? 16 : 0);
	data_tensor_make(&m->in_lse, fp32, 4, lse_shape, wild ? lse_order : NULL, wild ? odd_pad : NULL, wild ? 4 : 0);
	data_tensor_make(&m->sink, fp32, 1, &h_q, NULL, NULL, 0);
	data_tensor_make(&m->out, out_type, 4, out_shape, wild ? out_order : NULL, wild ? odd_pad : NULL, wild ? 4 : 0);
	data_tensor_make(&m->lse, fp32, 3, lse_shape + 1, NULL, wild ? odd_pad : NULL, 0);
	memset(m->in.host, 0xff, m->in.bytes);
	memset(m->out.host, 0xff, m->out.bytes);
	memset(m->lse.host, 0xff, m->lse.bytes);
	for (int64_t h = 0; h < h_q; h++)
		*(float *)at(&m->sink, h, 0, 0, 0) = h % 3 ? (float)random_normal(3, (uint64_t)h) : INFINITY;
	m->args = (struct fmla_merge_args){.struct_size = sizeof(m->args),
	                                   .partial_out = &m->in.t,
	                                   .partial_lse = &m->in_lse.t,
	                                   .out = &m->out.t,
	                                   .lse = &m->lse.t};
}

static void free_merge(struct merge *m)
{
	data_tensor_free(&m->in);
	data_tensor_free(&m->in_lse);
	data_tensor_free(&m->sink);
	data_tensor_free(&m->out);
	data_tensor_free(&m->lse);
}

static void fill_random(struct merge *m, uint64_t seed)
{
	uint64_t r = 0;
	for (int64_t j = 0; j < m->n; j++)
		for (int64_t i = 0; i < m->b; i++)
			for (int64_t s = 0; s < m->s_q; s++)
				for (int64_t h = 0; h < m->h_q; h++) {
					const uint64_t kind = random_bits(seed, r++) % 5; /* two of five are empty, their values NaN */
					*(float *)at(&m->in_lse, j, i, h, s) = kind == 0   ? INFINITY
					                                       : kind == 1 ? -INFINITY
					                                                   : (float)(4 * random_normal(seed, r));
					for (int64_t v = 0; v < m->d_v; v++)
						value_set(m->in.t.dtype, at(&m->in, j, i, s, h), v,
						          kind <= 1 ? NAN : (float)(0.1 * random_normal(seed + 1, r * 10000 + (uint64_t)v)));
				}
}

/* The formula of the header, read naively, against what the library wrote. */
static void check_merged(const struct merge *m, const char *who)
{
	const int64_t rows = m->b * m->s_q * m->h_q;
	struct result got = {
	    m->b * m->s_q, m->h_q, m->d_v, malloc((size_t)(rows * m->d_v + 1) * 4), malloc((size_t)(rows + 1) * 4), 0};
	struct result want = {
	    m->b * m->s_q, m->h_q, m->d_v, malloc((size_t)(rows * m->d_v + 1) * 4), malloc((size_t)(rows + 1) * 4), 0};
	for (int64_t row = 0; row < rows; row++) {
		const int64_t h = row % m->h_q, s = row / m->h_q % m->s_q, i = row / m->h_q / m->s_q;
		double max = -INFINITY, sum = 0;
		for (int64_t j = 0; j < m->n; j++) {
			const float lse = *(float *)at(&m->in_lse, j, i, h, s);
			max = isinf(lse) ? max : fmax(max, lse);
		}
		for (int64_t j = 0; j < m->n; j++) {
			const float lse = *(float *)at(&m->in_lse, j, i, h, s);
			sum += isinf(lse) ? 0 : exp(lse - max);
		}
		const bool empty = sum == 0;
		const double lse = empty ? -INFINITY : max + log(sum);
		const double sunk = m->args.attn_sink ? 1 / (1 + exp(*(float *)at(&m->sink, h, 0, 0, 0) - lse)) : 1;
		want.lse[row] = !empty ? (float)lse : m->args.flags & FMLA_EMPTY_LSE_NEG_INF ? -INFINITY : INFINITY;
		got.lse[row] = m->args.lse ? *(float *)at(&m->lse, i, h, s, 0) : want.lse[row];
		for (int64_t v = 0; v < m->d_v; v++) {
			double out = 0;
			for (int64_t j = 0; j < m->n; j++) {
				const float lse_j = *(float *)at(&m->in_lse, j, i, h, s);
				if (!isinf(lse_j))
					out += exp(lse_j - max) / sum * value_get(m->in.t.dtype, at(&m->in, j, i, s, h), v);
			}
			want.out[row * m->d_v + v] = (float)(empty ? 0 : out * sunk);
			got.out[row * m->d_v + v] = value_get(m->out.t.dtype, at(&m->out, i, s, h, 0), v);
		}
	}
	char why[256];
	const bool close = close_results(&got, &want, why, sizeof(why));
	result_free(&got);
	result_free(&want);
	if (!close)
		fail_msg("%s: %s", who, why);
}

static void test_formula(void **state)
{
	(void)state;
	const struct fmla_dtype types[] = {bf16, fp16, fp32};
	static const int64_t shapes[][5] = {{1, 1, 1, 1, 512}, {2, 3, 2, 5, 512}, {7, 2, 1, 16, 512}, {3, 4, 3, 3, 8},
	                                    {33, 1, 2, 4, 72}, {0, 2, 2, 3, 512}, {4, 0, 1, 8, 512},  {2, 1, 5, 130, 128}};
	for (int s = 0; s < num_subjects; s++) {
		ctx = subject_context(&subjects[s]);
		assert_non_null(ctx);
		for (uint64_t n = 0; n < 8 * 9 * 2; n++) {
			const int64_t *x = shapes[n % 8];
			struct merge m;
			make_merge(&m, x[0], x[1], x[2], x[3], x[4], types[n / 8 % 3], types[n / 24 % 3], n >= 72);
			fill_random(&m, n);
			m.args.attn_sink = n % 3 ? &m.sink.t : NULL;
			m.args.flags = n % 2 ? FMLA_EMPTY_LSE_NEG_INF : 0;
			if (n % 5 == 4)
				m.args.lse = NULL;
			assert_ok(ctx, fmla_merge(ctx, &m.args));
			check_merged(&m, subjects[s].name);
			free_merge(&m);
		}
		fmla_ctx_destroy(ctx);
	}
}

/* Context parallelism: each rank decodes its own keys, the ranks' results are merged. */
static void test_decode_in_pieces(void **state)
{
	(void)state;
	enum { RANKS = 3, PIECE = 128 };
	struct test_case c = case_default;
	c.b = 2;
	c.h_q = 5;
	c.s_k = RANKS * PIECE;
	c.causal = 0;
	c.neg_inf = 1;
	struct data d;
	data_make(&d, &c);
	for (int s = 0; s < num_subjects; s++) {
		ctx = subject_context(&subjects[s]);
		assert_non_null(ctx);
		struct result whole, piece;
		assert_ok(ctx, data_decode(&d, ctx, &whole, NULL));
		struct merge m;
		make_merge(&m, RANKS + 1, c.b, 1, c.h_q, 512, fp32, fp32, true);
		struct data_tensor *table = &d.tensors[DATA_TABLE];
		int32_t *lens = (int32_t *)(void *)d.tensors[DATA_LENS].host;
		for (int64_t rank = 0; rank <= RANKS; rank++) { /* the last rank has no keys */
			table->t.byte_offset = (uint64_t)(rank < RANKS ? rank * PIECE / c.page * 4 : 0);
			lens[0] = lens[1] = rank < RANKS ? PIECE : 0;
			assert_ok(ctx, data_decode(&d, ctx, &piece, NULL));
			for (int64_t i = 0; i < c.b; i++)
				for (int64_t h = 0; h < c.h_q; h++) {
					*(float *)at(&m.in_lse, rank, i, h, 0) = piece.lse[i * c.h_q + h];
					memcpy(at(&m.in, rank, i, 0, h), piece.out + (i * c.h_q + h) * 512, 512 * sizeof(float));
				}
			result_free(&piece);
		}
		table->t.byte_offset = 0;
		lens[0] = lens[1] = (int32_t)c.s_k;
		assert_ok(ctx, fmla_merge(ctx, &m.args));
		struct result merged = {
		    c.b, c.h_q, 512, malloc((size_t)(c.b * c.h_q * 512) * 4), malloc((size_t)(c.b * c.h_q) * 4), 0};
		for (int64_t i = 0; i < c.b; i++)
			for (int64_t h = 0; h < c.h_q; h++) {
				merged.lse[i * c.h_q + h] = *(float *)at(&m.lse, i, h, 0, 0);
				memcpy(merged.out + (i * c.h_q + h) * 512, at(&m.out, i, 0, h, 0), 512 * sizeof(float));
			}
		char why[256];
		if (!close_results(&merged, &whole, why, sizeof(why)))
			fail_msg("%s: %s", subjects[s].name, why);
		result_free(&merged);
		result_free(&whole);
		free_merge(&m);
		fmla_ctx_destroy(ctx);
	}
	data_free(&d);
}

/* ---- rules ------------------------------------------------------------------------------------------------------- */

#define RULE(id) static void rule_##id(struct merge *m)
/* clang-format off */
RULE(size)            { m->args.struct_size = 4; }
RULE(in_null)         { m->args.partial_out = NULL; }
RULE(in_ndim)         { m->in.t.ndim = 4; }
RULE(in_dtype)        { m->in.t.dtype.code = 0; }
RULE(in_last_stride)  { m->in.strides[4] = 2; }
RULE(in_stride)       { m->in.strides[1] += 4; }
RULE(in_d_v)          { m->in.shape[4] = 12; }
RULE(in_d_v_0)        { m->in.shape[4] = 0; }
RULE(in_rows)         { m->in.shape[1] = m->in.shape[2] = m->in.shape[3] = 0x7fffffff;
                        m->in.strides[1] = m->in.strides[2] = m->in.strides[3] = 0; }
RULE(in_data)         { m->in.t.data = NULL; }
RULE(in_align)        { m->in.t.byte_offset += 8; }
RULE(lse_null)        { m->args.partial_lse = NULL; }
RULE(lse_dtype)       { m->in_lse.t.dtype = bf16; }
RULE(lse_device)      { m->in_lse.t.device.id = 2; }
RULE(lse_n)           { m->in_lse.shape[0]++; }
RULE(lse_b)           { m->in_lse.shape[1]++; }
RULE(lse_h_q)         { m->in_lse.shape[2]++; }
RULE(lse_s_q)         { m->in_lse.shape[3]++; }
RULE(lse_data)        { m->in_lse.t.data = NULL; }
RULE(sink_width)      { m->args.attn_sink = &m->sink.t; m->sink.shape[0]--; }
RULE(sink_data)       { m->args.attn_sink = &m->sink.t; m->sink.t.data = NULL; }
RULE(out_null)        { m->args.out = NULL; }
RULE(out_dtype)       { m->out.t.dtype.bits = 64; }
RULE(out_device)      { m->out.t.device.type = FMLA_DEVICE_CUDA; }
RULE(out_last_stride) { m->out.strides[3] = 2; }
RULE(out_b)           { m->out.shape[0]--; }
RULE(out_s_q)         { m->out.shape[1]--; }
RULE(out_h_q)         { m->out.shape[2]--; }
RULE(out_d_v)         { m->out.shape[3]--; }
RULE(out_overlap)     { m->out.strides[0] = 0; }
RULE(out_data)        { m->out.t.data = NULL; }
RULE(to_ndim)         { m->lse.t.ndim = 4; }
RULE(to_dtype)        { m->lse.t.dtype = fp16; }
RULE(to_device)       { m->lse.t.device.id = 1; }
RULE(to_b)            { m->lse.shape[0]--; }
RULE(to_h_q)          { m->lse.shape[1]--; }
RULE(to_s_q)          { m->lse.shape[2]--; }
RULE(to_overlap)      { m->lse.strides[1] = 0; }
RULE(to_data)         { m->lse.t.data = NULL; }
RULE(flags)           { m->args.flags = FMLA_BATCH_INVARIANT; }
/* clang-format on */

static const struct rule {
	const char *name;
	void (*break_it)(struct merge *m);
	const char *words;
} rules[] = {
#define A(id, words)          \
	{                         \
#id, rule_##id, words \
	}
    A(size, "fmla_merge_args.struct_size is 4"),
    A(in_null, "partial_out is NULL"),
    A(in_ndim, "partial_out has 4 dimensions"),
    A(in_dtype, "dtype of partial_out is"),
    A(in_last_stride, "last stride of partial_out is 2"),
    A(in_stride, "stride 1 of partial_out is"),
    A(in_d_v, "d_v (last dimension of partial_out) is 12"),
    A(in_d_v_0, "d_v (last dimension of partial_out) is 0"),
    A(in_rows, "b * s_q * h_q is 2147483647 * 2147483647 * 2147483647"),
    A(in_data, "data of partial_out is NULL"),
    A(in_align, "16-byte aligned"),
    A(lse_null, "partial_lse is NULL"),
    A(lse_dtype, "dtype of partial_lse"),
    A(lse_device, "partial_lse is on device 1:2, partial_out on 1:0"),
    A(lse_n, "dimension 0 of partial_lse is 4, must be 3 (n)"),
    A(lse_b, "dimension 1 of partial_lse is 3, must be 2 (b)"),
    A(lse_h_q, "dimension 2 of partial_lse is 5, must be 4 (h_q)"),
    A(lse_s_q, "dimension 3 of partial_lse is 3, must be 2 (s_q)"),
    A(lse_data, "data of partial_lse is NULL"),
    A(sink_width, "dimension 0 of attn_sink is 3, must be 4 (h_q)"),
    A(sink_data, "data of attn_sink is NULL"),
    A(out_null, "out is NULL"),
    A(out_dtype, "dtype of out is"),
    A(out_device, "out is on device 2:0"),
    A(out_last_stride, "last stride of out is 2"),
    A(out_b, "dimension 0 of out is 1, must be 2 (b)"),
    A(out_s_q, "dimension 1 of out is 1, must be 2 (s_q)"),
    A(out_h_q, "dimension 2 of out is 3, must be 4 (h_q)"),
    A(out_d_v, "dimension 3 of out is 511, must be 512 (d_v)"),
    A(out_overlap, "stride 0 of out is 0"),
    A(out_data, "data of out is NULL"),
    A(to_ndim, "lse has 4 dimensions"),
    A(to_dtype, "dtype of lse"),
    A(to_device, "lse is on device 1:1"),
    A(to_b, "dimension 0 of lse is 1, must be 2 (b)"),
    A(to_h_q, "dimension 1 of lse is 3, must be 4 (h_q)"),
    A(to_s_q, "dimension 2 of lse is 1, must be 2 (s_q)"),
    A(to_overlap, "stride 1 of lse is 0"),
    A(to_data, "data of lse is NULL"),
    A(flags, "flags is 0x2"),
#undef A
};

static void test_rule(void **state)
{
	const struct rule *rule = *state;
	ctx = subject_context(&subjects[0]);
	assert_non_null(ctx);
	struct merge m;
	make_merge(&m, 3, 2, 2, 4, 512, bf16, bf16, false);
	fill_random(&m, 1);
	rule->break_it(&m);
	assert_int_equal(fmla_merge(ctx, &m.args), FMLA_ERR_ARGUMENT);
	if (!strstr(fmla_last_error(ctx), rule->words))
		fail_msg("%s: '%s' does not say '%s'", rule->name, fmla_last_error(ctx), rule->words);
	for (size_t i = 0; i < m.out.bytes; i++)
		assert_int_equal((unsigned char)m.out.host[i], 0xff);
	free_merge(&m);
	fmla_ctx_destroy(ctx);
}

int main(void)
{
	char missing[64];
	num_subjects = subjects_here(subjects, missing, sizeof(missing));
	enum { NUM_RULES = sizeof(rules) / sizeof(rules[0]) };
	struct CMUnitTest tests[2 + NUM_RULES] = {cmocka_unit_test(test_formula), cmocka_unit_test(test_decode_in_pieces)};
	for (int i = 0; i < NUM_RULES; i++)
		tests[2 + i] =
		    (struct CMUnitTest){.name = rules[i].name, .test_func = test_rule, .initial_state = (void *)&rules[i]};
	return cmocka_run_group_tests_name("merge", tests, NULL, NULL) != 0;
}
