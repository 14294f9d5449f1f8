/* SPDX-License-Identifier: MIT */
#include "data.h"

#include "value.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* ---- random numbers: a function of (seed, index), so that loops may run in any order --------------------------- */

uint64_t random_bits(uint64_t seed, uint64_t index)
{
	uint64_t z = seed * 0xd1342543de82ef95u + (index + 1) * 0x9e3779b97f4a7c15u;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

/* The sum of four uniform numbers, scaled to variance 1. */
double random_normal(uint64_t seed, uint64_t index)
{
	const uint64_t z = random_bits(seed, index);
	const double sum = (double)((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
	return (sum / 65535 - 2) * 1.7320508;
}

static int64_t random_below(uint64_t seed, uint64_t index, int64_t n)
{
	return n > 0 ? (int64_t)(random_bits(seed, index) % (uint64_t)n) : 0;
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static size_t page_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static size_t mapped_bytes(size_t bytes)
{
	return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

void *guarded_alloc(size_t bytes, size_t align)
{
	const size_t inner = mapped_bytes(bytes);
	char *base = mmap(NULL, inner + 2 * page_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED || (inner && mprotect(base + page_bytes(), inner, PROT_READ | PROT_WRITE) != 0)) {
		fprintf(stderr, "out of memory: %zu bytes of test data\n", bytes);
		exit(2);
	}
	return base + page_bytes() + (inner - bytes) / align * align;
}

void guarded_free(void *p, size_t bytes)
{
	if (!p)
		return;
	/* p lies in the first inner page, or is the upper guard page when bytes is 0 */
	char *base = (char *)((uintptr_t)p / page_bytes() * page_bytes());
	munmap(base - page_bytes(), mapped_bytes(bytes) + 2 * page_bytes());
}

float value_get(struct fmla_dtype dtype, const void *base, int64_t i)
{
	if (dtype.bits == 32)
		return ((const float *)base)[i];
	const uint16_t v = ((const uint16_t *)base)[i];
	return dtype.code == 4 ? float_from_bf16(v) : float_from_fp16(v);
}

void value_set(struct fmla_dtype dtype, void *base, int64_t i, float v)
{
	if (dtype.bits == 32)
		((float *)base)[i] = v;
	else
		((uint16_t *)base)[i] = dtype.code == 4 ? bf16_from_float(v) : fp16_from_float(v);
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

void data_tensor_make(struct data_tensor *t, struct fmla_dtype dtype, int ndim, const int64_t *shape, const int *order,
                      const int64_t *pad, size_t byte_offset)
{
	*t = (struct data_tensor){0};
	int64_t run = 1; /* elements of one step of the next axis outwards */
	for (int i = ndim - 1; i >= 0; i--) {
		const int axis = order ? order[i] : i;
		t->shape[axis] = shape[axis];
		t->strides[axis] = run;
		run = run * shape[axis] + (pad ? pad[axis] : 0);
	}
	int64_t last = 0, count = 1;
	for (int d = 0; d < ndim; d++) {
		last += (shape[d] - 1) * t->strides[d];
		count *= shape[d];
	}
	const size_t value = dtype.bits / 8u;
	t->bytes = byte_offset + (count ? (size_t)(last + 1) * value : 0);
	t->host = guarded_alloc(t->bytes, 64);
	t->t = (struct fmla_tensor){.data = t->host,
	                            .device = {FMLA_DEVICE_CPU, 0},
	                            .ndim = ndim,
	                            .dtype = dtype,
	                            .shape = t->shape,
	                            .strides = t->strides,
	                            .byte_offset = byte_offset};
}

void data_tensor_free(struct data_tensor *t)
{
	guarded_free(t->host, t->bytes);
	t->host = NULL;
}

static void *values(const struct data_tensor *t)
{
	return t->host + t->t.byte_offset;
}

/* ---- a case ---------------------------------------------------------------------------------------------------- */

enum { GAP_BYTE = 0xff }; /* fills gaps: NaN in every format */
enum { SALT_Q = 1, SALT_KV, SALT_LENS, SALT_RAGGED, SALT_PAGES, SALT_SHARE, SALT_SINK, SALT_ODD };

static uint64_t salted(const struct test_case *c, int salt)
{
	return (uint64_t)c->seed * 16 + (uint64_t)salt;
}

static int64_t length_of(const struct test_case *c, int64_t i)
{
	if (!c->varlen)
		return c->s_k;
	const int64_t edges[] = {c->s_k, 0, 1, 63, 64, 65, c->s_q, c->s_q - 1};
	const int64_t e = random_below(salted(c, SALT_LENS), (uint64_t)i, 16);
	return e < 8 ? MIN(edges[e], c->s_k) : random_below(salted(c, SALT_LENS), (uint64_t)(i + c->b), c->s_k + 1);
}

/* The contract's keys of a request that some row sees: the first, and one past the last. */
static void seen_keys(const struct data *d, int64_t i, int64_t *begin, int64_t *end)
{
	const int32_t *lens = values(&d->tensors[DATA_LENS]), *cu = d->c.ragged ? values(&d->tensors[DATA_CU]) : NULL;
	const int64_t s_q = cu ? cu[i + 1] - cu[i] : d->c.s_q;
	*begin = 0;
	*end = s_q > 0 ? lens[i] : 0;
	if (d->c.window > 0 && *end > 0)
		*begin = MAX(0, lens[i] - s_q - d->c.window + 1);
}

static void make_lengths(struct data *d)
{
	const struct test_case *c = &d->c;
	data_tensor_make(&d->tensors[DATA_LENS], (struct fmla_dtype)FMLA_INT32, 1, &c->b, NULL, NULL, 0);
	int32_t *lens = values(&d->tensors[DATA_LENS]);
	for (int64_t i = 0; i < c->b; i++)
		lens[i] = (int32_t)length_of(c, i);
	d->total_q = c->b * c->s_q;
	if (!c->ragged)
		return;
	const int64_t n = c->b + 1;
	data_tensor_make(&d->tensors[DATA_CU], (struct fmla_dtype)FMLA_INT32, 1, &n, NULL, NULL, 0);
	int32_t *cu = values(&d->tensors[DATA_CU]);
	cu[0] = 0;
	for (int64_t i = 0; i < c->b; i++)
		cu[i + 1] = cu[i] + (int32_t)random_below(salted(c, SALT_RAGGED), (uint64_t)i, c->s_q + 1);
	d->total_q = cu[c->b];
}

/* Random distinct pages for all entries whose page is seen; with `wild`, some full pages are shared by requests. */
static int64_t make_table(struct data *d)
{
	const struct test_case *c = &d->c;
	int64_t used = 0;
	const int64_t width = (c->s_k + c->page - 1) / c->page + (c->wild ? 3 : 0), shape[2] = {c->b, width};
	data_tensor_make(&d->tensors[DATA_TABLE], (struct fmla_dtype)FMLA_INT32, 2, shape, NULL,
	                 (const int64_t[]){0, c->wild ? 5 : 0}, 0);
	const struct data_tensor *t = &d->tensors[DATA_TABLE];
	int32_t *table = values(t);
	for (size_t j = 0; j < t->bytes / sizeof(*table); j++)
		table[j] = j % 2 ? 2147480000 : -7;
	for (int64_t i = 0; i < c->b; i++) {
		int64_t begin, end;
		seen_keys(d, i, &begin, &end);
		for (int64_t e = begin / c->page; e * c->page < end; e++) {
			int32_t *entry = &table[i * t->strides[0] + e];
			*entry = (int32_t)used;
			const bool full = begin <= e * c->page && (e + 1) * c->page <= end;
			const int64_t other = random_below(salted(c, SALT_SHARE), (uint64_t)(i * width + e), 4 * MAX(i, 1));
			if (c->wild && full && other < i) { /* the page that request `other` has there, if it is full as well */
				seen_keys(d, other, &begin, &end);
				if (begin <= e * c->page && (e + 1) * c->page <= end)
					*entry = table[other * t->strides[0] + e];
				seen_keys(d, i, &begin, &end);
			}
			used += *entry == used;
		}
	}
	/* Shuffle: page number x becomes place[x] among used + extra pages. */
	const int64_t num_pages = used + 2;
	int32_t *place = malloc((size_t)num_pages * sizeof(*place));
	if (!place)
		exit(2);
	for (int64_t x = 0; x < num_pages; x++) {
		const int64_t y = random_below(salted(c, SALT_PAGES), (uint64_t)x, x + 1);
		place[x] = place[y];
		place[y] = (int32_t)x;
	}
	for (int64_t i = 0; i < c->b; i++) {
		int64_t begin, end;
		seen_keys(d, i, &begin, &end);
		for (int64_t e = begin / c->page; e * c->page < end; e++)
			table[i * t->strides[0] + e] = place[table[i * t->strides[0] + e]];
	}
	free(place);
	return num_pages;
}

/* K has a standard deviation of 0.1, as in the tests of the Hopper original; q makes the scores as wide as asked. */
static float key_value(const struct test_case *c, uint64_t index)
{
	static const float odd[16] = {0,           -0.f,         0x1p-24f, -0x1p-24f, 0x3p-24f, -0x7p-23f,
	                              0x1.8p-15f,  -0x1.ffp-15f, 0x1p-14f, -0x1p-14f, 0x1p-22f, -0x1p-22f,
	                              0x1.fcp-23f, 3.f,          -40.f,    0x1p-13f};
	const uint64_t bits = random_bits(salted(c, SALT_ODD), index);
	if (c->odd && bits % 20000 == 0)
		return bits >> 32 & 1 ? 300 : -255.75f;
	if (c->odd && bits % 16 == 1)
		return odd[bits >> 32 & 15];
	return (float)(0.1 * random_normal(salted(c, SALT_KV), index));
}

static void make_cache(struct data *d, int64_t num_pages, struct fmla_dtype dtype)
{
	const struct test_case *c = &d->c;
	const int64_t shape[4] = {num_pages, c->page, c->h_kv, c->dqk};
	static const int heads_outside[4] = {2, 0, 1, 3};
	const int64_t pad[4] = {24, 40, 16, 8};
	data_tensor_make(&d->tensors[DATA_KV], dtype, 4, shape, c->wild && c->seed % 2 ? heads_outside : NULL,
	                 c->wild ? pad : NULL, c->wild ? 48 : 0);
	const struct data_tensor *t = &d->tensors[DATA_KV], *table = &d->tensors[DATA_TABLE];
	char *nan_from = t->host;
	const uint16_t nan = dtype.code == 4 ? 0x7fc1 : 0x7e01;
#pragma omp parallel for schedule(static)
	for (size_t j = 0; j < t->bytes / 2; j++)
		((uint16_t *)(void *)nan_from)[j] = nan;
#pragma omp parallel for schedule(dynamic, 1) if (!c->wild) /* wild requests share pages */
	for (int64_t i = 0; i < c->b; i++) {
		int64_t begin, end;
		seen_keys(d, i, &begin, &end);
		for (int64_t k = begin; k < end; k++) {
			const int64_t page = ((const int32_t *)values(table))[i * table->strides[0] + k / c->page];
			for (int64_t h = 0; h < c->h_kv; h++) {
				const int64_t at = page * t->strides[0] + k % c->page * t->strides[1] + h * t->strides[2];
				for (int64_t v = 0; v < c->dqk; v++) /* by address: a shared page is the same for all */
					value_set(dtype, values(t), at + v, key_value(c, (uint64_t)(at + v)));
			}
		}
	}
}

/* A tensor [b, s_q, h_q, d], or [total_q, h_q, d] when ragged. */
static void make_rows(struct data *d, enum data_name name, struct fmla_dtype dtype, int64_t width, int64_t odd_pad)
{
	const struct test_case *c = &d->c;
	const int64_t shape4[4] = {c->b, c->s_q, c->h_q, width}, shape3[3] = {d->total_q, c->h_q, width};
	static const int tokens_outside[4] = {1, 0, 2, 3}, heads_outside[3] = {1, 0, 2};
	const int64_t pad[4] = {16, 8, 40, odd_pad};
	const int64_t pad3[3] = {8, 40, odd_pad};
	data_tensor_make(&d->tensors[name], dtype, c->ragged ? 3 : 4, c->ragged ? shape3 : shape4,
	                 !c->wild    ? NULL
	                 : c->ragged ? heads_outside
	                             : tokens_outside,
	                 !c->wild    ? NULL
	                 : c->ragged ? pad3
	                             : pad,
	                 c->wild ? 32 : 0);
}

static void make_lse(struct data *d)
{
	const struct test_case *c = &d->c;
	const int64_t shape3[3] = {c->b, c->h_q, c->s_q}, shape2[2] = {c->h_q, d->total_q};
	static const int heads_inside[3] = {0, 2, 1}, heads_inside2[2] = {1, 0};
	data_tensor_make(&d->tensors[DATA_LSE], (struct fmla_dtype)FMLA_FP32, c->ragged ? 2 : 3,
	                 c->ragged ? shape2 : shape3,
	                 !c->wild    ? NULL
	                 : c->ragged ? heads_inside2
	                             : heads_inside,
	                 c->wild ? (const int64_t[]){1, 3, 2} : NULL, c->wild ? 4 : 0);
}

/* Where the values of query token n (over all requests), head h lie. */
static int64_t row_at(const struct data *d, enum data_name name, int64_t n, int64_t h)
{
	const int64_t *s = d->tensors[name].strides;
	if (name == DATA_LSE)
		return d->c.ragged ? h * s[0] + n * s[1] : n / d->c.s_q * s[0] + h * s[1] + n % d->c.s_q * s[2];
	return d->c.ragged ? n * s[0] + h * s[1] : n / d->c.s_q * s[0] + n % d->c.s_q * s[1] + h * s[2];
}

static void make_q(struct data *d, struct fmla_dtype dtype)
{
	const struct test_case *c = &d->c;
	make_rows(d, DATA_Q, dtype, c->dqk, 3);
	memset(d->tensors[DATA_Q].host, GAP_BYTE, d->tensors[DATA_Q].bytes);
	/* score = scale * q . k has the deviation scale * sqrt(dqk) * 0.1 * q's = 0.1 * q's, with scale = dqk^-1/2 */
	const double deviation = (double)c->peak;
	for (int64_t n = 0; n < d->total_q; n++)
		for (int64_t h = 0; h < c->h_q; h++)
			for (int64_t v = 0; v < c->dqk; v++)
				value_set(
				    dtype, values(&d->tensors[DATA_Q]), row_at(d, DATA_Q, n, h) + v,
				    (float)(deviation * random_normal(salted(c, SALT_Q), (uint64_t)((n * c->h_q + h) * c->dqk + v))));
}

static void make_sink(struct data *d)
{
	if (!d->c.sink)
		return;
	data_tensor_make(&d->tensors[DATA_SINK], (struct fmla_dtype)FMLA_FP32, 1, &d->c.h_q, NULL, NULL, 0);
	float *sink = values(&d->tensors[DATA_SINK]);
	for (int64_t h = 0; h < d->c.h_q; h++) /* around the lse of a few hundred keys; two heads have the extremes */
		sink[h] = h == 1   ? INFINITY
		          : h == 2 ? -INFINITY
		                   : (float)(5 + 2 * random_normal(salted(&d->c, SALT_SINK), (uint64_t)h));
}

void data_make(struct data *d, const struct test_case *c)
{
	const struct fmla_dtype dtype = c->fp16 ? (struct fmla_dtype)FMLA_FP16 : (struct fmla_dtype)FMLA_BF16;
	*d = (struct data){.c = *c};
	make_lengths(d);
	make_cache(d, make_table(d), dtype);
	make_q(d, dtype);
	make_sink(d);
	make_rows(d, DATA_OUT, dtype, 512, 5);
	make_lse(d);
	data_poison_outputs(d);
	struct data_tensor *t = d->tensors;
	d->args = (struct fmla_decode_args){.struct_size = sizeof(d->args),
	                                    .q = &t[DATA_Q].t,
	                                    .kv_cache = &t[DATA_KV].t,
	                                    .block_table = &t[DATA_TABLE].t,
	                                    .cache_seqlens = &t[DATA_LENS].t,
	                                    .cu_seqlens_q = c->ragged ? &t[DATA_CU].t : NULL,
	                                    .attn_sink = c->sink ? &t[DATA_SINK].t : NULL,
	                                    .out = &t[DATA_OUT].t,
	                                    .lse = &t[DATA_LSE].t,
	                                    .softmax_scale = 1 / sqrt((double)c->dqk),
	                                    .causal = (int32_t)c->causal,
	                                    .max_seqlen_q = c->ragged && c->seed % 2 ? (int32_t)MIN(c->s_q, d->total_q) : 0,
	                                    .window = c->window,
	                                    .flags = (c->neg_inf ? FMLA_EMPTY_LSE_NEG_INF : 0u) |
	                                             (c->invariant ? FMLA_BATCH_INVARIANT : 0u)};
}

void data_free(struct data *d)
{
	for (int i = 0; i < DATA_TENSORS; i++)
		data_tensor_free(&d->tensors[i]);
}

/* ---- results --------------------------------------------------------------------------------------------------- */

void data_poison_outputs(struct data *d)
{
	memset(d->tensors[DATA_OUT].host, GAP_BYTE, d->tensors[DATA_OUT].bytes);
	memset(d->tensors[DATA_LSE].host, GAP_BYTE, d->tensors[DATA_LSE].bytes);
}

/* Are all bytes of a buffer but `rows` runs of `run` bytes still untouched?  Counts them: cheap and order-free. */
static bool gaps_untouched(const struct data *d, enum data_name name, size_t run)
{
	const struct data_tensor *t = &d->tensors[name];
	unsigned char *copy = malloc(t->bytes + 1);
	if (!copy)
		exit(2);
	memcpy(copy, t->host, t->bytes);
	for (int64_t n = 0; n < d->total_q; n++)
		for (int64_t h = 0; h < d->c.h_q; h++)
			memset(copy + t->t.byte_offset + (size_t)row_at(d, name, n, h) * (t->t.dtype.bits / 8u), GAP_BYTE, run);
	bool untouched = true;
	for (size_t i = 0; i < t->bytes; i++)
		untouched &= copy[i] == GAP_BYTE;
	free(copy);
	return untouched;
}

bool data_result(const struct data *d, struct result *r)
{
	const struct data_tensor *out = &d->tensors[DATA_OUT], *lse = &d->tensors[DATA_LSE];
	*r = (struct result){.tokens = d->total_q, .h_q = d->c.h_q, .d_v = 512, .deviation = 0.1 * (double)d->c.peak};
	const size_t rows = (size_t)(r->tokens * r->h_q);
	r->out = malloc(rows * (size_t)r->d_v * sizeof(float) + 1);
	r->lse = malloc(rows * sizeof(float) + 1);
	if (!r->out || !r->lse)
		exit(2);
	for (int64_t n = 0; n < r->tokens; n++) {
		for (int64_t h = 0; h < r->h_q; h++) {
			const int64_t row = n * r->h_q + h;
			for (int64_t v = 0; v < r->d_v; v++)
				r->out[row * r->d_v + v] = value_get(out->t.dtype, values(out), row_at(d, DATA_OUT, n, h) + v);
			r->lse[row] = value_get(lse->t.dtype, values(lse), row_at(d, DATA_LSE, n, h));
		}
	}
	return gaps_untouched(d, DATA_OUT, (size_t)r->d_v * 2) && gaps_untouched(d, DATA_LSE, sizeof(float));
}

void result_free(struct result *r)
{
	free(r->out);
	free(r->lse);
	*r = (struct result){0};
}

fmla_status data_decode(struct data *d, fmla_ctx *ctx, struct result *r, bool *ok)
{
	*r = (struct result){0};
	size_t bytes = 0;
	fmla_status status = fmla_workspace_size(ctx, &d->args, &bytes);
	if (status != FMLA_OK)
		return status;
	void *workspace = guarded_alloc(bytes, 256);
	memset(workspace, 0xff, bytes);
	d->args.workspace = workspace;
	d->args.workspace_size = bytes;
	data_poison_outputs(d);
	status = fmla_decode(ctx, &d->args);
	d->args.workspace = NULL;
	d->args.workspace_size = 0;
	guarded_free(workspace, bytes);
	if (status != FMLA_OK)
		return status;
	const bool untouched = data_result(d, r);
	if (ok)
		*ok = untouched;
	return FMLA_OK;
}
