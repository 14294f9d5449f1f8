/* SPDX-License-Identifier: MIT */
#include "step.h"

#include "device.h"

#include "../tests/close.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { D_V = 512, AUTO_KV_BYTES = 1 << 30, MAX_AUTO_LAYERS = 64, PLAN_FIELDS = 8 };

/* ---- data ------------------------------------------------------------------------------------------------------ */

enum { POOL = 1 << 16 }; /* normal random values, drawn from by 16 random bits: fills at memory speed */

static uint16_t *make_pool(struct fmla_dtype dtype, double deviation, uint64_t seed)
{
	uint16_t *pool = malloc(POOL * sizeof(*pool));
	for (int i = 0; pool && i < POOL; i++)
		value_set(dtype, pool, i, (float)(deviation * random_normal(seed, (uint64_t)i)));
	return pool;
}

/* Fills `count` values; threads share the work. */
static void fill(uint16_t *values, int64_t count, const uint16_t *pool, uint64_t seed)
{
#pragma omp parallel for schedule(static)
	for (int64_t i = 0; i < count; i += 4) {
		uint64_t random = random_bits(seed, (uint64_t)i);
		for (int64_t j = i; j < i + 4 && j < count; j++, random >>= 16)
			values[j] = pool[random & (POOL - 1)];
	}
}

/* Fills `count` values of device memory, through `staging` where the host cannot write it. */
static bool fill_device(const struct step *s, void *data, size_t offset, size_t bytes, void *staging,
                        const uint16_t *pool, uint64_t seed)
{
	void *host = s->device == FMLA_DEVICE_CPU ? (char *)data + offset : staging;
	fill(host, (int64_t)(bytes / sizeof(uint16_t)), pool, seed);
	return device_upload(s->device, data, offset, host, bytes);
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

static void describe(const struct step *s, struct step_tensor *t, struct fmla_dtype dtype, int ndim,
                     const int64_t *shape)
{
	memcpy(t->shape, shape, (size_t)ndim * sizeof(*shape));
	t->dl = (struct fmla_tensor){.device = device_of(s->device), .ndim = ndim, .dtype = dtype, .shape = t->shape};
}

/* Device memory for a tensor, holding `host` if that is given. */
static bool place(const struct step *s, struct step_tensor *t, const void *host)
{
	const size_t bytes = tensor_bytes(&t->dl);
	t->dl.data = device_alloc(s->device, bytes);
	return t->dl.data && (!host || device_upload(s->device, t->dl.data, 0, host, bytes));
}

static void describe_all(struct step *s)
{
	static const struct fmla_dtype int32 = FMLA_INT32, fp32 = FMLA_FP32;
	const struct layer_shape *l = &s->shape;
	const struct pages *p = &s->batch->pages;
	const int64_t b = s->batch->b;
	describe(s, &s->q, l->dtype, 4, (int64_t[]){b, l->s_q, l->h_q, l->d_qk});
	describe(s, &s->kv_cache, l->dtype, 4, (int64_t[]){p->num_pages, l->page, l->h_kv, l->d_qk});
	describe(s, &s->block_table, int32, 2, (int64_t[]){b, p->max_pages});
	describe(s, &s->cache_seqlens, int32, 1, &b);
	describe(s, &s->out, l->dtype, 4, (int64_t[]){b, l->s_q, l->h_q, D_V});
	describe(s, &s->lse, fp32, 3, (int64_t[]){b, l->h_q, l->s_q});
	s->args = (struct fmla_decode_args){
	    .struct_size = sizeof(s->args),
	    .q = &s->q.dl,
	    .kv_cache = &s->kv_cache.dl,
	    .block_table = &s->block_table.dl,
	    .cache_seqlens = &s->cache_seqlens.dl,
	    .out = &s->out.dl,
	    .lse = &s->lse.dl,
	    .softmax_scale = 1 / sqrt((double)l->d_qk),
	    .causal = l->causal,
	    .stream = device_stream(s->device),
	};
}

static int no_memory(const struct step *s, const char *what, double bytes)
{
	return fail(EXIT_SYSTEM, "%s of %.3g GiB: %s", what, bytes / 0x1p30, device_error(s->device));
}

static int create_kv(struct step *s, uint64_t seed)
{
	const size_t q_bytes = tensor_bytes(&s->q.dl), staging_bytes = s->layer_bytes > q_bytes ? s->layer_bytes : q_bytes;
	const bool staged = s->device != FMLA_DEVICE_CPU;
	/* The deviations of the tests, which their tolerances go with; scores of deviation 1. */
	uint16_t *pool = make_pool(s->shape.dtype, 0.1, seed), *q_pool = make_pool(s->shape.dtype, 10, seed);
	void *staging = staged ? device_alloc(FMLA_DEVICE_CPU, staging_bytes) : NULL;
	s->kv = device_alloc(s->device, (size_t)s->layers * s->layer_bytes);
	int code = EXIT_OK;
	if (!s->kv)
		code = no_memory(s, "the KV cache", (double)s->layers * (double)s->layer_bytes);
	else if (!pool || !q_pool || (staged && !staging))
		code = fail(EXIT_SYSTEM, "out of memory");
	for (int64_t l = 0; l < s->layers && code == EXIT_OK && !interrupted; l++) {
		progress("filling the KV caches", l, s->layers);
		if (!fill_device(s, s->kv, (size_t)l * s->layer_bytes, s->layer_bytes, staging, pool,
		                 seed * 64 + (uint64_t)l + 1))
			code = fail(EXIT_SYSTEM, "the KV cache: %s", device_error(s->device));
	}
	if (code == EXIT_OK && !fill_device(s, s->q.dl.data, 0, q_bytes, staging, q_pool, seed * 64))
		code = fail(EXIT_SYSTEM, "q: %s", device_error(s->device));
	progress_clear();
	device_free(FMLA_DEVICE_CPU, staging);
	free(pool);
	free(q_pool);
	s->kv_cache.dl.data = s->kv;
	return code;
}

/* Linux hands out more memory than it has, and kills whoever uses it: ask before.  A GPU says no by itself. */
static double most_memory(int device)
{
	return device == FMLA_DEVICE_CPU ? (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) : 0x1p60;
}

int step_create(struct step *s, fmla_ctx *ctx, int device, const struct layer_shape *shape, const struct batch *batch,
                int64_t layers, uint64_t seed, bool with_kv)
{
	*s = (struct step){.ctx = ctx, .device = device, .batch = batch, .shape = *shape};
	describe_all(s);
	fmla_status status = fmla_workspace_size(ctx, &s->args, &s->args.workspace_size);
	if (status == FMLA_OK)
		status = fmla_plan_parts(ctx, &s->args, &s->num_parts);
	if (status != FMLA_OK)
		return fail_status(ctx, status, batch->name);

	static const struct fmla_dtype int32 = FMLA_INT32;
	const int64_t splits = batch->b + 1;
	describe(s, &s->plan_parts, int32, 2, (int64_t[]){s->num_parts, PLAN_FIELDS});
	describe(s, &s->plan_splits, int32, 1, &splits);
	if (!place(s, &s->block_table, batch->pages.table) || !place(s, &s->cache_seqlens, batch->lengths) ||
	    !place(s, &s->plan_parts, NULL) || !place(s, &s->plan_splits, NULL))
		return no_memory(s, "the plan", (double)tensor_bytes(&s->block_table.dl));
	s->args.plan_parts = &s->plan_parts.dl;
	s->args.plan_splits = &s->plan_splits.dl;
	if (!with_kv)
		return EXIT_OK;

	const double needed = (double)batch->pages.num_pages * (double)(shape->page * shape->h_kv * shape->d_qk * 2) *
	                      (double)(layers ? layers : 1);
	if (needed > most_memory(device))
		return fail(EXIT_SYSTEM, "the KV cache needs %.3g GiB, there are %.3g GiB of memory", needed / 0x1p30,
		            most_memory(device) / 0x1p30);
	s->layer_bytes = tensor_bytes(&s->kv_cache.dl);
	s->layers = layers ? layers : (AUTO_KV_BYTES + (int64_t)s->layer_bytes - 1) / (int64_t)s->layer_bytes;
	if (!layers && s->layers > MAX_AUTO_LAYERS)
		s->layers = MAX_AUTO_LAYERS;
	s->args.workspace = device_alloc(s->device, s->args.workspace_size);
	if (!s->args.workspace || !place(s, &s->q, NULL) || !place(s, &s->out, NULL) || !place(s, &s->lse, NULL))
		return no_memory(s, "q, out and workspace", (double)(tensor_bytes(&s->q.dl) * 2 + s->args.workspace_size));
	return create_kv(s, seed);
}

void step_destroy(struct step *s)
{
	struct step_tensor *const owned[] = {&s->q,   &s->block_table, &s->cache_seqlens, &s->out,
	                                     &s->lse, &s->plan_parts,  &s->plan_splits};
	for (size_t i = 0; i < sizeof(owned) / sizeof(*owned); i++)
		device_free(s->device, owned[i]->dl.data);
	device_free(s->device, s->kv);
	device_free(s->device, s->args.workspace);
	*s = (struct step){.device = s->device};
}

/* ---- calls ----------------------------------------------------------------------------------------------------- */

fmla_status step_plan(struct step *s)
{
	return fmla_plan(s->ctx, &s->args);
}

fmla_status step_decode(struct step *s, int64_t layer)
{
	s->kv_cache.dl.byte_offset = (uint64_t)layer * s->layer_bytes;
	return fmla_decode(s->ctx, &s->args);
}

struct step_cost step_cost(const struct layer_shape *l, const struct batch *batch)
{
	const double value = 2, rows = (double)(batch->b * l->s_q * l->h_q);
	struct step_cost c = {.bytes = (double)(batch->pages.distinct_tokens * l->h_kv * l->d_qk) * value +
	                               rows * ((double)(l->d_qk + D_V) * value + sizeof(float))};
	for (int64_t i = 0; i < batch->b; i++)
		for (int64_t t = 0; t < l->s_q; t++) {
			const int64_t visible = batch->lengths[i] - (l->causal ? l->s_q - 1 - t : 0);
			c.flop += visible > 0 ? 2.0 * (double)(visible * l->h_q * (l->d_qk + D_V)) : 0;
		}
	return c;
}

/* ---- comparison ------------------------------------------------------------------------------------------------ */

/* What the reference reads and what it is compared with, in host memory; on the CPU that is the step's own. */
struct host_view {
	bool owned;
	char *q, *kv, *out;
	float *lse;
};

static bool view_open(const struct step *s, struct host_view *v)
{
	struct {
		const void *device;
		size_t bytes;
		void *host;
	} parts[] = {{s->q.dl.data, tensor_bytes(&s->q.dl), NULL},
	             {s->kv, s->layer_bytes, NULL},
	             {s->out.dl.data, tensor_bytes(&s->out.dl), NULL},
	             {s->lse.dl.data, tensor_bytes(&s->lse.dl), NULL}};
	bool ok = true;
	v->owned = s->device != FMLA_DEVICE_CPU;
	for (int i = 0; i < 4; i++) {
		parts[i].host = v->owned ? device_alloc(FMLA_DEVICE_CPU, parts[i].bytes) : (void *)(uintptr_t)parts[i].device;
		if (v->owned)
			ok = ok && parts[i].host && device_download(s->device, parts[i].host, parts[i].device, parts[i].bytes);
	}
	v->q = parts[0].host;
	v->kv = parts[1].host;
	v->out = parts[2].host;
	v->lse = parts[3].host;
	return ok;
}

static void view_close(struct host_view *v)
{
	if (v->owned) {
		device_free(FMLA_DEVICE_CPU, v->q);
		device_free(FMLA_DEVICE_CPU, v->kv);
		device_free(FMLA_DEVICE_CPU, v->out);
		device_free(FMLA_DEVICE_CPU, v->lse);
	}
}

/* One request alone, by the reference. */
static fmla_status decode_reference(const struct step *s, const struct host_view *v, fmla_ctx *ref, int64_t i,
                                    void *out, float *lse)
{
	const struct layer_shape *l = &s->shape;
	const struct pages *p = &s->batch->pages;
	const struct fmla_dtype int32 = FMLA_INT32, fp32 = FMLA_FP32;
	struct fmla_decode_args a = {
	    .struct_size = sizeof(a),
	    .q = FMLA_TENSOR(v->q + i * l->s_q * l->h_q * l->d_qk * 2, l->dtype, FMLA_DEVICE_CPU, 1, l->s_q, l->h_q,
	                     l->d_qk),
	    .kv_cache = FMLA_TENSOR(v->kv, l->dtype, FMLA_DEVICE_CPU, p->num_pages, l->page, l->h_kv, l->d_qk),
	    .block_table = FMLA_TENSOR(p->table + i * p->max_pages, int32, FMLA_DEVICE_CPU, 1, p->max_pages),
	    .cache_seqlens = FMLA_TENSOR(s->batch->lengths + i, int32, FMLA_DEVICE_CPU, 1),
	    .out = FMLA_TENSOR(out, l->dtype, FMLA_DEVICE_CPU, 1, l->s_q, l->h_q, D_V),
	    .lse = FMLA_TENSOR(lse, fp32, FMLA_DEVICE_CPU, 1, l->h_q, l->s_q),
	    .softmax_scale = s->args.softmax_scale,
	    .causal = l->causal,
	};
	fmla_status status = fmla_workspace_size(ref, &a, &a.workspace_size);
	if (status == FMLA_OK && a.workspace_size > 0)
		a.workspace = device_alloc(FMLA_DEVICE_CPU, a.workspace_size);
	if (status == FMLA_OK)
		status = fmla_decode(ref, &a);
	device_free(FMLA_DEVICE_CPU, a.workspace);
	return status;
}

/* Scratch of one request: the reference's results, and both results as fp32. */
struct compare_scratch {
	uint16_t *out;
	float *lse, *got, *want;
};

static bool request_is_close(const struct step *s, const struct host_view *v, const struct compare_scratch *c,
                             int64_t i, double *worst)
{
	const int64_t rows = s->shape.s_q * s->shape.h_q, values = rows * D_V;
	const uint16_t *out = (const uint16_t *)(const void *)v->out + i * values;
	for (int64_t j = 0; j < values; j++) {
		c->got[j] = value_get(s->shape.dtype, out, j);
		c->want[j] = value_get(s->shape.dtype, c->out, j);
	}
	const struct closeness o = close_values(c->got, c->want, values, limits_out);
	const struct closeness l = close_values(v->lse + i * rows, c->lse, rows, limits_lse(1));
	*worst = fmax(*worst, o.max_abs);
	if (!l.close)
		fail(0, "request %lld of %d tokens: lse[%lld] is %.9g, the reference says %.9g", (long long)i,
		     s->batch->lengths[i], (long long)l.worst, v->lse[i * rows + l.worst], c->lse[l.worst]);
	else if (!o.close)
		fail(0, "request %lld of %d tokens: out[%lld, %lld] is %.6g, the reference says %.6g; 1 - cosine %.2g",
		     (long long)i, s->batch->lengths[i], (long long)(o.worst / D_V), (long long)(o.worst % D_V),
		     c->got[o.worst], c->want[o.worst], o.cosine);
	return o.close && l.close;
}

int step_verify(struct step *s, int64_t *wrong, double *worst)
{
	const size_t rows = (size_t)(s->shape.s_q * s->shape.h_q);
	struct host_view v = {0};
	struct compare_scratch c = {malloc(rows * D_V * sizeof(uint16_t)), malloc(rows * sizeof(float)),
	                            malloc(rows * D_V * sizeof(float)), malloc(rows * D_V * sizeof(float))};
	struct fmla_backend_info info;
	int code = EXIT_OK;
	fmla_ctx *ref = open_backend((struct where){.backend = "ref"}, &info, &code);
	*wrong = 0;
	*worst = 0;
	if (ref) {
		const fmla_status status = step_decode(s, 0);
		if (status != FMLA_OK)
			code = fail_status(s->ctx, status, "decode");
		else if (!device_sync(s->device) || !view_open(s, &v))
			code = fail(EXIT_SYSTEM, "results: %s", device_error(s->device));
		else if (!c.out || !c.lse || !c.got || !c.want)
			code = fail(EXIT_SYSTEM, "out of memory");
	}
	for (int64_t i = 0; ref && i < s->batch->b && code == EXIT_OK && !interrupted; i++) {
		progress("comparing with the reference", i, s->batch->b);
		const fmla_status status = decode_reference(s, &v, ref, i, c.out, c.lse);
		if (status != FMLA_OK)
			code = fail_status(ref, status, "reference");
		else
			*wrong += !request_is_close(s, &v, &c, i, worst);
	}
	progress_clear();
	view_close(&v);
	free(c.out);
	free(c.lse);
	free(c.got);
	free(c.want);
	fmla_ctx_destroy(ref);
	return code;
}
