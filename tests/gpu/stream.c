/* SPDX-License-Identifier: MIT
 *
 * merge and kv_append on the GPU: what `ref` answers, for every type, stride, alignment and kind of garbage. */
#include "gpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct fmla_dtype bf16 = FMLA_BF16, fp16 = FMLA_FP16, fp32 = FMLA_FP32;

static fmla_ctx *reference(void)
{
	const struct fmla_ctx_options options = {.struct_size = sizeof(options), .backend = "ref"};
	fmla_ctx *ref = NULL;
	fmla_ctx_create(&ref, &options);
	return ref;
}

static void fill(struct data_tensor *t, int byte)
{
	memset(t->host, byte, t->bytes);
}

static void free_all(struct data_tensor *host, struct gpu_tensor *gpu, int n)
{
	for (int i = 0; i < n; i++) {
		data_tensor_free(&host[i]);
		gpu_free(&gpu[i]);
	}
}

/* ---- merge ---- */

struct merge_case {
	int64_t n, b, s_q, h_q, d_v;
	const struct fmla_dtype *in, *out;
	int sink, no_lse, strided, odd, empty, neg_inf, nan; /* odd: rows of out are not 16-byte aligned */
};

enum { IN, IN_LSE, SINK, OUT, LSE, MERGE_TENSORS };

static void make_merge(const struct merge_case *c, struct data_tensor *t)
{
	static const int swapped[5] = {1, 0, 3, 2, 4}, lse_swapped[4] = {3, 1, 2, 0};
	const int64_t pad_in[5] = {8, 16, 8, 24, 8}, pad_out[4] = {8, 16, 8, c->odd ? 3 : 8}, pad_lse[4] = {1, 2, 3, 1};
	const int64_t in[5] = {c->n, c->b, c->s_q, c->h_q, c->d_v}, in_lse[4] = {c->n, c->b, c->h_q, c->s_q};
	data_tensor_make(&t[IN], *c->in, 5, in, c->strided ? swapped : NULL, c->strided ? pad_in : NULL, 0);
	data_tensor_make(&t[IN_LSE], fp32, 4, in_lse, c->strided ? lse_swapped : NULL, c->strided ? pad_lse : NULL, 0);
	data_tensor_make(&t[SINK], fp32, 1, &c->h_q, NULL, NULL, 0);
	data_tensor_make(&t[OUT], *c->out, 4, in + 1, NULL, c->strided || c->odd ? pad_out : NULL,
	                 c->odd ? c->out->bits / 8u : 0);
	data_tensor_make(&t[LSE], fp32, 3, in_lse + 1, NULL, c->strided ? pad_lse : NULL, 0);
	for (int i = 0; i < MERGE_TENSORS; i++)
		fill(&t[i], 0xff); /* NaN */

	const int64_t *s = t[IN].strides, *l = t[IN_LSE].strides;
	uint64_t i = 0;
	for (int64_t j = 0; j < c->n; j++)
		for (int64_t b = 0; b < c->b; b++)
			for (int64_t q = 0; q < c->s_q; q++)
				for (int64_t h = 0; h < c->h_q; h++, i++) {
					/* every fourth partial is empty, with NaN for values; the first row has nothing else */
					const bool empty = c->empty && (b + q + h == 0 || random_bits(1, i) % 4 == 0);
					const float inf = i % 2 ? INFINITY : -INFINITY;
					const float loud = h % 5 == 4 ? 3e4f : 0; /* far from 0, where exp alone would overflow */
					float lse = empty ? inf : loud + 5 * (float)random_normal(2, i);
					if (c->nan && j == c->n - 1 && h == 1)
						lse = NAN;
					value_set(fp32, t[IN_LSE].host, j * l[0] + b * l[1] + h * l[2] + q * l[3], lse);
					for (int64_t d = 0; !empty && d < c->d_v; d++)
						value_set(*c->in, t[IN].host, j * s[0] + b * s[1] + q * s[2] + h * s[3] + d,
						          (float)random_normal(3, i * 8192 + (uint64_t)d));
				}
	for (int64_t h = 0; h < c->h_q; h++)
		value_set(fp32, t[SINK].host, h,
		          h == 1   ? INFINITY
		          : h == 2 ? -INFINITY
		                   : 4 * (float)random_normal(4, (uint64_t)h));
}

static bool run_merge(fmla_ctx *gpu, fmla_ctx *ref, const struct merge_case *c, struct data_tensor *t,
                      struct gpu_tensor *g)
{
	struct fmla_merge_args a = {.struct_size = sizeof(a),
	                            .partial_out = &t[IN].t,
	                            .partial_lse = &t[IN_LSE].t,
	                            .attn_sink = c->sink ? &t[SINK].t : NULL,
	                            .out = &t[OUT].t,
	                            .lse = c->no_lse ? NULL : &t[LSE].t,
	                            .flags = c->neg_inf ? FMLA_EMPTY_LSE_NEG_INF : 0};
	for (int i = 0; i < MERGE_TENSORS; i++)
		if (!gpu_upload(&g[i], &t[i]))
			return false;
	EXPECT_OK(ref, fmla_merge(ref, &a));
	a.partial_out = &g[IN].t;
	a.partial_lse = &g[IN_LSE].t;
	a.attn_sink = c->sink ? &g[SINK].t : NULL;
	a.out = &g[OUT].t;
	a.lse = c->no_lse ? NULL : &g[LSE].t;
	EXPECT_OK(gpu, fmla_merge(gpu, &a));
	/* fp32 sums against double ones, then one rounding to the output's type. */
	const struct limits fine = {.abs = 5e-6, .rel = 1e-5, .cos = 1e-9},
	                    coarse = {.abs = 1e-5, .rel = 0.0079, .cos = 5e-6};
	const struct limits lse = {.abs = 2e-6, .rel = 1e-6, .cos = 0};
	return gpu_same(&g[OUT], &t[OUT], c->out->bits == 32 ? fine : coarse, "out") &&
	       gpu_same(&g[LSE], &t[LSE], lse, "lse");
}

static bool test_merge(fmla_ctx *gpu, const void *arg)
{
	struct data_tensor t[MERGE_TENSORS];
	struct gpu_tensor g[MERGE_TENSORS] = {0};
	fmla_ctx *ref = reference();
	make_merge(arg, t);
	const bool ok = run_merge(gpu, ref, arg, t, g);
	free_all(t, g, MERGE_TENSORS);
	fmla_ctx_destroy(ref);
	return ok;
}

/* ---- kv_append ---- */

struct append_case {
	int64_t n, h_kv, d_latent, d_rope, pages, page;
	const struct fmla_dtype *type;
	int slots_64, strided, odd, flat; /* odd: nothing is 16-byte aligned; flat: rows [n, d] */
};

enum { LATENT, ROPE, SLOTS, KV, APPEND_TENSORS };

static void set_slot(const struct append_case *c, struct data_tensor *slots, int64_t i, int64_t slot)
{
	if (c->slots_64)
		((int64_t *)(void *)slots->host)[i] = slot;
	else
		((int32_t *)(void *)slots->host)[i] = slot > INT32_MAX ? INT32_MAX : (int32_t)slot;
}

static bool skipped(int64_t i)
{
	return random_bits(5, (uint64_t)i) % 8 == 0;
}

static void make_append(const struct append_case *c, struct data_tensor *t)
{
	const struct fmla_dtype slot_type = {0, c->slots_64 ? 64 : 32, 1};
	const int64_t pad = c->odd ? 5 : c->strided ? 16 : 0, pads[4] = {pad, pad, pad, pad};
	const int64_t latent[3] = {c->n, c->h_kv, c->d_latent}, rope[3] = {c->n, c->h_kv, c->d_rope};
	const int64_t flat_latent[2] = {c->n, c->d_latent}, flat_rope[2] = {c->n, c->d_rope};
	const int64_t kv[4] = {c->pages, c->page, c->h_kv, c->d_latent + c->d_rope};
	const int ndim = c->flat ? 2 : 3;
	data_tensor_make(&t[LATENT], *c->type, ndim, c->flat ? flat_latent : latent, NULL, pads, 0);
	data_tensor_make(&t[ROPE], *c->type, ndim, c->flat ? flat_rope : rope, NULL, pads, c->odd ? 2 : 0);
	data_tensor_make(&t[SLOTS], slot_type, 1, &c->n, NULL, NULL, 0);
	data_tensor_make(&t[KV], *c->type, 4, kv, NULL, pads, 0);
	for (int i = LATENT; i <= ROPE; i++)
		for (size_t v = 0; v < t[i].bytes / 2; v++)
			value_set(*c->type, t[i].host, (int64_t)v, (float)random_normal((uint64_t)i, v));
	fill(&t[KV], 0xff);
	for (int64_t i = 0; i < c->n; i++) /* a walk over all slots in big steps never meets one twice */
		set_slot(c, &t[SLOTS], i, skipped(i) ? -1 - i : i * 7919 % (c->pages * c->page));
}

static bool run_append(fmla_ctx *gpu, fmla_ctx *ref, const struct append_case *c, struct data_tensor *t,
                       struct gpu_tensor *g)
{
	struct fmla_kv_append_args a = {.struct_size = sizeof(a),
	                                .kv_latent = &t[LATENT].t,
	                                .k_rope = c->d_rope ? &t[ROPE].t : NULL,
	                                .slot_mapping = &t[SLOTS].t,
	                                .kv_cache = &t[KV].t};
	if (!gpu_upload(&g[KV], &t[KV]))
		return false;
	EXPECT_OK(ref, fmla_kv_append(ref, &a));
	for (int64_t i = 0; i < c->n; i += 2) /* on a GPU a slot past the cache is skipped as well */
		if (skipped(i))
			set_slot(c, &t[SLOTS], i, i % 4 ? INT64_MAX : c->pages * c->page);
	for (int i = LATENT; i <= SLOTS; i++)
		if (!gpu_upload(&g[i], &t[i]))
			return false;
	a.kv_latent = &g[LATENT].t;
	a.k_rope = c->d_rope ? &g[ROPE].t : NULL;
	a.slot_mapping = &g[SLOTS].t;
	a.kv_cache = &g[KV].t;
	EXPECT_OK(gpu, fmla_kv_append(gpu, &a));
	return gpu_same(&g[KV], &t[KV], (struct limits){.abs = 1e-30, .rel = 0, .cos = 0}, "kv_cache");
}

static bool test_append(fmla_ctx *gpu, const void *arg)
{
	struct data_tensor t[APPEND_TENSORS];
	struct gpu_tensor g[APPEND_TENSORS] = {0};
	fmla_ctx *ref = reference();
	make_append(arg, t);
	const bool ok = run_append(gpu, ref, arg, t, g);
	free_all(t, g, APPEND_TENSORS);
	fmla_ctx_destroy(ref);
	return ok;
}

/* ---- the list ---- */

#define ROWS        .n = 2, .b = 3, .s_q = 2, .h_q = 16, .d_v = 512
#define MERGE(...)  (&(const struct merge_case){__VA_ARGS__})
#define APPEND(...) (&(const struct append_case){__VA_ARGS__})
#define CACHE       .h_kv = 1, .d_latent = 512, .d_rope = 64, .pages = 9, .page = 64

const struct test stream_tests[] = {
    {"merge bf16", test_merge, MERGE(ROWS, .in = &bf16, .out = &bf16, .empty = 1), true},
    {"merge fp16", test_merge, MERGE(ROWS, .in = &fp16, .out = &fp16, .empty = 1), false},
    {"merge fp32", test_merge, MERGE(ROWS, .in = &fp32, .out = &fp32, .empty = 1), true},
    {"merge fp32 to bf16", test_merge, MERGE(ROWS, .in = &fp32, .out = &bf16, .neg_inf = 1, .empty = 1), false},
    {"merge fp16 to fp32", test_merge, MERGE(ROWS, .in = &fp16, .out = &fp32), false},
    {"merge none", test_merge, MERGE(.n = 0, .b = 3, .s_q = 2, .h_q = 16, .d_v = 512, .in = &bf16, .out = &bf16),
     false},
    {"merge one", test_merge,
     MERGE(.n = 1, .b = 3, .s_q = 1, .h_q = 9, .d_v = 512, .in = &bf16, .out = &bf16, .empty = 1), false},
    {"merge 37", test_merge,
     MERGE(.n = 37, .b = 3, .s_q = 2, .h_q = 5, .d_v = 512, .in = &fp32, .out = &fp32, .empty = 1), false},
    {"merge with sinks", test_merge, MERGE(ROWS, .in = &bf16, .out = &bf16, .empty = 1, .sink = 1), false},
    {"merge without lse", test_merge, MERGE(ROWS, .in = &bf16, .out = &bf16, .no_lse = 1), false},
    {"merge a NaN lse", test_merge,
     MERGE(.n = 6, .b = 3, .s_q = 2, .h_q = 16, .d_v = 512, .in = &bf16, .out = &bf16, .nan = 1), false},
    {"merge strided", test_merge, MERGE(ROWS, .in = &bf16, .out = &bf16, .strided = 1, .sink = 1, .empty = 1), false},
    {"merge strided fp32", test_merge, MERGE(ROWS, .in = &fp32, .out = &fp32, .strided = 1), false},
    {"merge to unaligned rows", test_merge, MERGE(ROWS, .in = &fp16, .out = &fp16, .odd = 1, .strided = 1), true},
    {"merge to unaligned fp32 rows", test_merge, MERGE(ROWS, .in = &bf16, .out = &fp32, .odd = 1), false},
    {"merge d_v 8", test_merge, MERGE(.n = 3, .b = 50, .s_q = 1, .h_q = 7, .d_v = 8, .in = &bf16, .out = &bf16), false},
    {"merge d_v 24", test_merge, MERGE(.n = 3, .b = 5, .s_q = 1, .h_q = 7, .d_v = 24, .in = &bf16, .out = &bf16),
     false},
    {"merge d_v 4096", test_merge, MERGE(.n = 3, .b = 2, .s_q = 2, .h_q = 3, .d_v = 4096, .in = &fp32, .out = &bf16),
     false},
    {"merge 6,000 rows", test_merge,
     MERGE(.n = 2, .b = 60, .s_q = 1, .h_q = 100, .d_v = 512, .in = &bf16, .out = &bf16), false},
    {"merge no row", test_merge, MERGE(.n = 2, .b = 0, .s_q = 1, .h_q = 100, .d_v = 512, .in = &bf16, .out = &bf16),
     false},
    {"append bf16", test_append, APPEND(CACHE, .n = 100, .type = &bf16), true},
    {"append fp16, 64-bit slots", test_append, APPEND(CACHE, .n = 100, .type = &fp16, .slots_64 = 1), false},
    {"append rows [n, d]", test_append, APPEND(CACHE, .n = 300, .type = &bf16, .flat = 1, .slots_64 = 1), false},
    {"append page 1", test_append,
     APPEND(.n = 100, .h_kv = 1, .d_latent = 512, .d_rope = 64, .pages = 500, .page = 1, .type = &bf16), false},
    {"append without rope", test_append,
     APPEND(.n = 100, .h_kv = 1, .d_latent = 512, .pages = 9, .page = 64, .type = &bf16), false},
    {"append 3 heads", test_append,
     APPEND(.n = 100, .h_kv = 3, .d_latent = 512, .d_rope = 64, .pages = 40, .page = 16, .type = &bf16), false},
    {"append strided", test_append, APPEND(CACHE, .n = 100, .type = &bf16, .strided = 1, .slots_64 = 1), false},
    {"append unaligned", test_append, APPEND(CACHE, .n = 100, .type = &fp16, .odd = 1), true},
    {"append odd widths", test_append,
     APPEND(.n = 100, .h_kv = 2, .d_latent = 5, .d_rope = 3, .pages = 30, .page = 7, .type = &bf16), false},
    {"append 5,000 rows", test_append,
     APPEND(.n = 5000, .h_kv = 1, .d_latent = 512, .d_rope = 64, .pages = 100, .page = 64, .type = &bf16), false},
    {"append one row", test_append, APPEND(CACHE, .n = 1, .type = &bf16), false},
    {"append no row", test_append, APPEND(CACHE, .n = 0, .type = &bf16), false},
    {NULL, NULL, NULL, false},
};
