/* SPDX-License-Identifier: MIT
 *
 * Fuzz target: argument structs.  The input makes a small valid call and then damages it: shapes, strides, dtypes,
 * devices, offsets, NULLs, lengths, tables, plans, flags.  The library cannot know how large the caller's buffers are,
 * so what it accepts is only run when it stays inside of ours; everything else must be refused, with a sentence, and
 * without a write. */
#include "flash_mla.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)  \
	do {             \
		if (!(cond)) \
			abort(); \
	} while (0)

enum {
	MAX_DIMS = 5,
	MAX_TENSORS = 10,
	MAX_LENGTH = 3000,
	STRUCT_BYTES = 4096,
	BUFFER_BYTES = 1 << 17,
	MAX_WORKSPACE = 1 << 26
};

/* ---- the input as a stream of choices --------------------------------------------------------------------------- */

struct input {
	const uint8_t *at, *end;
};

static uint64_t take(struct input *in, size_t bytes)
{
	uint64_t v = 0;
	for (size_t i = 0; i < bytes && in->at < in->end; i++)
		v = v << 8 | *in->at++;
	return v;
}

static int64_t below(struct input *in, int64_t n)
{
	return (int64_t)(take(in, 1) % (uint64_t)n);
}

/* Mostly small, sometimes an edge, sometimes anything. */
static int64_t any_number(struct input *in)
{
	static const int64_t edges[] = {0,   -1, 1,   INT32_MAX, (int64_t)1 << 31, INT64_MAX, INT64_MIN, 1 << 16, 575,
	                                577, 8,  512, 576};
	switch (below(in, 4)) {
	case 0:
		return edges[below(in, sizeof(edges) / sizeof(edges[0]))];
	case 1:
		return (int64_t)take(in, 8);
	default:
		return below(in, 20);
	}
}

/* ---- tensors over buffers of known size ------------------------------------------------------------------------- */

struct buffer {
	struct fmla_tensor t;
	int64_t shape[MAX_DIMS], strides[MAX_DIMS];
	uint8_t *bytes;
	size_t capacity;
};

struct call {
	struct buffer buffers[MAX_TENSORS];
	int count;
	union {
		size_t struct_size;
		struct fmla_decode_args decode;
		struct fmla_merge_args merge;
		struct fmla_kv_append_args append;
		uint8_t bytes[STRUCT_BYTES]; /* as long as struct_size may say */
	} args;
};

static struct fmla_tensor *add(struct call *k, struct input *in, struct fmla_dtype dtype, int ndim,
                               const int64_t *shape)
{
	struct buffer *b = &k->buffers[k->count++];
	size_t bytes = dtype.bits / 8u;
	for (int d = ndim - 1; d >= 0; d--) {
		b->shape[d] = shape[d];
		b->strides[d] = (int64_t)(bytes / (dtype.bits / 8u));
		bytes *= (size_t)shape[d];
	}
	b->capacity = bytes;
	CHECK(bytes <= BUFFER_BYTES && (b->bytes = malloc(bytes + !bytes))); /* 16-byte aligned, ASan guards its end */
	for (size_t i = 0; i < bytes; i++)
		b->bytes[i] = i % 97 == 0 ? (uint8_t)take(in, 1) : (uint8_t)(i * 29 % 59);
	b->t = (struct fmla_tensor){.data = b->bytes,
	                            .device = {FMLA_DEVICE_CPU, 0},
	                            .ndim = ndim,
	                            .dtype = dtype,
	                            .shape = b->shape,
	                            .strides = b->strides};
	return &b->t;
}

static void fill_ints(struct fmla_tensor *t, struct input *in, int64_t n, int64_t limit)
{
	for (int64_t i = 0; i < n; i++)
		((int32_t *)t->data)[i] = (int32_t)(below(in, 8) ? below(in, limit) : any_number(in));
}

static void damage(struct call *k, struct input *in)
{
	for (int64_t n = below(in, 6); n > 0; n--) {
		struct buffer *b = &k->buffers[below(in, k->count)];
		const int d = (int)below(in, MAX_DIMS);
		switch (below(in, 12)) {
		case 0:
			b->t.ndim = (int32_t)any_number(in);
			break;
		case 1:
		case 2:
			b->shape[d] = any_number(in);
			break;
		case 3:
		case 4:
			b->strides[d] = any_number(in);
			break;
		case 5:
			b->t.dtype =
			    (struct fmla_dtype){(uint8_t)below(in, 6), (uint8_t)(8 << below(in, 4)), (uint16_t)(1 + below(in, 2))};
			break;
		case 6:
			b->t.device = (struct fmla_device){(int32_t)any_number(in), (int32_t)below(in, 2)};
			break;
		case 7:
			b->t.byte_offset = (uint64_t)any_number(in);
			break;
		case 8:
			b->t.data = NULL;
			break;
		case 9:
			b->t.shape = NULL;
			break;
		case 10:
			b->t.strides = NULL;
			break;
		default:
			k->args.bytes[below(in, 200)] =
			    (uint8_t)take(in, 1); /* flags, sizes, scale, ... and pointers, repaired below */
			break;
		}
	}
}

/* Does every element that shape and strides describe lie in the buffer? */
static int inside(const struct buffer *b)
{
	if (!b->t.data)
		return 1; /* refused, or empty */
	if (b->t.ndim < 0 || b->t.ndim > MAX_DIMS || !b->t.shape)
		return 0;
	__int128 last = 0, dense = 1;
	for (int d = b->t.ndim - 1; d >= 0; d--) {
		const int64_t n = b->shape[d];
		if (n == 0)
			return 1;
		if (n < 0 || n > INT32_MAX)
			return 0;
		last += n > 1 ? (__int128)(n - 1) * (b->t.strides ? b->strides[d] : dense) : 0;
		dense *= n;
		if (last > BUFFER_BYTES || last < 0 || dense > BUFFER_BYTES * (__int128)BUFFER_BYTES)
			return 0;
	}
	return b->t.byte_offset <= b->capacity &&
	       (last + 1) * (b->t.dtype.bits / 8) <= (__int128)(b->capacity - b->t.byte_offset);
}

static void expect_sentence(fmla_ctx *ctx, fmla_status status)
{
	CHECK(status >= FMLA_OK && status <= FMLA_ERR_PAGE);
	CHECK((status == FMLA_OK) == (fmla_last_error(ctx)[0] == '\0'));
}

/* Runs a call when all it may touch is ours; a refused one must leave the output alone. */
static void run_guarded(struct call *k, fmla_ctx *ctx, const struct buffer *output,
                        fmla_status (*function)(fmla_ctx *, struct call *))
{
	for (int i = 0; i < k->count; i++)
		if (!inside(&k->buffers[i]))
			return;
	uint8_t *before = malloc(output->capacity + 1);
	CHECK(before);
	memcpy(before, output->bytes, output->capacity);
	const fmla_status status = function(ctx, k);
	expect_sentence(ctx, status);
	CHECK(status == FMLA_OK || memcmp(before, output->bytes, output->capacity) == 0);
	free(before);
}

/* ---- the three calls --------------------------------------------------------------------------------------------- */

static fmla_status call_decode(fmla_ctx *ctx, struct call *k)
{
	return fmla_decode(ctx, &k->args.decode);
}

static fmla_status call_merge(fmla_ctx *ctx, struct call *k)
{
	return fmla_merge(ctx, &k->args.merge);
}

static fmla_status call_append(fmla_ctx *ctx, struct call *k)
{
	return fmla_kv_append(ctx, &k->args.append);
}

static const struct fmla_dtype int32 = FMLA_INT32, int64 = FMLA_INT64, fp32 = FMLA_FP32;

static struct fmla_dtype sixteen_bits(struct input *in)
{
	return below(in, 2) ? (struct fmla_dtype)FMLA_FP16 : (struct fmla_dtype)FMLA_BF16;
}

static void fuzz_decode(struct call *k, struct input *in, fmla_ctx *ctx)
{
	const struct fmla_dtype dtype = sixteen_bits(in);
	const int64_t b = below(in, 4), s_q = 1 + below(in, 3), h_kv = 1 + below(in, 2), h_q = h_kv * (1 + below(in, 3));
	const int64_t page = 1 + below(in, 9), pages = below(in, 4), width = below(in, 6), d = below(in, 2) ? 576 : 512;
	const int64_t ragged = below(in, 3) == 0, tokens = b * s_q, plan_rows = 1 + below(in, 5);
#define SHAPE(...) ((const int64_t[]){__VA_ARGS__})
	struct fmla_decode_args a = {.struct_size = sizeof(a), .softmax_scale = 0.04, .causal = (int32_t)below(in, 2)};
	a.q = ragged ? add(k, in, dtype, 3, SHAPE(tokens, h_q, d)) : add(k, in, dtype, 4, SHAPE(b, s_q, h_q, d));
	a.kv_cache = add(k, in, dtype, 4, SHAPE(pages, page, h_kv, d));
	struct fmla_tensor *table = add(k, in, int32, 2, SHAPE(b, width)), *lens = add(k, in, int32, 1, SHAPE(b));
	struct fmla_tensor *cu = add(k, in, int32, 1, SHAPE(b + 1)), *rows = add(k, in, int32, 2, SHAPE(plan_rows, 8));
	struct fmla_tensor *splits = add(k, in, int32, 1, SHAPE(b + 1)), *sink = add(k, in, fp32, 1, SHAPE(h_q));
	a.out = ragged ? add(k, in, dtype, 3, SHAPE(tokens, h_q, 512)) : add(k, in, dtype, 4, SHAPE(b, s_q, h_q, 512));
	const struct buffer *output = &k->buffers[k->count - 1];
	a.lse = ragged ? add(k, in, fp32, 2, SHAPE(h_q, tokens)) : add(k, in, fp32, 3, SHAPE(b, h_q, s_q));
	fill_ints(table, in, b * width, pages + 1);
	fill_ints(lens, in, b, width * page + 2);
	const int32_t *lengths = lens->data;
	fill_ints(rows, in, plan_rows * 8, 4);
	fill_ints(splits, in, b + 1, 4);
	for (int64_t i = 0; i <= b; i++)
		((int32_t *)cu->data)[i] = (int32_t)(below(in, 12) ? i * s_q : any_number(in));
	a.block_table = table;
	a.cache_seqlens = lens;
	a.cu_seqlens_q = ragged ? cu : NULL;
	a.attn_sink = below(in, 3) ? NULL : sink;
	a.plan_parts = below(in, 2) ? NULL : rows;
	a.plan_splits = a.plan_parts ? splits : NULL;
	a.window = below(in, 3) ? 0 : any_number(in);
	a.flags = (uint32_t)below(in, 16);

	memcpy(k->args.bytes, &a, sizeof(a));
	damage(k, in);
	struct fmla_decode_args *damaged = &k->args.decode;
	damaged->q = a.q; /* wild pointers are the caller's: only NULL can be noticed */
	damaged->kv_cache = a.kv_cache;
	damaged->block_table = below(in, 30) ? a.block_table : NULL;
	damaged->cache_seqlens = a.cache_seqlens;
	damaged->cu_seqlens_q = a.cu_seqlens_q;
	damaged->attn_sink = a.attn_sink;
	damaged->out = below(in, 30) ? a.out : NULL;
	damaged->lse = below(in, 30) ? a.lse : NULL;
	damaged->plan_parts = a.plan_parts;
	damaged->plan_splits = below(in, 30) ? a.plan_splits : NULL;

	size_t bytes = 0;
	int64_t num_parts = 0;
	fmla_status status = fmla_workspace_size(ctx, damaged, &bytes);
	expect_sentence(ctx, status);
	const fmla_status also = fmla_plan_parts(ctx, damaged, &num_parts);
	CHECK(status == also && (status != FMLA_OK || num_parts >= 1));
	if (status == FMLA_OK && bytes > MAX_WORKSPACE)
		return;
	for (int64_t i = 0; i < b; i++)
		if (lengths[i] > MAX_LENGTH)
			return; /* valid with wide pages, but slow */
	void *workspace = aligned_alloc(256, bytes + 256 - bytes % 256);
	CHECK(workspace);
	damaged->workspace = below(in, 30) ? workspace : NULL;
	damaged->workspace_size = bytes;
	run_guarded(k, ctx, output, call_decode);
	int all_inside = 1;
	for (int i = 0; i < k->count; i++)
		all_inside &= inside(&k->buffers[i]);
	if (all_inside && fmla_plan(ctx, damaged) == FMLA_OK)
		run_guarded(k, ctx, output, call_decode);
	free(workspace);
}

static void fuzz_merge(struct call *k, struct input *in, fmla_ctx *ctx)
{
	const int64_t n = below(in, 4), b = below(in, 3), s_q = below(in, 3), h_q = below(in, 5), d_v = 8 * below(in, 12);
	struct fmla_merge_args a = {.struct_size = sizeof(a), .flags = (uint32_t)below(in, 3)};
	a.partial_out = add(k, in, below(in, 2) ? fp32 : sixteen_bits(in), 5, SHAPE(n, b, s_q, h_q, d_v));
	a.partial_lse = add(k, in, fp32, 4, SHAPE(n, b, h_q, s_q));
	struct fmla_tensor *sink = add(k, in, fp32, 1, SHAPE(h_q));
	a.attn_sink = below(in, 2) ? sink : NULL;
	a.lse = add(k, in, fp32, 3, SHAPE(b, h_q, s_q));
	a.out = add(k, in, below(in, 2) ? fp32 : sixteen_bits(in), 4, SHAPE(b, s_q, h_q, d_v));
	const struct buffer *output = &k->buffers[k->count - 1];
	memcpy(k->args.bytes, &a, sizeof(a));
	damage(k, in);
	struct fmla_merge_args *damaged = &k->args.merge;
	damaged->partial_out = a.partial_out;
	damaged->partial_lse = below(in, 30) ? a.partial_lse : NULL;
	damaged->attn_sink = a.attn_sink;
	damaged->out = a.out;
	damaged->lse = below(in, 5) ? a.lse : NULL;
	run_guarded(k, ctx, output, call_merge);
}

static void fuzz_append(struct call *k, struct input *in, fmla_ctx *ctx)
{
	const struct fmla_dtype dtype = sixteen_bits(in);
	const int64_t n = below(in, 6), pages = below(in, 4), page = 1 + below(in, 5), h_kv = 1 + below(in, 2);
	const int64_t latent = below(in, 40), rope = below(in, 9), wide = below(in, 2);
	struct fmla_kv_append_args a = {.struct_size = sizeof(a)};
	a.kv_latent = h_kv == 1 ? add(k, in, dtype, 2, SHAPE(n, latent)) : add(k, in, dtype, 3, SHAPE(n, h_kv, latent));
	struct fmla_tensor *r =
	    h_kv == 1 ? add(k, in, dtype, 2, SHAPE(n, rope)) : add(k, in, dtype, 3, SHAPE(n, h_kv, rope));
	a.k_rope = rope ? r : NULL;
	struct fmla_tensor *slots = add(k, in, wide ? int64 : int32, 1, SHAPE(n));
	for (int64_t i = 0; i < n; i++) {
		const int64_t slot = below(in, 9) ? below(in, pages * page + 1) - 1 : any_number(in);
		if (wide)
			((int64_t *)slots->data)[i] = slot;
		else
			((int32_t *)slots->data)[i] = (int32_t)slot;
	}
	a.slot_mapping = slots;
	a.kv_cache = add(k, in, dtype, 4, SHAPE(pages, page, h_kv, latent + rope));
	const struct buffer *output = &k->buffers[k->count - 1];
	memcpy(k->args.bytes, &a, sizeof(a));
	damage(k, in);
	struct fmla_kv_append_args *damaged = &k->args.append;
	damaged->kv_latent = a.kv_latent;
	damaged->k_rope = a.k_rope;
	damaged->slot_mapping = below(in, 30) ? a.slot_mapping : NULL;
	damaged->kv_cache = a.kv_cache;
	run_guarded(k, ctx, output, call_append);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static fmla_ctx *contexts[2];
	for (int i = 0; i < 2 && !contexts[i]; i++) {
		const struct fmla_ctx_options o = {.struct_size = sizeof(o), .backend = i ? "cpu" : "ref", .num_threads = 3};
		CHECK(fmla_ctx_create(&contexts[i], &o) == FMLA_OK);
	}
	static struct call call; /* large: not on the stack */
	memset(&call, 0, sizeof(call));
	struct input in = {data, data + size};
	const int64_t what = below(&in, 8);
	fmla_ctx *ctx = contexts[below(&in, 2)];
	if (what == 0)
		fuzz_merge(&call, &in, ctx);
	else if (what == 1)
		fuzz_append(&call, &in, ctx);
	else
		fuzz_decode(&call, &in, ctx);
	for (int i = 0; i < call.count; i++)
		free(call.buffers[i].bytes);
	return 0;
}
