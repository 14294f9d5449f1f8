/* SPDX-License-Identifier: MIT
 *
 * Decode on the GPU: the table of shapes that must agree with `ref`, and the promises beyond one call. */
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHAPE(...)                                                                                            \
	{                                                                                                         \
		.b = 7, .s_q = 1, .h_q = 16, .h_kv = 1, .page = 64, .s_k = 600, .lengths = MIXED, .seed = __LINE__, __VA_ARGS__ \
	}
/* The same shape in both types. */
#define BOTH(...) SHAPE(__VA_ARGS__), SHAPE(__VA_ARGS__, .fp16 = 1)

/* Later initialisers win: each line says what differs from the shape above. */
#pragma GCC diagnostic ignored "-Woverride-init"
const struct shape parity_shapes[] = {
    /* heads: full tiles, one row more, one less, and the counts of real models */
    BOTH(.h_q = 1), BOTH(.h_q = 3), BOTH(.h_q = 8), SHAPE(.h_q = 9), BOTH(.h_q = 16), SHAPE(.h_q = 17),
    SHAPE(.h_q = 24, .fp16 = 1), BOTH(.h_q = 32), SHAPE(.h_q = 33, .fp16 = 1), SHAPE(.h_q = 63), BOTH(.h_q = 64),
    SHAPE(.h_q = 65), SHAPE(.h_q = 100, .fp16 = 1), SHAPE(.h_q = 127), BOTH(.h_q = 128), SHAPE(.h_q = 129),
    SHAPE(.h_q = 130, .fp16 = 1),
    /* query tokens */
    BOTH(.s_q = 2, .causal = 1), SHAPE(.s_q = 2, .h_q = 128, .causal = 1), SHAPE(.s_q = 3, .h_q = 5, .causal = 1),
    SHAPE(.s_q = 4, .h_q = 32, .causal = 1, .fp16 = 1), SHAPE(.s_q = 5, .h_q = 9), SHAPE(.s_q = 17, .h_q = 1, .causal = 1),
    SHAPE(.b = 2, .s_q = 70, .h_q = 2, .causal = 1, .s_k = 130), SHAPE(.b = 1, .s_q = 300, .h_q = 4, .causal = 1, .lengths = UNIFORM, .s_k = 300),
    /* KV heads */
    BOTH(.h_q = 8, .h_kv = 2), SHAPE(.h_q = 6, .h_kv = 3, .s_q = 2, .causal = 1), SHAPE(.h_q = 128, .h_kv = 2),
    SHAPE(.h_q = 5, .h_kv = 5, .fp16 = 1), SHAPE(.h_q = 160, .h_kv = 2, .b = 3),
    /* pages */
    BOTH(.page = 1), SHAPE(.page = 2), SHAPE(.page = 7), BOTH(.page = 16), SHAPE(.page = 24), BOTH(.page = 32), SHAPE(.page = 48),
    SHAPE(.page = 96), BOTH(.page = 128), SHAPE(.page = 192), SHAPE(.page = 256), SHAPE(.page = 1000),
    SHAPE(.page = 1, .h_q = 64), SHAPE(.page = 16, .h_q = 128), SHAPE(.page = 48, .h_q = 64, .s_q = 2, .causal = 1),
    SHAPE(.page = 256, .h_q = 128, .fp16 = 1), SHAPE(.page = 32, .h_kv = 2, .h_q = 32),
    /* no rope part */
    BOTH(.d_qk = 512), SHAPE(.d_qk = 512, .h_q = 64), SHAPE(.d_qk = 512, .h_q = 128, .page = 16),
    /* window */
    BOTH(.window = 1), SHAPE(.window = 64), SHAPE(.window = 65, .s_q = 3, .causal = 1), SHAPE(.window = 100, .h_q = 128, .causal = 1, .s_q = 2),
    SHAPE(.window = 300, .h_q = 64, .page = 16), SHAPE(.window = 100000, .h_q = 8), SHAPE(.window = 10, .s_q = 20, .h_q = 2),
    /* ragged query tokens */
    BOTH(.ragged_q = 1, .s_q = 4, .causal = 1), SHAPE(.ragged_q = 1, .s_q = 9, .h_q = 5), SHAPE(.ragged_q = 1, .s_q = 3, .h_q = 128, .causal = 1),
    SHAPE(.ragged_q = 1, .s_q = 2, .h_q = 64, .window = 77, .causal = 1, .b = 20), SHAPE(.ragged_q = 1, .s_q = 40, .h_q = 2, .h_kv = 2, .causal = 1),
    /* strides */
    BOTH(.strided = 1), SHAPE(.strided = 1, .odd = 1), SHAPE(.odd = 1, .h_q = 128), SHAPE(.odd = 1, .h_q = 64, .fp16 = 1),
    SHAPE(.strided = 1, .h_q = 128, .page = 16, .s_q = 2, .causal = 1), SHAPE(.strided = 1, .h_kv = 2, .h_q = 64, .page = 32),
    SHAPE(.odd = 1, .h_q = 8, .ragged_q = 1, .s_q = 3), SHAPE(.strided = 1, .h_q = 32, .page = 128),
    /* sinks, empty lse, no lse */
    BOTH(.sink = 1), SHAPE(.sink = 1, .h_q = 128), SHAPE(.sink = 1, .h_q = 64, .s_q = 2, .causal = 1), SHAPE(.sink = 1, .h_q = 8, .b = 1, .lengths = UNIFORM, .s_k = 3000),
    BOTH(.flags = FMLA_EMPTY_LSE_NEG_INF), SHAPE(.flags = FMLA_EMPTY_LSE_NEG_INF, .h_q = 128, .s_q = 3, .causal = 1), SHAPE(.no_lse = 1), SHAPE(.no_lse = 1, .h_q = 128),
    /* scores: peaked, huge, zero scale, negative scale */
    BOTH(.loud = 8), SHAPE(.loud = 8, .h_q = 128), SHAPE(.loud = 1000), SHAPE(.loud = 1000, .h_q = 64, .fp16 = 1), SHAPE(.scale = -0.05f), SHAPE(.scale = -0.05f, .h_q = 128),
    SHAPE(.scale = 1e-30f, .h_q = 64), SHAPE(.scale = 3.0f, .loud = 100, .h_q = 8),
    /* splits: few requests, many parts */
    BOTH(.b = 1, .lengths = UNIFORM, .s_k = 8000, .h_q = 16), BOTH(.b = 1, .lengths = UNIFORM, .s_k = 3000, .h_q = 64),
    BOTH(.b = 1, .lengths = UNIFORM, .s_k = 2000, .h_q = 128), SHAPE(.b = 1, .lengths = UNIFORM, .s_k = 40000, .h_q = 1),
    SHAPE(.b = 2, .lengths = UNIFORM, .s_k = 4001, .h_q = 8, .s_q = 2, .causal = 1), SHAPE(.b = 1, .lengths = UNIFORM, .s_k = 64, .h_q = 16),
    SHAPE(.b = 1, .lengths = UNIFORM, .s_k = 65, .h_q = 128), SHAPE(.b = 3, .s_k = 5000, .lengths = UNIFORM, .h_q = 4, .page = 16, .fp16 = 1),
    SHAPE(.b = 1, .s_k = 9000, .lengths = UNIFORM, .h_q = 4, .h_kv = 4), SHAPE(.b = 1, .s_k = 5000, .lengths = UNIFORM, .h_q = 16, .window = 2000),
    /* batches around the number of SMs, shared pages, and one long request among short ones */
    SHAPE(.b = 131, .s_k = 200, .h_q = 4), SHAPE(.b = 132, .s_k = 200, .h_q = 4), SHAPE(.b = 133, .s_k = 200, .h_q = 4, .fp16 = 1),
    SHAPE(.b = 300, .s_k = 150, .h_q = 3, .page = 16), SHAPE(.b = 40, .cycle = 5, .h_q = 8), SHAPE(.b = 9, .cycle = 3, .h_q = 64, .page = 32),
    SHAPE(.b = 1, .lengths = UNIFORM, .s_k = 1100000, .h_q = 1, .cycle = 40), SHAPE(.b = 8, .s_k = 20000, .h_q = 2, .cycle = 9),
    /* batch-invariant mode */
    BOTH(.flags = FMLA_BATCH_INVARIANT), SHAPE(.flags = FMLA_BATCH_INVARIANT, .b = 2, .lengths = UNIFORM, .s_k = 9000, .h_q = 8),
    SHAPE(.flags = FMLA_BATCH_INVARIANT, .b = 2, .lengths = UNIFORM, .s_k = 5000, .h_q = 64, .window = 4500),
};
const int num_parity_shapes = sizeof(parity_shapes) / sizeof(parity_shapes[0]);

/* ---- helpers ---- */

/* out and lse as they are on the device, one after the other. */
static uint8_t *download_results(const struct problem_pair *p)
{
	uint8_t *all = malloc(p->out.bytes + p->lse.bytes + 1);
	if (!all || !mirror_download(&p->out, all) || (p->lse.used && !mirror_download(&p->lse, all + p->out.bytes))) {
		free(all);
		return NULL;
	}
	return all;
}

static bool same_results(const struct problem_pair *p, const uint8_t *before, const char *what)
{
	uint8_t *now = download_results(p);
	const bool same = now && memcmp(now, before, p->out.bytes + p->lse.bytes) == 0;
	free(now);
	EXPECT(same, "%s: results are not bitwise the same", what);
	return true;
}

#define WITH_PROBLEM(p, shape, body)                    \
	struct problem_pair p;                              \
	bool ok_ = problem_make(&p, (shape)) && (body); \
	problem_free(&p);                                   \
	return ok_

/* ---- one after the other, at once, in a graph ---- */

static bool repeat_body(fmla_ctx *gpu, struct problem_pair *p)
{
	if (!problem_run(p, gpu))
		return false;
	uint8_t *first = download_results(p);
	bool ok = first != NULL;
	for (int i = 0; ok && i < 20; i++) {
		ok = problem_upload(p, gpu) && (fmla_decode(gpu, &p->device) == FMLA_OK || fail("%s", fmla_last_error(gpu))) &&
		     same_results(p, first, "run to run");
	}
	free(first);
	return ok;
}

static bool test_repeat(fmla_ctx *gpu, const void *arg)
{
	WITH_PROBLEM(p, arg, repeat_body(gpu, &p));
}

/* The same call on four streams, each with its own workspace and outputs, all in flight at once. */
enum { STREAMS = 4, ROUNDS = 8 };

static bool streams_body(struct problem_pair *p, fmla_ctx **ctx, cudaStream_t *stream)
{
	for (int i = 0; i < STREAMS; i++) {
		EXPECT(fmla_ctx_create(&ctx[i], NULL) == FMLA_OK, "no context");
		EXPECT_CUDA(cudaStreamCreateWithFlags(&stream[i], cudaStreamNonBlocking));
		if (!problem_upload(&p[i], ctx[i]))
			return false;
		p[i].device.stream = stream[i];
	}
	for (int round = 0; round < ROUNDS; round++)
		for (int i = 0; i < STREAMS; i++)
			EXPECT_OK(ctx[i], fmla_decode(ctx[i], &p[i].device));
	for (int i = 0; i < STREAMS; i++)
		if (!problem_compare(&p[i], "stream"))
			return false;
	return true;
}

static bool test_streams(fmla_ctx *gpu, const void *arg)
{
	(void)gpu; /* a context per stream */
	struct problem_pair p[STREAMS];
	fmla_ctx *ctx[STREAMS] = {0};
	cudaStream_t stream[STREAMS] = {0};
	bool ok = true;
	for (int i = 0; i < STREAMS; i++) {
		struct shape s = *(const struct shape *)arg;
		s.seed += (uint64_t)i;
		s.h_q = i == 0 ? s.h_q : i == 1 ? 8 : i == 2 ? 128 : 32; /* different kernels side by side */
		ok = problem_make(&p[i], &s) && ok;
	}
	ok = ok && streams_body(p, ctx, stream);
	for (int i = 0; i < STREAMS; i++) {
		problem_free(&p[i]);
		fmla_ctx_destroy(ctx[i]);
		if (stream[i])
			cudaStreamDestroy(stream[i]);
	}
	return ok;
}

/* A graph of plan + decode is replayed after lengths and table changed on the device: nothing may stick. */
static bool graph_body(fmla_ctx *gpu, struct problem_pair *p, struct mirror *parts, struct mirror *splits)
{
	cudaStream_t stream;
	cudaGraph_t graph;
	cudaGraphExec_t exec;
	int64_t num_parts;
	if (!problem_upload(p, gpu))
		return false;
	EXPECT_OK(gpu, fmla_plan_parts(gpu, &p->device, &num_parts));
	if (!mirror_make(parts, (struct fmla_dtype)FMLA_INT32, 2, (int64_t[]){num_parts, 8}, NULL) ||
	    !mirror_make(splits, (struct fmla_dtype)FMLA_INT32, 1, (int64_t[]){p->shape.b + 1}, NULL) ||
	    !mirror_upload(parts, NULL) || !mirror_upload(splits, NULL))
		return false;
	p->device.plan_parts = &parts->on_device;
	p->device.plan_splits = &splits->on_device;
	EXPECT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
	p->device.stream = stream;
	EXPECT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
	EXPECT_OK(gpu, fmla_plan(gpu, &p->device));
	EXPECT_OK(gpu, fmla_decode(gpu, &p->device));
	EXPECT_OK(gpu, fmla_decode(gpu, &p->device)); /* the next layer */
	EXPECT_CUDA(cudaStreamEndCapture(stream, &graph));
	EXPECT_CUDA(cudaGraphInstantiate(&exec, graph, 0));

	int32_t *lengths = p->lengths.on_host.data;
	uint64_t rng = 5;
	bool ok = true;
	for (int replay = 0; ok && replay < 6; replay++) {
		if (replay > 0) /* only shorter ones: the host's table and cache stay as they are */
			for (int i = 0; i < p->shape.b; i++)
				lengths[i] = replay == 3 ? 0 : (int32_t)(random_next(&rng) % (uint64_t)(lengths[i] + 1));
		if (replay == 4) { /* and back to full length */
			for (int i = 0; i < p->shape.b; i++)
				lengths[i] = p->shape.s_k;
		}
		ok = problem_reference(p) && mirror_upload(&p->lengths, NULL) && mirror_poison(&p->out) &&
		     mirror_poison(&p->lse);
		EXPECT_CUDA(cudaGraphLaunch(exec, stream));
		ok = ok && problem_compare(p, replay == 3 ? "replay with empty requests" : "replay");
	}
	cudaGraphExecDestroy(exec);
	cudaGraphDestroy(graph);
	cudaStreamDestroy(stream);
	return ok;
}

static bool test_graph(fmla_ctx *gpu, const void *arg)
{
	struct problem_pair p;
	struct mirror parts = {0}, splits = {0};
	const bool ok = problem_make(&p, arg) && graph_body(gpu, &p, &parts, &splits);
	problem_free(&p);
	mirror_free(&parts);
	mirror_free(&splits);
	return ok;
}

/* ---- batch invariance ---- */

/* Request i of a batch alone, and the whole batch: bit for bit the same rows. */
static bool invariant_body(fmla_ctx *gpu, struct problem_pair *p)
{
	if (!problem_run(p, gpu))
		return false;
	uint8_t *whole = download_results(p);
	EXPECT(whole, "no results");
	const struct fmla_decode_args batch = p->device;
	bool ok = mirror_poison(&p->out) && mirror_poison(&p->lse);
	for (int i = 0; ok && i < p->shape.b; i++) {
		struct fmla_tensor one[5] = {*batch.q, *batch.block_table, *batch.cache_seqlens, *batch.out, *batch.lse};
		int64_t shapes[5][4];
		for (int t = 0; t < 5; t++) {
			memcpy(shapes[t], one[t].shape, sizeof(int64_t) * (size_t)one[t].ndim);
			shapes[t][0] = 1;
			one[t].shape = shapes[t];
			one[t].data = (uint8_t *)one[t].data + i * one[t].strides[0] * (one[t].dtype.bits / 8);
		}
		struct fmla_decode_args alone = batch;
		alone.q = &one[0];
		alone.block_table = &one[1];
		alone.cache_seqlens = &one[2];
		alone.out = &one[3];
		alone.lse = &one[4];
		ok = fmla_decode(gpu, &alone) == FMLA_OK || fail("%s", fmla_last_error(gpu));
	}
	ok = ok && same_results(p, whole, "alone and in the batch");
	free(whole);
	return ok;
}

static bool test_invariant(fmla_ctx *gpu, const void *arg)
{
	WITH_PROBLEM(p, arg, invariant_body(gpu, &p));
}

/* ---- page indices out of range ---- */

static bool pages_body(fmla_ctx *gpu, struct problem_pair *p)
{
	static const int32_t wrong[] = {-1, INT32_MIN, INT32_MAX, 1 << 20};
	const struct shape *s = &p->shape;
	int32_t *table = p->table.on_host.data;
	const int32_t *lengths = p->lengths.on_host.data;
	uint8_t *out = p->out.on_host.data;
	float *lse = p->lse.on_host.data;
	int victim[4], victims = 0;
	for (int i = 0; i < s->b && victims < 4; i++)
		if (lengths[i] > 0 && i % 2 == 1) {
			const int64_t page = victims % 2 == 0 ? 0 : (lengths[i] - 1) / s->page;
			table[i * p->table.strides[0] + page] = wrong[victims];
			victim[victims++] = i;
		}
	const int64_t row = (int64_t)s->s_q * s->h_q;
	for (int v = 0; v < victims; v++) { /* what must come out: NaN, exactly there */
		memset(out + victim[v] * row * 1024, 0xff, (size_t)row * 1024);
		for (int64_t r = 0; r < row; r++)
			lse[victim[v] * row + r] = NAN;
	}
	if (!problem_run(p, gpu))
		return false;
	p->device.flags |= FMLA_CHECK_PAGES;
	if (!mirror_poison(&p->out))
		return false;
	EXPECT(fmla_decode(gpu, &p->device) == FMLA_ERR_PAGE, "FMLA_CHECK_PAGES missed a wrong page");
	EXPECT(strlen(fmla_last_error(gpu)) > 0, "FMLA_ERR_PAGE without a sentence");
	for (int v = 0; v < victims; v++) /* a good table passes */
		((int32_t *)p->lengths.on_host.data)[victim[v]] = 0;
	return problem_reference(p) && problem_run(p, gpu);
}

static bool test_pages(fmla_ctx *gpu, const void *arg)
{
	WITH_PROBLEM(p, arg, pages_body(gpu, &p));
}

/* ---- sizes ---- */

/* A cache of more than 2^32 bytes and 2^31 values; the pages in use lie at its end. */
static bool huge_body(fmla_ctx *gpu, struct problem_pair *p)
{
	const int64_t offset = 65000, used = p->kv.shape[0], page = p->kv.strides[0];
	int32_t *table = p->table.on_host.data;
	for (int64_t i = 0; i < (int64_t)(p->table.bytes / 4); i++)
		if (table[i] >= 0 && table[i] < used)
			table[i] += (int32_t)offset;
	if (!problem_upload(p, gpu))
		return false;
	uint16_t *cache;
	EXPECT_CUDA(cudaMalloc((void **)&cache, (size_t)((offset + used) * page) * 2));
	cudaMemset(cache, 0xff, (size_t)((offset + used) * page) * 2);
	cudaMemcpy(cache + offset * page, p->kv.on_host.data, p->kv.bytes, cudaMemcpyHostToDevice);
	struct fmla_tensor kv = p->kv.on_device;
	int64_t shape[4] = {offset + used, kv.shape[1], kv.shape[2], kv.shape[3]};
	kv.shape = shape;
	kv.data = cache;
	p->device.kv_cache = &kv;
	const bool ok = (fmla_decode(gpu, &p->device) == FMLA_OK || fail("%s", fmla_last_error(gpu))) &&
	                problem_compare(p, "high pages");
	cudaFree(cache);
	return ok;
}

static bool test_huge(fmla_ctx *gpu, const void *arg)
{
	WITH_PROBLEM(p, arg, huge_body(gpu, &p));
}

static bool test_parity(fmla_ctx *gpu, const void *arg)
{
	WITH_PROBLEM(p, arg, problem_run(&p, gpu));
}

/* Lengths that the device must cut: negative ones to 0, too long ones to the width of the table. */
static bool wild_lengths_body(fmla_ctx *gpu, struct problem_pair *p)
{
	int32_t *lengths = p->lengths.on_host.data;
	const int32_t full = (int32_t)(p->table.shape[1] * p->shape.page);
	int32_t wild[3] = {-5, INT32_MIN, INT32_MAX};
	lengths[0] = lengths[1] = 0;
	int32_t *table = p->table.on_host.data;
	for (int64_t j = 0; j < p->table.shape[1]; j++) /* the long one needs pages everywhere: those of the others */
		table[2 * p->table.strides[0] + j] = table[3 * p->table.strides[0] + j % 2];
	lengths[2] = full;
	if (!problem_reference(p) || !problem_upload(p, gpu))
		return false;
	EXPECT_CUDA(cudaMemcpy(p->lengths.on_device.data, wild, sizeof(wild), cudaMemcpyHostToDevice));
	EXPECT_OK(gpu, fmla_decode(gpu, &p->device));
	return problem_compare(p, "wild lengths");
}

static bool test_wild_lengths(fmla_ctx *gpu, const void *arg)
{
	WITH_PROBLEM(p, arg, wild_lengths_body(gpu, &p));
}

/* ---- the list ---- */

static const struct shape
    repeat16 = SHAPE(.b = 3, .lengths = UNIFORM, .s_k = 3000),
    repeat128 = SHAPE(.b = 2, .lengths = UNIFORM, .s_k = 1500, .h_q = 128), streams = SHAPE(.b = 5, .s_k = 500),
    graph16 = SHAPE(.b = 6, .lengths = UNIFORM, .s_k = 900, .causal = 1, .s_q = 2),
    graph128 = SHAPE(.b = 3, .lengths = UNIFORM, .s_k = 500, .h_q = 128),
    invariant16 = SHAPE(.b = 7, .s_k = 9000, .h_q = 4, .flags = FMLA_BATCH_INVARIANT),
    invariant64 = SHAPE(.b = 4, .lengths = UNIFORM, .s_k = 4500, .h_q = 64, .flags = FMLA_BATCH_INVARIANT),
    pages16 = SHAPE(.b = 9, .lengths = UNIFORM, .s_k = 300), pages128 = SHAPE(.b = 9, .lengths = UNIFORM, .s_k = 200, .h_q = 128),
    pages_small = SHAPE(.b = 9, .lengths = UNIFORM, .s_k = 300, .page = 16, .h_q = 64),
    many = SHAPE(.b = 20000, .s_k = 12, .h_q = 2, .page = 4), most = SHAPE(.b = 65536, .s_k = 3, .h_q = 1, .page = 1),
    none = SHAPE(.b = 0), huge16 = SHAPE(.b = 4), huge128 = SHAPE(.b = 2, .h_q = 128, .lengths = UNIFORM, .s_k = 300),
    wild16 = SHAPE(.b = 5, .lengths = UNIFORM, .s_k = 128), wild128 = SHAPE(.b = 5, .lengths = UNIFORM, .s_k = 128, .h_q = 128),
    brief8 = SHAPE(.b = 3, .h_q = 5, .s_k = 200, .lengths = UNIFORM), brief16 = SHAPE(.b = 2, .h_q = 16, .s_k = 150, .s_q = 2, .causal = 1, .page = 16, .lengths = UNIFORM),
    brief64 = SHAPE(.b = 2, .h_q = 64, .s_k = 200, .lengths = UNIFORM), brief128 = SHAPE(.b = 1, .h_q = 128, .s_k = 333, .lengths = UNIFORM, .fp16 = 1);

const struct test decode_tests[] = {
    {"repeat 16 rows", test_repeat, &repeat16, false},
    {"repeat 128 rows", test_repeat, &repeat128, false},
    {"four streams at once", test_streams, &streams, false},
    {"graph replay 32 rows", test_graph, &graph16, false},
    {"graph replay 128 rows", test_graph, &graph128, false},
    {"batch invariance 4 rows", test_invariant, &invariant16, false},
    {"batch invariance 64 rows", test_invariant, &invariant64, false},
    {"wrong pages 16 rows", test_pages, &pages16, false},
    {"wrong pages 128 rows", test_pages, &pages128, false},
    {"wrong pages, page 16", test_pages, &pages_small, false},
    {"wild lengths 16 rows", test_wild_lengths, &wild16, false},
    {"wild lengths 128 rows", test_wild_lengths, &wild128, false},
    {"20,000 requests", test_parity, &many, false},
    {"65,536 requests", test_parity, &most, false},
    {"no request", test_parity, &none, false},
    {"cache past 2^31 values, 16 rows", test_huge, &huge16, false},
    {"cache past 2^31 values, 128 rows", test_huge, &huge128, false},
    {"brief 8 rows", test_parity, &brief8, true},
    {"brief 32 rows, page 16", test_parity, &brief16, true},
    {"brief 64 rows", test_parity, &brief64, true},
    {"brief 128 rows, split", test_parity, &brief128, true},
    {NULL, NULL, NULL, false},
};
