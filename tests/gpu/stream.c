/* SPDX-License-Identifier: MIT
 *
 * merge and kv_append on the GPU: the same answers as `ref` for every type, stride, alignment and kind of garbage. */
#include "gpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "value.h"

static const struct fmla_dtype value_types[3] = {FMLA_BF16, FMLA_FP16, FMLA_FP32};

static void put(void *data, int64_t i, struct fmla_dtype type, float x)
{
	if (type.bits == 32)
		((float *)data)[i] = x;
	else
		((uint16_t *)data)[i] = value_from(x, type.code == 2);
}

static bool same_as_host(const struct mirror *m, struct tolerance t, const char *what)
{
	void *got = malloc(m->bytes + 1);
	const bool ok = got && mirror_download(m, got) &&
	                values_close(got, m->on_host.data, (int64_t)(m->bytes / (m->on_host.dtype.bits / 8)),
	                             m->on_host.dtype, t, what);
	free(got);
	return ok;
}

static fmla_ctx *reference(void)
{
	fmla_ctx *ref = NULL;
	fmla_ctx_create(&ref, &(struct fmla_ctx_options){.struct_size = sizeof(struct fmla_ctx_options), .backend = "ref"});
	return ref;
}

/* ---- merge ---- */

struct merge_shape {
	int n, b, s_q, h_q, d_v;
	int in, out; /* index of value_types */
	int sink, no_lse, strided, odd, empty, neg_inf, nan;
};

static bool merge_body(fmla_ctx *gpu, fmla_ctx *ref, const struct merge_shape *s, struct mirror m[5])
{
	struct mirror *in = &m[0], *in_lse = &m[1], *sink = &m[2], *out = &m[3], *lse = &m[4];
	const struct fmla_dtype fp32 = FMLA_FP32;
	const int64_t pad = s->strided ? 8 : 0, h = s->d_v + pad, q = h * s->h_q + pad, b = q * s->s_q + pad;
	const int64_t out_pad = s->odd ? 3 : pad, oh = s->d_v + out_pad, oq = oh * s->h_q + out_pad, ob = oq * s->s_q + out_pad;
	uint64_t rng = (uint64_t)(s->n * 100 + s->d_v);
	if (!mirror_make(in, value_types[s->in], 5, (int64_t[]){s->n, s->b, s->s_q, s->h_q, s->d_v},
	                 (int64_t[]){b * s->b + pad, b, q, h, 1}) ||
	    !mirror_make(in_lse, fp32, 4, (int64_t[]){s->n, s->b, s->h_q, s->s_q},
	                 s->strided ? (int64_t[]){1, s->n, (int64_t)s->n * s->b, (int64_t)s->n * s->b * s->h_q} : NULL) ||
	    !mirror_make(out, value_types[s->out], 4, (int64_t[]){s->b, s->s_q, s->h_q, s->d_v},
	                 (int64_t[]){ob, oq, oh, 1}) ||
	    !mirror_make(lse, fp32, 3, (int64_t[]){s->b, s->h_q, s->s_q}, NULL))
		return false;
	for (int64_t j = 0; j < s->n; j++)
		for (int64_t i = 0; i < (int64_t)s->b * s->s_q * s->h_q; i++) {
			const int64_t ih = i % s->h_q, is = i / s->h_q % s->s_q, ib = i / s->h_q / s->s_q;
			const int64_t *st = in->strides, *sl = in_lse->strides;
			/* every fourth partial is empty and NaN; row 0 is empty altogether */
			const bool empty = s->empty && (i == 0 || random_next(&rng) % 4 == 0);
			const float value = empty ? (random_next(&rng) & 1 ? INFINITY : -INFINITY)
			                          : (float)(5 * random_normal(&rng)) + (i % 7 == 0 ? 3e4f : 0);
			((float *)in_lse->on_host.data)[j * sl[0] + ib * sl[1] + ih * sl[2] + is * sl[3]] =
			    s->nan && i == 1 && j == s->n - 1 ? NAN : value;
			for (int64_t d = 0; !empty && d < s->d_v; d++)
				put(in->on_host.data, j * st[0] + ib * st[1] + is * st[2] + ih * st[3] + d, value_types[s->in],
				    (float)random_normal(&rng));
		}
	if (s->sink) {
		if (!mirror_make(sink, fp32, 1, (int64_t[]){s->h_q}, NULL))
			return false;
		for (int i = 0; i < s->h_q; i++)
			((float *)sink->on_host.data)[i] = i == 1 ? INFINITY : (float)(4 * random_normal(&rng));
	}
	if (s->no_lse)
		mirror_free(lse);
	struct fmla_merge_args a = {.struct_size = sizeof(a),
	                            .partial_out = &in->on_host,
	                            .partial_lse = &in_lse->on_host,
	                            .attn_sink = s->sink ? &sink->on_host : NULL,
	                            .out = &out->on_host,
	                            .lse = s->no_lse ? NULL : &lse->on_host,
	                            .flags = s->neg_inf ? FMLA_EMPTY_LSE_NEG_INF : 0};
	EXPECT_OK(ref, fmla_merge(ref, &a));
	if (!mirror_upload(in, NULL) || !mirror_upload(in_lse, NULL) || !mirror_upload(sink, NULL) ||
	    !mirror_poison(out) || !mirror_poison(lse))
		return false;
	a.partial_out = &in->on_device;
	a.partial_lse = &in_lse->on_device;
	a.attn_sink = s->sink ? &sink->on_device : NULL;
	a.out = &out->on_device;
	a.lse = s->no_lse ? NULL : &lse->on_device;
	EXPECT_OK(gpu, fmla_merge(gpu, &a));
	/* One rounding of the result apart: fp32 sums against double ones. */
	const struct tolerance t = s->out == 2 ? (struct tolerance){2e-5, 2e-5, 1e-9} : (struct tolerance){1e-4, 0.01, 1e-5};
	return same_as_host(out, t, "out") && (s->no_lse || same_as_host(lse, (struct tolerance){1e-5, 1e-6, 1e-9}, "lse"));
}

static bool test_merge(fmla_ctx *gpu, const void *arg)
{
	struct mirror m[5] = {0};
	fmla_ctx *ref = reference();
	const bool ok = merge_body(gpu, ref, arg, m);
	for (int i = 0; i < 5; i++)
		mirror_free(&m[i]);
	fmla_ctx_destroy(ref);
	return ok;
}

/* ---- kv_append ---- */

struct append_shape {
	int n, h_kv, d_latent, d_rope, pages, page;
	int slots_64, fp16, strided, odd, flat; /* flat: [n, d] rows */
};

static bool append_body(fmla_ctx *gpu, fmla_ctx *ref, const struct append_shape *s, struct mirror m[4])
{
	struct mirror *latent = &m[0], *rope = &m[1], *slots = &m[2], *kv = &m[3];
	const struct fmla_dtype value = {s->fp16 ? 2 : 4, 16, 1}, slot_type = {0, s->slots_64 ? 64 : 32, 1};
	const int64_t d = s->d_latent + s->d_rope, pad = s->odd ? 5 : s->strided ? 16 : 0;
	const int64_t l = s->d_latent + pad, r = s->d_rope + pad, token = (d + pad) * s->h_kv;
	const int ndim = s->flat ? 2 : 3;
	uint64_t rng = (uint64_t)(s->n * 10 + s->page);
	const int64_t latent_shape[3] = {s->n, s->flat ? s->d_latent : s->h_kv, s->d_latent};
	const int64_t rope_shape[3] = {s->n, s->flat ? s->d_rope : s->h_kv, s->d_rope};
	const int64_t latent_strides[3] = {l * s->h_kv, s->flat ? 1 : l, 1}, rope_strides[3] = {r * s->h_kv, s->flat ? 1 : r, 1};
	if (!mirror_make(latent, value, ndim, latent_shape, latent_strides) ||
	    (s->d_rope > 0 && !mirror_make(rope, value, ndim, rope_shape, rope_strides)) ||
	    !mirror_make(slots, slot_type, 1, (int64_t[]){s->n}, NULL) ||
	    !mirror_make(kv, value, 4, (int64_t[]){s->pages, s->page, s->h_kv, d},
	                 (int64_t[]){token * s->page + pad, token, d + pad, 1}))
		return false;
	for (int k = 0; k < 2; k++) {
		uint16_t *v = m[k].on_host.data;
		for (size_t i = 0; i < m[k].bytes / 2; i++)
			v[i] = value_from((float)random_normal(&rng), s->fp16);
	}
	/* Distinct slots in a random order: a walk with a stride that shares no factor with their number; some skipped. */
	const int64_t num_slots = (int64_t)s->pages * s->page;
	for (int64_t i = 0; i < s->n; i++) {
		const int64_t slot = random_next(&rng) % 8 == 0 ? -1 - (i & 1) : i * 7919 % num_slots;
		if (s->slots_64)
			((int64_t *)slots->on_host.data)[i] = slot;
		else
			((int32_t *)slots->on_host.data)[i] = (int32_t)slot;
	}
	struct fmla_kv_append_args a = {.struct_size = sizeof(a),
	                                .kv_latent = &latent->on_host,
	                                .k_rope = s->d_rope ? &rope->on_host : NULL,
	                                .slot_mapping = &slots->on_host,
	                                .kv_cache = &kv->on_host};
	EXPECT_OK(ref, fmla_kv_append(ref, &a));
	/* A slot past the cache, which only a GPU accepts, goes where a skipped one was. */
	for (int64_t i = 0; i < s->n; i++) {
		if (s->slots_64 && ((int64_t *)slots->on_host.data)[i] == -2)
			((int64_t *)slots->on_host.data)[i] = i % 4 == 1 ? num_slots : INT64_MAX;
		if (!s->slots_64 && ((int32_t *)slots->on_host.data)[i] == -2)
			((int32_t *)slots->on_host.data)[i] = i % 4 == 1 ? (int32_t)num_slots : INT32_MAX;
	}
	if (!mirror_upload(latent, NULL) || !mirror_upload(rope, NULL) || !mirror_upload(slots, NULL) || !mirror_poison(kv))
		return false;
	a.kv_latent = &latent->on_device;
	a.k_rope = s->d_rope ? &rope->on_device : NULL;
	a.slot_mapping = &slots->on_device;
	a.kv_cache = &kv->on_device;
	EXPECT_OK(gpu, fmla_kv_append(gpu, &a));
	return same_as_host(kv, (struct tolerance){0, 0, 0}, "kv_cache");
}

static bool test_append(fmla_ctx *gpu, const void *arg)
{
	struct mirror m[4] = {0};
	fmla_ctx *ref = reference();
	const bool ok = append_body(gpu, ref, arg, m);
	for (int i = 0; i < 4; i++)
		mirror_free(&m[i]);
	fmla_ctx_destroy(ref);
	return ok;
}

/* ---- the list ---- */

#define MERGE(...) (&(const struct merge_shape){.n = 2, .b = 3, .s_q = 2, .h_q = 16, .d_v = 512, __VA_ARGS__})
#define APPEND(...)                                                                                                    \
	(&(const struct append_shape){.n = 100, .h_kv = 1, .d_latent = 512, .d_rope = 64, .pages = 9, .page = 64, __VA_ARGS__})

#pragma GCC diagnostic ignored "-Woverride-init"
const struct test stream_tests[] = {
    {"merge 2 bf16", test_merge, MERGE(.empty = 1), true},
    {"merge 2 fp16", test_merge, MERGE(.in = 1, .out = 1, .empty = 1), false},
    {"merge 2 fp32", test_merge, MERGE(.in = 2, .out = 2, .empty = 1), true},
    {"merge fp32 to bf16", test_merge, MERGE(.in = 2, .empty = 1, .n = 5), false},
    {"merge bf16 to fp32", test_merge, MERGE(.out = 2, .empty = 1, .n = 3), false},
    {"merge none", test_merge, MERGE(.n = 0), false},
    {"merge one", test_merge, MERGE(.n = 1, .empty = 1, .neg_inf = 1), false},
    {"merge 37", test_merge, MERGE(.n = 37, .empty = 1, .in = 2, .out = 2), false},
    {"merge with sinks", test_merge, MERGE(.sink = 1, .empty = 1), false},
    {"merge without lse", test_merge, MERGE(.no_lse = 1), false},
    {"merge with a NaN lse", test_merge, MERGE(.nan = 1, .n = 6), false},
    {"merge strided", test_merge, MERGE(.strided = 1, .empty = 1, .sink = 1, .n = 4), false},
    {"merge strided fp32", test_merge, MERGE(.strided = 1, .in = 2, .out = 2, .n = 9), false},
    {"merge to unaligned rows", test_merge, MERGE(.strided = 1, .odd = 1, .in = 1, .out = 1), true},
    {"merge to unaligned fp32 rows", test_merge, MERGE(.odd = 1, .out = 2), false},
    {"merge d_v 8", test_merge, MERGE(.d_v = 8, .b = 50, .empty = 1), false},
    {"merge d_v 24", test_merge, MERGE(.d_v = 24, .empty = 1), false},
    {"merge d_v 4096", test_merge, MERGE(.d_v = 4096, .n = 3), false},
    {"merge 3,000 rows", test_merge, MERGE(.b = 30, .h_q = 100, .s_q = 1), false},
    {"merge no rows", test_merge, MERGE(.b = 0), false},
    {"append bf16", test_append, APPEND(), true},
    {"append fp16, 64-bit slots", test_append, APPEND(.fp16 = 1, .slots_64 = 1), false},
    {"append [n, d] rows", test_append, APPEND(.flat = 1, .slots_64 = 1, .page = 1, .pages = 500), false},
    {"append without rope", test_append, APPEND(.d_rope = 0), false},
    {"append 3 heads", test_append, APPEND(.h_kv = 3, .page = 16, .pages = 40), false},
    {"append strided", test_append, APPEND(.strided = 1, .h_kv = 2, .slots_64 = 1), false},
    {"append unaligned", test_append, APPEND(.odd = 1, .h_kv = 2), true},
    {"append odd widths", test_append, APPEND(.d_latent = 5, .d_rope = 3, .flat = 1), false},
    {"append 5,000 rows", test_append, APPEND(.n = 5000, .pages = 100), false},
    {"append one row", test_append, APPEND(.n = 1), false},
    {"append no row", test_append, APPEND(.n = 0), false},
    {NULL, NULL, NULL, false},
};
