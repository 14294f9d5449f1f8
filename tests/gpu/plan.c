/* SPDX-License-Identifier: MIT
 *
 * The plan on the GPU: the kernel's rows are the host planner's rows, and no plan, however wrong, changes a result. */
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/kernels.h"
#include "plan.h"

/* ---- rows ---- */

struct batch {
	int b, s_q, parts, max_len;
	int kind; /* 0 all alike, 1 random, 2 mostly empty, 3 one giant, 4 sorted */
	int64_t window;
	int ragged;
	struct plan_costs costs;
};

static int32_t batch_length(const struct batch *t, int i, uint64_t *rng)
{
	switch (t->kind) {
	case 0:
		return t->max_len;
	case 1:
		return (int32_t)(random_next(rng) % (uint64_t)(t->max_len + 1));
	case 2:
		return random_next(rng) % 16 ? 0 : (int32_t)(random_next(rng) % (uint64_t)(t->max_len + 1));
	case 3:
		return i == t->b / 2 ? t->max_len : 1;
	default:
		return (int32_t)((int64_t)t->max_len * i / t->b);
	}
}

static bool rows_body(const struct batch *t, struct mirror *lengths, struct mirror *cu, struct mirror *rows,
                      struct mirror *splits)
{
	const struct fmla_dtype int32 = FMLA_INT32;
	const int64_t num_rows = t->parts + 5; /* padded */
	uint64_t rng = (uint64_t)t->b * 77 + (uint64_t)t->kind;
	if (!mirror_make(lengths, int32, 1, (int64_t[]){t->b}, NULL) ||
	    !mirror_make(cu, int32, 1, (int64_t[]){t->b + 1}, NULL) ||
	    !mirror_make(rows, int32, 2, (int64_t[]){num_rows, PLAN_FIELDS}, NULL) ||
	    !mirror_make(splits, int32, 1, (int64_t[]){t->b + 1}, NULL))
		return false;
	int32_t *len = lengths->on_host.data, *offsets = cu->on_host.data;
	offsets[0] = 0;
	for (int i = 0; i < t->b; i++) {
		len[i] = batch_length(t, i, &rng);
		offsets[i + 1] = offsets[i] + (int32_t)(random_next(&rng) % (uint64_t)(t->s_q + 1));
	}
	if (!mirror_upload(lengths, NULL) || !mirror_upload(cu, NULL) || !mirror_poison(rows) || !mirror_poison(splits))
		return false;
	struct problem host = {.b = t->b, .s_q = t->s_q, .window = t->window, .cache_seqlens = len};
	struct decode_params device = {.b = t->b,
	                               .s_q = t->s_q,
	                               .window = t->window,
	                               .cache_seqlens = lengths->on_device.data,
	                               .max_len = INT64_MAX,
	                               .num_parts = t->parts,
	                               .costs = t->costs};
	if (t->ragged) {
		host.cu_seqlens_q = offsets;
		device.cu_seqlens_q = cu->on_device.data;
	}
	EXPECT_CUDA(fmla_launch_plan(&device, rows->on_device.data, num_rows, splits->on_device.data, NULL));
	plan_build(&host, t->costs, t->parts, rows->on_host.data, num_rows, splits->on_host.data);

	struct part *got = malloc(rows->bytes);
	int32_t *got_splits = malloc(splits->bytes);
	bool ok = got && got_splits && mirror_download(rows, got) && mirror_download(splits, got_splits);
	const struct part *want = rows->on_host.data;
	const int32_t *want_splits = splits->on_host.data;
	for (int64_t r = 0; ok && r < num_rows; r++)
		if (memcmp(&got[r], &want[r], sizeof(want[r])) != 0)
			ok = fail("row %lld is {%d %d %d %d %d %d %d}, host planner {%d %d %d %d %d %d %d}", (long long)r,
			          got[r].begin_req, got[r].end_req, got[r].begin_block, got[r].end_block, got[r].begin_split,
			          got[r].first_split, got[r].last_split, want[r].begin_req, want[r].end_req, want[r].begin_block,
			          want[r].end_block, want[r].begin_split, want[r].first_split, want[r].last_split);
	for (int i = 0; ok && i <= t->b; i++)
		if (got_splits[i] != want_splits[i])
			ok = fail("splits[%d] is %d, host planner %d", i, got_splits[i], want_splits[i]);
	free(got);
	free(got_splits);
	return ok;
}

static bool run_rows(const struct batch *t)
{
	struct mirror lengths = {0}, cu = {0}, rows = {0}, splits = {0};
	const bool ok = rows_body(t, &lengths, &cu, &rows, &splits);
	mirror_free(&lengths);
	mirror_free(&cu);
	mirror_free(&rows);
	mirror_free(&splits);
	return ok || fail("  with b=%d s_q=%d parts=%d max_len=%d kind=%d window=%lld ragged=%d chunk=%d overhead=%d", t->b,
	                  t->s_q, t->parts, t->max_len, t->kind, (long long)t->window, t->ragged, t->costs.chunk,
	                  t->costs.overhead);
}

static bool test_rows(fmla_ctx *gpu, const void *arg)
{
	static const int sizes[] = {0, 1, 2, 7, 64, 131, 132, 1000, 1023, 1024, 1025, 4097, 20000, 65536};
	static const int parts[] = {1, 2, 66, 132, 1024};
	const int few = arg != NULL;
	(void)gpu;
	uint64_t rng = 3;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		for (int kind = 0; kind < (few ? 2 : 5); kind++) {
			const uint64_t dice = random_next(&rng);
			if (few && sizes[i] > 1025)
				continue;
			const struct batch t = {.b = sizes[i],
			                        .s_q = 1 + (int)(dice % 3),
			                        .parts = parts[dice / 3 % 5],
			                        .max_len = dice / 15 % 3 == 0 ? 1000000 : dice / 15 % 3 == 1 ? 5000 : 100,
			                        .kind = kind,
			                        .window = dice / 45 % 3 == 0 ? 777 : 0,
			                        .ragged = dice / 135 % 3 == 0,
			                        .costs = {.overhead = (int32_t)(dice / 405 % 4),
			                                  .min_blocks = 1 + (int32_t)(dice / 1620 % 3),
			                                  .max_snap = (int32_t)(dice / 4860 % 5),
			                                  .chunk = dice / 24300 % 3 == 0 ? 32 : 0}};
			if (!run_rows(&t))
				return false;
		}
	return true;
}

/* ---- wrong plans ---- */

enum wrong { OWN, STALE, GARBAGE, ZERO, UPSTREAM, PADDED, OTHER_BATCH, WRONGS };

static void spoil(enum wrong kind, int32_t *rows, int64_t num_rows, int32_t *splits, int64_t b)
{
	uint64_t rng = (uint64_t)kind + 1;
	switch (kind) {
	case GARBAGE: /* foreign: any bits */
		for (int64_t i = 0; i < num_rows * PLAN_FIELDS; i++)
			rows[i] = (int32_t)random_next(&rng);
		for (int64_t i = 0; i <= b; i++)
			splits[i] = (int32_t)random_next(&rng);
		break;
	case ZERO:
		memset(rows, 0, (size_t)num_rows * PLAN_FIELDS * sizeof(*rows));
		memset(splits, 0, (size_t)(b + 1) * sizeof(*splits));
		break;
	case UPSTREAM: /* another library's field order, without our tag: one part takes all */
		for (int64_t r = 0; r < num_rows; r++)
			memcpy(rows + r * PLAN_FIELDS, (int32_t[]){r ? (int32_t)b : 0, 0, (int32_t)b - 1, 1000, 0, 0, 0, 0},
			       PLAN_FIELDS * sizeof(*rows));
		for (int64_t i = 0; i <= b; i++)
			splits[i] = (int32_t)i;
		break;
	case OTHER_BATCH: /* tagged, in order, but of requests that do not exist */
		for (int64_t r = 0; r < num_rows; r++)
			memcpy(rows + r * PLAN_FIELDS,
			       (int32_t[]){(int32_t)(b + r), (int32_t)(b + r + 1), 0, 9, 0, 1, 1, PLAN_TAG},
			       PLAN_FIELDS * sizeof(*rows));
		for (int64_t i = 0; i <= b; i++)
			splits[i] = (int32_t)(i > b / 2 ? b / 2 : i); /* a filled tail: zero splits */
		break;
	default:
		break;
	}
}

static bool wrong_body(fmla_ctx *gpu, struct problem_pair *p, struct mirror *rows, struct mirror *splits)
{
	int64_t parts;
	if (!problem_upload(p, gpu))
		return false;
	EXPECT_OK(gpu, fmla_plan_parts(gpu, &p->device, &parts));
	EXPECT(parts >= 1, "fmla_plan_parts says %lld", (long long)parts);
	if (!mirror_make(rows, (struct fmla_dtype)FMLA_INT32, 2, (int64_t[]){parts + 7, PLAN_FIELDS}, NULL) ||
	    !mirror_make(splits, (struct fmla_dtype)FMLA_INT32, 1, (int64_t[]){p->shape.b + 1}, NULL))
		return false;
	for (enum wrong kind = OWN; kind < WRONGS; kind++) {
		char what[64];
		snprintf(what, sizeof(what), "plan kind %d", kind);
		rows->shape[0] = kind == PADDED ? parts + 7 : parts;
		if (!problem_upload(p, gpu) || !mirror_upload(rows, NULL) || !mirror_upload(splits, NULL))
			return false;
		p->device.plan_parts = &rows->on_device;
		p->device.plan_splits = &splits->on_device;
		if (kind == STALE) { /* made for lengths of 1 */
			for (int i = 0; i < p->shape.b; i++)
				EXPECT_CUDA(cudaMemcpy((int32_t *)p->lengths.on_device.data + i, &(int32_t){1}, 4,
				                       cudaMemcpyHostToDevice));
		}
		if (kind == OWN || kind == STALE || kind == PADDED)
			EXPECT_OK(gpu, fmla_plan(gpu, &p->device));
		if (kind == STALE && !mirror_upload(&p->lengths, NULL))
			return false;
		if (kind != OWN && kind != STALE && kind != PADDED) {
			spoil(kind, rows->on_host.data, parts, splits->on_host.data, p->shape.b);
			if (!mirror_upload(rows, NULL) || !mirror_upload(splits, NULL))
				return false;
		}
		EXPECT_OK(gpu, fmla_decode(gpu, &p->device));
		if (!problem_compare(p, what))
			return false;
	}
	return true;
}

static bool test_wrong(fmla_ctx *gpu, const void *arg)
{
	struct problem_pair p;
	struct mirror rows = {0}, splits = {0};
	const bool ok = problem_make(&p, arg) && wrong_body(gpu, &p, &rows, &splits);
	problem_free(&p);
	mirror_free(&rows);
	mirror_free(&splits);
	return ok;
}

static const struct shape wrong16 = {.b = 9, .s_q = 2, .h_q = 8, .h_kv = 1, .page = 64, .s_k = 1500, .lengths = MIXED, .causal = 1},
                          wrong128 = {.b = 5, .s_q = 1, .h_q = 128, .h_kv = 1, .page = 64, .s_k = 700, .lengths = MIXED},
                          wrong1 = {.b = 1, .s_q = 1, .h_q = 16, .h_kv = 1, .page = 64, .s_k = 6000, .lengths = UNIFORM};
static const int few = 1;

const struct test plan_tests[] = {
    {"plan rows are the host planner's", test_rows, NULL, false},
    {"plan rows, small batches", test_rows, &few, true},
    {"wrong plans, 16 rows", test_wrong, &wrong16, false},
    {"wrong plans, 128 rows", test_wrong, &wrong128, false},
    {"wrong plans, one split request", test_wrong, &wrong1, false},
    {NULL, NULL, NULL, false},
};
