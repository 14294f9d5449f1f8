/* SPDX-License-Identifier: MIT
 *
 * The plan on the GPU: the kernel's rows are the host planner's rows, and no plan, however wrong, changes a result. */
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/kernels.h"
#include "plan.h"

static const struct fmla_dtype int32 = FMLA_INT32;

static int32_t *ints(const struct data_tensor *t)
{
	return (int32_t *)(void *)t->host;
}

/* ---- rows ---- */

struct batch {
	int b, s_q, parts, max_len;
	int kind; /* 0 all alike, 1 random, 2 mostly empty, 3 one giant, 4 sorted, 5 nearly alike */
	int64_t window;
	int ragged;
	struct plan_costs costs;
};

static int32_t batch_length(const struct batch *t, int i)
{
	const uint64_t dice = random_bits((uint64_t)t->kind, (uint64_t)i);
	const int32_t random = (int32_t)(dice / 16 % (uint64_t)(t->max_len + 1));
	switch (t->kind) {
	case 0:
		return t->max_len;
	case 1:
		return random;
	case 2:
		return dice % 16 ? 0 : random;
	case 3:
		return i == t->b / 2 ? t->max_len : 1;
	case 4:
		return (int32_t)((int64_t)t->max_len * i / t->b);
	default:
		return t->max_len - (int32_t)(dice % 256);
	}
}

enum { LENS, CU, ROWS, SPLITS, TENSORS };

static bool compare_rows(const struct batch *t, struct data_tensor *host, struct gpu_tensor *gpu, int64_t num_rows)
{
	struct problem problem = {.b = t->b,
	                          .s_q = t->s_q,
	                          .window = t->window,
	                          .cache_seqlens = ints(&host[LENS]),
	                          .cu_seqlens_q = t->ragged ? ints(&host[CU]) : NULL};
	const struct decode_params params = {.b = t->b,
	                                     .s_q = t->s_q,
	                                     .window = (int32_t)t->window,
	                                     .cache_seqlens = gpu[LENS].t.data,
	                                     .cu_seqlens_q = t->ragged ? gpu[CU].t.data : NULL,
	                                     .max_len = MAX_LEN,
	                                     .num_parts = t->parts,
	                                     .costs = t->costs};
	EXPECT_CUDA(fmla_launch_plan(&params, gpu[ROWS].t.data, num_rows, gpu[SPLITS].t.data, NULL));
	struct part *want = calloc((size_t)num_rows, sizeof(*want));
	int32_t *splits = calloc((size_t)t->b + 1, sizeof(*splits));
	bool ok = want && splits && gpu_download(&gpu[ROWS], &host[ROWS]) && gpu_download(&gpu[SPLITS], &host[SPLITS]);
	if (ok)
		plan_build(&problem, t->costs, t->parts, want, num_rows, splits);
	for (int64_t r = 0; ok && r < num_rows; r++) {
		const int32_t *x = ints(&host[ROWS]) + r * PLAN_FIELDS, *y = (const int32_t *)(const void *)&want[r];
		for (int f = 0; ok && f < PLAN_FIELDS; f++)
			if (x[f] != y[f])
				ok = fail("row %lld, field %d: %d, host planner %d", (long long)r, f, x[f], y[f]);
	}
	for (int i = 0; ok && i <= t->b; i++)
		if (ints(&host[SPLITS])[i] != splits[i])
			ok = fail("splits[%d] is %d, host planner %d", i, ints(&host[SPLITS])[i], splits[i]);
	free(want);
	free(splits);
	return ok;
}

static bool run_rows(const struct batch *t)
{
	struct data_tensor host[TENSORS];
	struct gpu_tensor gpu[TENSORS] = {0};
	const int64_t num_rows = t->parts + 5; /* padded */
	const int64_t shapes[TENSORS][2] = {{t->b}, {t->b + 1}, {num_rows, PLAN_FIELDS}, {t->b + 1}};
	bool ok = true;
	for (int i = 0; i < TENSORS; i++) {
		data_tensor_make(&host[i], int32, i == ROWS ? 2 : 1, shapes[i], NULL, NULL, 0);
		memset(host[i].host, 0xa5, host[i].bytes);
	}
	int32_t *const lens = ints(&host[LENS]), *const cu = ints(&host[CU]);
	cu[0] = 0;
	for (int i = 0; i < t->b; i++) {
		lens[i] = batch_length(t, i);
		cu[i + 1] = cu[i] + (int32_t)(random_bits(9, (uint64_t)i) % (uint64_t)(t->s_q + 1));
	}
	for (int i = 0; i < TENSORS; i++)
		ok = gpu_upload(&gpu[i], &host[i]) && ok;
	ok = ok && compare_rows(t, host, gpu, num_rows);
	for (int i = 0; i < TENSORS; i++) {
		data_tensor_free(&host[i]);
		gpu_free(&gpu[i]);
	}
	return ok || fail("with b=%d s_q=%d parts=%d max_len=%d kind=%d window=%lld ragged=%d overhead=%d min_blocks=%d "
	                  "max_snap=%d chunk=%d whole=%d whole_16ths=%d even=%d",
	                  t->b, t->s_q, t->parts, t->max_len, t->kind, (long long)t->window, t->ragged, t->costs.overhead,
	                  t->costs.min_blocks, t->costs.max_snap, t->costs.chunk, t->costs.whole, t->costs.whole_16ths,
	                  t->costs.even);
}

enum { ROUNDS = 12 };

static bool test_rows(fmla_ctx *gpu, const void *arg)
{
	static const int sizes[] = {0, 1, 2, 7, 64, 131, 132, 133, 1000, 1023, 1024, 1025, 4097, 20000, 65536};
	static const int parts[] = {1, 2, 66, 132, 1024};
	const bool few = arg != NULL;
	(void)gpu;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		for (int round = 0; round < (few ? 1 : ROUNDS); round++) {
			uint64_t n = i * ROUNDS + (uint64_t)round;
#define PICK(range) ((int)(random_bits(n, (uint64_t)__LINE__) % (range)))
			if (few && sizes[i] > 1025)
				continue;
			const struct batch t = {.b = sizes[i],
			                        .kind = round % 6,
			                        .s_q = 1 + PICK(3),
			                        .parts = parts[PICK(5)],
			                        .max_len = PICK(3) == 0 ? 1000000 : 5000,
			                        .window = PICK(3) == 0 ? 777 : 0,
			                        .ragged = PICK(3) == 0,
			                        .costs = {.overhead = PICK(4),
			                                  .min_blocks = 1 + PICK(3),
			                                  .max_snap = PICK(9),
			                                  .chunk = PICK(4) == 0 ? 32 : 0,
			                                  .whole = PICK(2) * 4,
			                                  .whole_16ths = PICK(2),
			                                  .even = PICK(2)}};
#undef PICK
			if (!run_rows(&t))
				return false;
		}
	return true;
}

/* ---- wrong plans ---- */

enum wrong { OWN, PADDED, STALE, GARBAGE, ZERO, UNTAGGED, OTHER_BATCH, WRONGS };
static const char *const wrong_names[WRONGS] = {
    "own plan",    "padded plan",   "stale plan",           "plan of random bits",
    "zeroed plan", "untagged plan", "plan of another batch"};

/* What a plan buffer may hold by accident. */
static void spoil(enum wrong kind, struct data_tensor *rows, struct data_tensor *splits, int32_t b)
{
	int32_t *r = ints(rows), *s = ints(splits);
	const int64_t n = rows->shape[0];
	for (int64_t i = 0; i < n * PLAN_FIELDS; i++)
		r[i] = kind == GARBAGE ? (int32_t)random_bits(1, (uint64_t)i) : 0;
	for (int64_t i = 0; i <= b; i++)
		s[i] = kind == GARBAGE ? (int32_t)random_bits(2, (uint64_t)i)
		       : kind == ZERO  ? 0
		                       : (int32_t)(i > b / 2 ? b / 2 : i);
	for (int64_t p = 0; p < n && (kind == UNTAGGED || kind == OTHER_BATCH); p++) {
		const int32_t untagged[PLAN_FIELDS] = {p ? b : 0, 0, b - 1, 1000, 0, 0, 0, 0}; /* another field order */
		const int32_t other[PLAN_FIELDS] = {b + (int32_t)p, b + (int32_t)p + 1, 0, 9, 0, 1, 1, PLAN_TAG};
		memcpy(r + p * PLAN_FIELDS, kind == UNTAGGED ? untagged : other, sizeof(other));
	}
}

static bool set_lengths(struct job *job, int32_t length)
{
	const int64_t b = job->data.c.b;
	int32_t *lens = malloc((size_t)b * sizeof(*lens));
	EXPECT(lens, "out of memory");
	for (int64_t i = 0; i < b; i++)
		lens[i] = length;
	const cudaError_t error =
	    cudaMemcpy(job->tensors[DATA_LENS].t.data, lens, (size_t)b * sizeof(*lens), cudaMemcpyHostToDevice);
	free(lens);
	EXPECT_CUDA(error);
	return true;
}

static bool one_wrong(fmla_ctx *gpu, struct job *job, enum wrong kind, int64_t parts)
{
	const int64_t b = job->data.c.b;
	struct data_tensor rows, splits;
	struct gpu_tensor gpu_rows = {0}, gpu_splits = {0};
	data_tensor_make(&rows, int32, 2, (int64_t[]){parts + (kind == PADDED ? 7 : 0), PLAN_FIELDS}, NULL, NULL, 0);
	data_tensor_make(&splits, int32, 1, (int64_t[]){b + 1}, NULL, NULL, 0);
	spoil(kind, &rows, &splits, (int32_t)b);
	bool ok = job_upload(job, gpu) && gpu_upload(&gpu_rows, &rows) && gpu_upload(&gpu_splits, &splits);
	job->args.plan_parts = &gpu_rows.t;
	job->args.plan_splits = &gpu_splits.t;
	if (kind == STALE) /* made when every request had one token */
		ok = ok && set_lengths(job, 1);
	if (kind <= STALE)
		ok = ok && (fmla_plan(gpu, &job->args) == FMLA_OK || fail("%s", fmla_last_error(gpu)));
	ok = ok && job_upload_tensor(job, DATA_LENS) &&
	     (fmla_decode(gpu, &job->args) == FMLA_OK || fail("%s", fmla_last_error(gpu))) &&
	     job_compare(job, wrong_names[kind]);
	data_tensor_free(&rows);
	data_tensor_free(&splits);
	gpu_free(&gpu_rows);
	gpu_free(&gpu_splits);
	return ok;
}

static bool test_wrong(fmla_ctx *gpu, const void *arg)
{
	int64_t parts = 0;
	struct job *job = calloc(1, sizeof(*job));
	bool ok = job && job_make(job, arg) && job_upload(job, gpu);
	ok = ok && (fmla_plan_parts(gpu, &job->args, &parts) == FMLA_OK || fail("%s", fmla_last_error(gpu))) &&
	     (parts >= 1 || fail("fmla_plan_parts says %lld", (long long)parts));
	for (enum wrong kind = OWN; ok && kind < WRONGS; kind++)
		ok = one_wrong(gpu, job, kind, parts);
	if (job)
		job_free(job);
	free(job);
	return ok;
}

static const int few = 1;

const struct test plan_tests[] = {
    {"plan rows are the host planner's", test_rows, NULL, false},
    {"plan rows of small batches", test_rows, &few, true},
    {"wrong plans, 16 rows", test_wrong, "b=9 s_q=2 h_q=8 varlen=1 s_k=1500", false},
    {"wrong plans, 128 rows", test_wrong, "b=5 h_q=128 varlen=1 s_k=700", false},
    {"wrong plans, one split request", test_wrong, "s_k=6000", false},
    {NULL, NULL, NULL, false},
};
