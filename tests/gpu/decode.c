/* SPDX-License-Identifier: MIT
 *
 * Decode on the GPU: cases beyond the shared table, and the promises beyond one call. */
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
const char *const gpu_cases[] = {
	/* row counts between the tiles, several row tiles, several KV heads beside several row tiles */
	"h_q=24 b=3 varlen=1 s_k=500", "h_q=100 b=3 varlen=1 s_k=500 dtype=fp16",
	"h_q=130 b=3 varlen=1 s_k=400 wild=1",
	"h_q=160 h_kv=2 b=3 varlen=1 s_k=400", "h_q=260 h_kv=2 s_q=2 s_k=300 b=2",
	"h_q=5 h_kv=5 s_q=3 b=4 varlen=1 dtype=fp16",
	"s_q=300 h_q=4 s_k=300", "s_q=128 h_q=3 s_k=200 b=2 dtype=fp16", "s_q=40 ragged=1 b=6 varlen=1 h_q=2 h_kv=2",
	/* pages of every kind for tiles of 8, 32 and 64 rows */
	"page=1 h_q=64 s_k=200 b=2", "page=2 h_q=8 varlen=1 b=5 wild=1", "page=8 s_k=500 b=3 varlen=1",
	"page=16 h_q=128 s_k=700 b=3 varlen=1",
	"page=24 s_k=500 b=3 varlen=1", "page=48 h_q=64 s_q=2 s_k=700 b=3 varlen=1",
	"page=32 h_q=32 h_kv=2 s_k=900 b=2 varlen=1",
	"page=96 s_k=1000 b=3 varlen=1 h_q=32", "page=128 h_q=128 s_k=1000 b=3 varlen=1 wild=1",
	"page=192 s_k=1000 b=3 varlen=1 h_q=64",
	"page=256 h_q=128 dtype=fp16 s_k=1000 b=3 varlen=1", "page=1000 s_k=2500 b=3 varlen=1",
	"page=4096 s_k=5000 h_q=8",
	"page=16 dqk=512 h_q=128 s_k=500", "page=64 dqk=512 h_q=64 s_q=2 b=3 varlen=1 s_k=500 dtype=fp16",
	/* windows across tiles and splits */
	"window=64 h_q=128 s_q=2 b=4 varlen=1 s_k=900", "window=300 h_q=64 page=16 b=4 varlen=1 s_k=900",
	"window=10 s_q=20 h_q=2 s_k=300",
	"window=2000 s_k=5000 dtype=fp16", "window=1000 s_k=70000 h_q=1",
	/* batches around the number of SMs; few requests on many parts; one long request among short ones */
	"b=131 s_k=200 h_q=4 varlen=1", "b=132 s_k=200 h_q=4", "b=133 s_k=200 h_q=4 varlen=1 dtype=fp16",
	"b=264 s_k=130 h_q=3 page=16",
	"b=2 s_k=4001 h_q=8 s_q=2", "b=3 s_k=5000 h_q=4 page=16 dtype=fp16", "b=1 s_k=9000 h_q=4 h_kv=4",
	"b=1 s_k=3000 h_q=128 dtype=fp16",
	"b=5 s_k=20000 h_q=2 varlen=1", "b=1 s_k=40000 h_q=1", "b=67 s_k=300 h_q=64 varlen=1",
	/* sinks and the two empty values with several tiles and splits */
	"sink=1 h_q=128 s_k=3000", "sink=1 h_q=64 s_q=2 b=5 varlen=1 s_k=500 wild=1", "sink=1 h_q=8 s_k=6000 peak=20",
	"neg_inf=1 h_q=128 s_q=3 b=9 varlen=1 s_k=70",
	/* scores that grow along the keys' tiles, one-hot, and flat */
	"peak=300 h_q=128 s_k=2000", "peak=2000 s_k=700", "peak=1000 h_q=64 dtype=fp16 s_k=700",
	"peak=0 h_q=128 s_k=500", "peak=0 s_k=3000",
	/* b past every small limit */
	"b=20000 s_k=12 h_q=2 page=4 varlen=1", "b=65536 s_k=3 h_q=1 page=1 varlen=1", "b=12000 s_k=5 h_q=16 page=8",
	"b=3000 s_q=4 ragged=1 h_q=4 s_k=100 varlen=1",
	/* beyond a million tokens */
	"s_k=1100000 h_q=1",
};
/* clang-format on */
const size_t gpu_case_count = sizeof(gpu_cases) / sizeof(gpu_cases[0]);

/* Runs `body` on a job made from the line `arg`. */
static bool with_job(fmla_ctx *gpu, const void *arg, bool (*body)(fmla_ctx *gpu, struct job *job))
{
	struct job *job = calloc(1, sizeof(*job));
	const bool ok = job && job_make(job, arg) && body(gpu, job);
	if (job)
		job_free(job);
	free(job);
	return ok;
}

static bool one(fmla_ctx *gpu, struct job *job)
{
	return job_run(job, gpu);
}

static bool test_one(fmla_ctx *gpu, const void *arg)
{
	return with_job(gpu, arg, one);
}

/* ---- the same answer, always ---- */

enum { REPEATS = 20 };

static bool repeat(fmla_ctx *gpu, struct job *job)
{
	if (!job_run(job, gpu))
		return false;
	char *first = job_snapshot(job);
	bool ok = first != NULL;
	for (int i = 0; ok && i < REPEATS; i++)
		ok = job_upload(job, gpu) && (fmla_decode(gpu, &job->args) == FMLA_OK || fail("%s", fmla_last_error(gpu))) &&
		     job_unchanged(job, first, "run to run");
	free(first);
	return ok;
}

static bool test_repeat(fmla_ctx *gpu, const void *arg)
{
	return with_job(gpu, arg, repeat);
}

/* Request i of a batch alone, and the whole batch: the same rows. */
static bool invariant(fmla_ctx *gpu, struct job *job)
{
	if (!job_run(job, gpu))
		return false;
	char *whole = job_snapshot(job);
	EXPECT(whole, "no results");
	const struct fmla_decode_args batch = job->args;
	bool ok = job_poison(job);
	for (int64_t i = 0; ok && i < job->data.c.b; i++) {
		struct fmla_tensor one[5] = {*batch.q, *batch.block_table, *batch.cache_seqlens, *batch.out, *batch.lse};
		int64_t shapes[5][4];
		for (int t = 0; t < 5; t++) {
			memcpy(shapes[t], one[t].shape, sizeof(int64_t) * (size_t)one[t].ndim);
			shapes[t][0] = 1;
			one[t].shape = shapes[t];
			one[t].data = (char *)one[t].data + i * one[t].strides[0] * (one[t].dtype.bits / 8);
		}
		struct fmla_decode_args alone = batch;
		alone.q = &one[0];
		alone.block_table = &one[1];
		alone.cache_seqlens = &one[2];
		alone.out = &one[3];
		alone.lse = &one[4];
		ok = fmla_decode(gpu, &alone) == FMLA_OK || fail("%s", fmla_last_error(gpu));
	}
	ok = ok && job_unchanged(job, whole, "alone and in the batch");
	free(whole);
	return ok;
}

static bool test_invariant(fmla_ctx *gpu, const void *arg)
{
	return with_job(gpu, arg, invariant);
}

/* ---- four streams at once, each with its own workspace and outputs ---- */

enum { STREAMS = 4, ROUNDS = 8 };

static bool streams(struct job *jobs, fmla_ctx **ctx, cudaStream_t *stream)
{
	for (int i = 0; i < STREAMS; i++) {
		EXPECT(fmla_ctx_create(&ctx[i], NULL) == FMLA_OK, "no context");
		EXPECT_CUDA(cudaStreamCreateWithFlags(&stream[i], cudaStreamNonBlocking));
		if (!job_upload(&jobs[i], ctx[i]))
			return false;
		jobs[i].args.stream = stream[i];
	}
	for (int round = 0; round < ROUNDS; round++)
		for (int i = 0; i < STREAMS; i++)
			EXPECT_OK(ctx[i], fmla_decode(ctx[i], &jobs[i].args));
	for (int i = 0; i < STREAMS; i++)
		if (!job_compare(&jobs[i], "stream"))
			return fail("stream %d", i);
	return true;
}

static bool test_streams(fmla_ctx *gpu, const void *arg)
{
	static const char *const lines[STREAMS] = {"b=5 s_k=1500 h_q=16 varlen=1", "b=3 s_k=3000 h_q=8",
	                                           "b=4 s_k=700 h_q=128 varlen=1", "b=1 s_k=3000 h_q=32 dtype=fp16"};
	struct job *jobs = calloc(STREAMS, sizeof(*jobs));
	fmla_ctx *ctx[STREAMS] = {0};
	cudaStream_t stream[STREAMS] = {0};
	(void)gpu; /* a context per stream */
	(void)arg;
	bool ok = jobs != NULL;
	for (int i = 0; ok && i < STREAMS; i++)
		ok = job_make(&jobs[i], lines[i]);
	ok = ok && streams(jobs, ctx, stream);
	cudaDeviceSynchronize();
	for (int i = 0; i < STREAMS; i++) {
		if (jobs)
			job_free(&jobs[i]);
		fmla_ctx_destroy(ctx[i]);
		if (stream[i])
			cudaStreamDestroy(stream[i]);
	}
	free(jobs);
	return ok;
}

/* ---- a graph of plan and two layers, replayed while the lengths change on the device ---- */

static bool capture(fmla_ctx *gpu, struct job *job, cudaStream_t stream, cudaGraph_t *graph)
{
	EXPECT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
	EXPECT_OK(gpu, fmla_plan(gpu, &job->args));
	EXPECT_OK(gpu, fmla_decode(gpu, &job->args));
	EXPECT_OK(gpu, fmla_decode(gpu, &job->args));
	EXPECT_CUDA(cudaStreamEndCapture(stream, graph));
	return true;
}

static bool graph(fmla_ctx *gpu, struct job *job)
{
	struct data_tensor parts, splits;
	struct gpu_tensor gpu_parts = {0}, gpu_splits = {0};
	cudaStream_t stream;
	cudaGraph_t graph = NULL;
	cudaGraphExec_t exec = NULL;
	int64_t num_parts;
	if (!job_upload(job, gpu))
		return false;
	EXPECT_OK(gpu, fmla_plan_parts(gpu, &job->args, &num_parts));
	data_tensor_make(&parts, (struct fmla_dtype)FMLA_INT32, 2, (int64_t[]){num_parts, 8}, NULL, NULL, 0);
	data_tensor_make(&splits, (struct fmla_dtype)FMLA_INT32, 1, (int64_t[]){job->data.c.b + 1}, NULL, NULL, 0);
	EXPECT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
	bool ok = gpu_upload(&gpu_parts, &parts) && gpu_upload(&gpu_splits, &splits);
	job->args.plan_parts = &gpu_parts.t;
	job->args.plan_splits = &gpu_splits.t;
	job->args.stream = stream;
	ok = ok && capture(gpu, job, stream, &graph);
	ok = ok && (cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess || fail("no executable graph"));

	int32_t *lens = (int32_t *)(void *)job->data.tensors[DATA_LENS].host;
	for (int replay = 0; ok && replay < 7; replay++) {
		for (int64_t i = 0; i < job->data.c.b; i++) /* full, shorter ones, none at all, full again */
			lens[i] = replay % 6 == 0 ? (int32_t)job->data.c.s_k
			          : replay == 3
			              ? 0
			              : (int32_t)(random_bits((uint64_t)replay, (uint64_t)i) % (uint64_t)(job->data.c.s_k + 1));
		ok = job_reference(job) && job_upload_tensor(job, DATA_LENS) && job_poison(job) &&
		     (cudaGraphLaunch(exec, stream) == cudaSuccess || fail("the graph was not launched")) &&
		     (job_compare(job, "replay") || fail("replay %d", replay));
	}
	cudaDeviceSynchronize();
	cudaGraphExecDestroy(exec);
	cudaGraphDestroy(graph);
	cudaStreamDestroy(stream);
	data_tensor_free(&parts);
	data_tensor_free(&splits);
	gpu_free(&gpu_parts);
	gpu_free(&gpu_splits);
	return ok;
}

static bool test_graph(fmla_ctx *gpu, const void *arg)
{
	return with_job(gpu, arg, graph);
}

/* ---- page indices out of range: NaN for that request, FMLA_ERR_PAGE when asked ---- */

static bool pages(fmla_ctx *gpu, struct job *job)
{
	static const int32_t wrong[] = {-1, INT32_MIN, INT32_MAX, 1 << 20};
	const struct test_case *c = &job->data.c;
	struct data_tensor *table = &job->data.tensors[DATA_TABLE];
	const int64_t row = c->s_q * c->h_q; /* result rows of a request */
	for (int v = 0; v < 4; v++) {        /* requests 1, 3, 5, 7: their first or their last page */
		const int64_t req = 2 * v + 1, entry = v % 2 ? (c->s_k - 1) / c->page : 0;
		((int32_t *)(void *)table->host)[req * table->strides[0] + entry] = wrong[v];
		for (int64_t r = req * row; r < (req + 1) * row; r++) {
			job->want.lse[r] = NAN;
			for (int64_t d = 0; d < job->want.d_v; d++)
				job->want.out[r * job->want.d_v + d] = NAN;
		}
	}
	if (!job_run(job, gpu))
		return false;
	job->args.flags |= FMLA_CHECK_PAGES;
	EXPECT(fmla_decode(gpu, &job->args) == FMLA_ERR_PAGE, "FMLA_CHECK_PAGES found nothing");
	EXPECT(strstr(fmla_last_error(gpu), "block_table[1, 0] is -1"), "no coordinates in '%s'", fmla_last_error(gpu));
	for (int v = 0; v < 4; v++) /* entries that no length reaches may be wrong */
		((int32_t *)(void *)job->data.tensors[DATA_LENS].host)[2 * v + 1] =
		    v % 2 ? (int32_t)(c->page * ((c->s_k - 1) / c->page)) : 0;
	if (!job_reference(job) || !job_upload(job, gpu))
		return false;
	job->args.flags |= FMLA_CHECK_PAGES;
	EXPECT_OK(gpu, fmla_decode(gpu, &job->args));
	return job_compare(job, "checked pages");
}

static bool test_pages(fmla_ctx *gpu, const void *arg)
{
	return with_job(gpu, arg, pages);
}

/* ---- lengths that the device must cut: negative ones to 0, too long ones to the width of the table ---- */

static bool wild_lengths(fmla_ctx *gpu, struct job *job)
{
	static const int32_t wild[3] = {-5, INT32_MIN, INT32_MAX};
	int32_t *lens = (int32_t *)(void *)job->data.tensors[DATA_LENS].host;
	lens[0] = lens[1] = 0; /* and request 2 is as long as its table is wide: s_k is a multiple of the page */
	if (!job_reference(job) || !job_upload(job, gpu))
		return false;
	EXPECT_CUDA(cudaMemcpy(job->tensors[DATA_LENS].t.data, wild, sizeof(wild), cudaMemcpyHostToDevice));
	EXPECT_OK(gpu, fmla_decode(gpu, &job->args));
	return job_compare(job, "wild lengths");
}

static bool test_wild_lengths(fmla_ctx *gpu, const void *arg)
{
	return with_job(gpu, arg, wild_lengths);
}

/* ---- a cache past 2^31 values, its used pages at the end ---- */

static bool huge(fmla_ctx *gpu, struct job *job)
{
	const struct data_tensor *kv = &job->data.tensors[DATA_KV];
	struct data_tensor *table = &job->data.tensors[DATA_TABLE];
	const int64_t offset = 65000, used = kv->shape[0], page = kv->strides[0];
	int32_t *entries = (int32_t *)(void *)table->host;
	for (size_t i = 0; i < table->bytes / sizeof(*entries); i++)
		if (entries[i] >= 0 && entries[i] < used)
			entries[i] += (int32_t)offset;
	if (!job_upload(job, gpu))
		return false;
	char *cache;
	const size_t before = (size_t)(offset * page) * 2;
	EXPECT_CUDA(cudaMalloc((void **)&cache, before + kv->bytes));
	cudaMemset(cache, 0xff, before);
	cudaMemcpy(cache + before, kv->host, kv->bytes, cudaMemcpyHostToDevice);
	struct fmla_tensor whole = job->tensors[DATA_KV].t;
	int64_t shape[4] = {offset + used, whole.shape[1], whole.shape[2], whole.shape[3]};
	whole.shape = shape;
	whole.data = cache;
	job->args.kv_cache = &whole;
	const bool ok =
	    (fmla_decode(gpu, &job->args) == FMLA_OK || fail("%s", fmla_last_error(gpu))) && job_compare(job, "high pages");
	cudaFree(cache);
	return ok;
}

static bool test_huge(fmla_ctx *gpu, const void *arg)
{
	return with_job(gpu, arg, huge);
}

/* ---- no lse, scales of any sign and size, unaligned rows ---- */

static bool options(fmla_ctx *gpu, struct job *job)
{
	static const double scales[] = {0, -0.05, 1e-30, 3};
	for (size_t i = 0; i < sizeof(scales) / sizeof(scales[0]); i++) {
		job->data.args.softmax_scale = scales[i];
		if (!job_reference(job) || !job_run(job, gpu))
			return fail("scale %g", scales[i]);
	}
	/* Without lse: the same out, and nothing where lse was. */
	const size_t out_bytes = job->data.tensors[DATA_OUT].bytes, lse_bytes = job->data.tensors[DATA_LSE].bytes;
	char *with = job_snapshot(job);
	bool ok = with && job_poison(job);
	job->args.lse = NULL;
	ok = ok && (fmla_decode(gpu, &job->args) == FMLA_OK || fail("%s", fmla_last_error(gpu)));
	char *without = ok ? job_snapshot(job) : NULL;
	ok = without && (memcmp(with, without, out_bytes) == 0 || fail("out depends on whether lse is wanted"));
	for (size_t i = out_bytes; ok && i < out_bytes + lse_bytes; i++)
		ok = (unsigned char)without[i] == 0xff || fail("lse was written although it was not wanted");
	free(with);
	free(without);
	return ok;
}

static bool test_options(fmla_ctx *gpu, const void *arg)
{
	return with_job(gpu, arg, options);
}

/* ---- the list ---- */

const struct test decode_tests[] = {
    {"repeat, 16 rows", test_repeat, "b=3 s_k=3000", false},
    {"repeat, 64 rows", test_repeat, "b=2 s_k=1500 h_q=64 dtype=fp16", false},
    {"repeat, 128 rows", test_repeat, "b=3 s_k=900 h_q=128 varlen=1", false},
    {"batch invariance, 4 rows", test_invariant, "b=7 varlen=1 s_k=9000 h_q=4 invariant=1", false},
    {"batch invariance, 32 rows", test_invariant, "b=5 varlen=1 s_k=6000 h_q=16 s_q=2 invariant=1 wild=1", false},
    {"batch invariance, 128 rows", test_invariant, "b=3 varlen=1 s_k=4500 h_q=128 invariant=1", false},
    {"four streams at once", test_streams, NULL, false},
    {"graph replay, 32 rows", test_graph, "b=6 s_k=900 s_q=2", false},
    {"graph replay, 128 rows", test_graph, "b=3 s_k=500 h_q=128", false},
    {"wrong pages, 16 rows", test_pages, "b=9 s_k=300", false},
    {"wrong pages, 128 rows", test_pages, "b=9 s_k=200 h_q=128", false},
    {"wrong pages, page 16", test_pages, "b=9 s_k=300 page=16 h_q=64", false},
    {"wild lengths, 16 rows", test_wild_lengths, "b=5 s_k=128", false},
    {"wild lengths, 128 rows", test_wild_lengths, "b=5 s_k=128 h_q=128", false},
    {"cache past 2^31 values, 16 rows", test_huge, "b=4 s_k=500 varlen=1", false},
    {"cache past 2^31 values, 128 rows", test_huge, "b=2 s_k=300 h_q=128 page=16", false},
    {"options, 16 rows", test_options, "b=3 s_k=700 varlen=1 s_q=2", false},
    {"options, 128 rows", test_options, "b=3 s_k=400 h_q=128 varlen=1 wild=1", false},
    {"brief, 5 rows", test_one, "b=3 h_q=5 s_k=200", true},
    {"brief, 32 rows, page 16", test_one, "b=2 s_q=2 s_k=150 page=16 wild=1", true},
    {"brief, 64 rows", test_one, "b=2 h_q=64 s_k=200 varlen=1", true},
    {"brief, 128 rows, split", test_one, "h_q=128 s_k=333 dtype=fp16", true},
    {"brief, batch-invariant", test_one, "h_q=8 s_k=5000 invariant=1", true},
    {NULL, NULL, NULL, false},
};
