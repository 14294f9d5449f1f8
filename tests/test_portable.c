/* SPDX-License-Identifier: MIT
 *
 * The kernels of src/portable under the emulator, in three orders of work-items: decode and combine against the ref
 * backend, the device's plan against the host's, merge, append and the search for wild pages.
 *
 *     test_portable [PATTERN]     a shell pattern of test names */
#include "harness.h"

#include <string.h>

#include "check.h"
#include "close.h"
#include "emulator.h"
#include "mma_emulator.h"
#include "portable/host.h"
#include "subjects.h"

#define PK_EMULATE
#define PK_WAVES
#include "portable/kernels.h"

#include <fnmatch.h>

/* ---- calls ------------------------------------------------------------------------------------------------------- */

/* Which decode kernel: decode.h, decode_wave.h, decode_mma.cu. */
enum decoder { SCALAR, WAVES, MMA };
static enum decoder decoder;

static void run_kernel(const void *argument)
{
	const struct pk_call *c = argument;
	char *b[PK_MOST_BUFFERS];
	for (int i = 0; i < PK_MOST_BUFFERS; i++)
		b[i] = (char *)(uintptr_t)c->buffer[i];
	switch (c->kernel) {
	case PK_PLAN:
		fmla_pk_plan(b[0], b[1], b[2], b[3], c->shape.decode);
		break;
	case PK_DECODE_BF16:
		if (decoder == WAVES)
			fmla_pk_wave_bf16(b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], c->shape.decode);
		else
			fmla_pk_decode_bf16(b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], c->shape.decode);
		break;
	case PK_DECODE_FP16:
		if (decoder == WAVES)
			fmla_pk_wave_fp16(b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], c->shape.decode);
		else
			fmla_pk_decode_fp16(b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], c->shape.decode);
		break;
	case PK_COMBINE:
		fmla_pk_combine(b[0], b[1], b[2], b[3], b[4], b[5], c->shape.decode);
		break;
	case PK_MERGE:
		fmla_pk_merge(b[0], b[1], b[2], b[3], b[4], c->shape.merge);
		break;
	case PK_APPEND:
		fmla_pk_append(b[0], b[1], b[2], b[3], c->shape.append);
		break;
	case PK_PAGES:
		fmla_pk_pages(b[0], b[1], b[2], b[3], c->shape.decode);
		break;
	default:
		fail();
	}
}

static void run_call(struct pk_call call, enum emulator_order order)
{
	if (decoder == MMA && (call.kernel == PK_DECODE_BF16 || call.kernel == PK_DECODE_FP16))
		fail_msg("decode_mma.cu has its own buffers");
	if (!emulator_run(run_kernel, &call, call.groups, order))
		fail_msg("%s: %s", pk_kernel_name[call.kernel], emulator.error);
}

/* Plan, decode and combine, in a workspace of just the size that is needed. */
static int64_t workers; /* 6: several requests a part; 40: several parts a request, many pieces for combine */

static struct pk_target target_of(const struct problem *p)
{
	const int mma_rows = p->rows <= 16 ? 16 : p->rows <= 32 ? 32 : 64;
	return (struct pk_target){workers, decoder == MMA ? mma_rows : PK_PORTABLE_ROWS};
}

static void run_decode(const struct problem *p, enum emulator_order order)
{
	const struct pk_target target = target_of(p);
	const struct pk_call call = pk_decode_call(p, target);
	struct mma_buffers g = pk_mma_buffers(p, target, &call);
	if (order == ORDER_REVERSE)
		g.plans_itself = g.plain = 0; /* as for very many requests */
	if (decoder != MMA || !g.plans_itself)
		run_call(pk_own_plan_call(p, target), order);
	if (decoder == MMA) {
		const char *error = mma_emulate(&call.shape.decode, &g, call.groups, (int)order);
		if (error)
			fail_msg("decode_mma: %s", error);
	} else {
		run_call(call, order);
	}
	if (pk_splits_requests(p, target) && decoder == MMA) {
		const char *error = mma_emulate_combine(&call.shape.decode, &g, (int)order);
		if (error)
			fail_msg("combine after decode_mma: %s", error);
	} else if (pk_splits_requests(p, target)) {
		run_call(pk_combine_call(p, target), order);
	}
}

/* ---- one case ------------------------------------------------------------------------------------------------------ */

enum { FEW_TILES = 32, MOST_TILES = 200, WAVE_TILES = 40, MMA_TILES = 120 };

struct job {
	char name[CASE_LINE];
	const char *line;
	enum emulator_order order;
	enum decoder decoder;
};

static int64_t key_tiles(const struct test_case *c)
{
	const int64_t rows = c->s_q * c->h_q / c->h_kv;
	return c->b * c->h_kv * ((rows + 15) / 16) * ((c->s_k + 15) / 16 + 2);
}

/* The plan kernel writes what plan_build does. */
static void compare_plans(const struct problem *p, struct pk_target target, enum emulator_order order)
{
	enum { SPARE = 3 }; /* rows beyond the parts become idle ones */
	struct problem with_plan = *p;
	const int64_t parts = pk_num_parts(p, target);
	const size_t rows_size = (size_t)(parts + SPARE) * sizeof(struct part), splits_size = (size_t)(p->b + 1) * 4;
	struct part *rows = malloc(rows_size), *want_rows = malloc(rows_size);
	int32_t *splits = malloc(splits_size), *want_splits = malloc(splits_size);
	assert_true(rows && want_rows && splits && want_splits);
	with_plan.plan_parts = rows;
	with_plan.num_parts = parts + SPARE;
	with_plan.plan_splits = splits;
	const struct pk_call call = pk_plan_call(&with_plan, target);
	run_call(call, order);
	plan_build(p, call.shape.decode.costs, parts, want_rows, parts + SPARE, want_splits);
	assert_memory_equal(rows, want_rows, rows_size);
	assert_memory_equal(splits, want_splits, splits_size);
	free(rows);
	free(want_rows);
	free(splits);
	free(want_splits);
}

static void test_case_in_order(void **state)
{
	const struct job *job = *state;
	struct test_case c;
	struct data d;
	struct result want, got;
	struct problem p;
	char why[256];
	bool ok;
	decoder = job->decoder;
	workers = job->order == ORDER_FORWARD ? 40 : 6;
	assert_true(case_parse(job->line, &c, why, sizeof(why)));
	data_make(&d, &c);
	fmla_ctx *ctx = subject_context(&(struct subject){.name = "oracle", .backend = "ref", .threads = 1});
	assert_non_null(ctx);
	assert_ok(ctx, data_decode(&d, ctx, &want, &ok));
	assert_ok(ctx, check_decode(ctx, &d.args, CHECK_DECODE, &p));
	data_poison_outputs(&d);

	const size_t bytes = pk_workspace_size(&p, target_of(&p));
	p.workspace = guarded_alloc(bytes, 256);
	memset(p.workspace, 0xff, bytes);
	compare_plans(&p, target_of(&p), job->order);
	run_decode(&p, job->order);
	guarded_free(p.workspace, bytes);
	ok = data_result(&d, &got);
	const bool close = close_results(&got, &want, why, sizeof(why));
	result_free(&got);
	result_free(&want);
	data_free(&d);
	fmla_ctx_destroy(ctx);
	assert_true(ok); /* gaps between output elements are untouched */
	if (!close)
		fail_msg("case '%s': %s", job->line, why);
}

/* ---- wild pages ---------------------------------------------------------------------------------------------------- */

/* A used table entry out of range: the rows of that request are NaN, the others right, and the search names it. */
static void test_wild_page(void **state)
{
	decoder = *(const enum decoder *)*state;
	workers = 6;
	const struct test_case c = {
	    .b = 3, .s_q = 1, .h_q = 3, .h_kv = 1, .s_k = 300, .page = 64, .causal = 1, .dqk = 576, .peak = 5, .seed = 4};
	for (int wild = -1; wild <= 1; wild += 2) { /* negative; past the cache */
		struct data d;
		struct result want, got;
		struct problem p;
		bool ok;
		data_make(&d, &c);
		fmla_ctx *ctx = subject_context(&(struct subject){.name = "oracle", .backend = "ref", .threads = 1});
		assert_non_null(ctx);
		assert_ok(ctx, data_decode(&d, ctx, &want, &ok));
		assert_ok(ctx, check_decode(ctx, &d.args, CHECK_DECODE, &p));
		int32_t *table = (int32_t *)(uintptr_t)p.block_table;
		table[1 * p.table_stride + 2] = wild < 0 ? -1 : (int32_t)p.num_pages;
		const size_t bytes = pk_workspace_size(&p, target_of(&p));
		p.workspace = guarded_alloc(bytes, 256);
		run_call(pk_pages_call(&p, target_of(&p)), ORDER_RANDOM);
		const int32_t *answer = p.workspace;
		assert_int_equal(answer[0], 1);
		assert_int_equal(answer[1], 2);
		assert_int_equal(answer[2], table[1 * p.table_stride + 2]);
		assert_int_equal(pk_pages_answer(ctx, &p, answer), FMLA_ERR_PAGE);
		run_decode(&p, ORDER_RANDOM);
		ok = data_result(&d, &got);
		assert_true(ok);
		for (int64_t i = 0; i < got.tokens * got.h_q; i++) {
			const bool hit = i / got.h_q == 1;
			assert_true(hit ? isnan(got.lse[i]) : fabsf(got.lse[i] - want.lse[i]) < 1e-4f);
			for (int64_t v = 0; v < got.d_v; v++)
				assert_true(hit == (isnan(got.out[i * got.d_v + v]) != 0));
		}
		result_free(&got);
		result_free(&want);
		guarded_free(p.workspace, bytes);
		data_free(&d);
		fmla_ctx_destroy(ctx);
	}
}

/* ---- merge and append ------------------------------------------------------------------------------------------------ */

static const struct fmla_dtype bf16 = FMLA_BF16, fp16 = FMLA_FP16, fp32 = FMLA_FP32, int32 = FMLA_INT32,
                               int64 = FMLA_INT64;

/* Random partials, two of five empty with NaN values: the ref backend's answer, up to rounding. */
static void test_merge(void **state)
{
	(void)state;
	const struct fmla_dtype types[] = {bf16, fp16, fp32};
	fmla_ctx *ctx = subject_context(&(struct subject){.name = "oracle", .backend = "ref", .threads = 1});
	assert_non_null(ctx);
	for (int variant = 0; variant < 18; variant++) {
		const int64_t shape[5] = {variant % 5, 2, 3, 4, variant % 2 ? 512 : 72};
		const int64_t lse_shape[4] = {shape[0], shape[1], shape[3], shape[2]};
		struct data_tensor in, in_lse, sink, out, lse;
		data_tensor_make(&in, types[variant % 3], 5, shape, NULL, NULL, 16);
		data_tensor_make(&in_lse, fp32, 4, lse_shape, NULL, NULL, 4);
		data_tensor_make(&sink, fp32, 1, &shape[3], NULL, NULL, 0);
		data_tensor_make(&out, types[variant / 3 % 3], 4, shape + 1, NULL, NULL, 2 * 8);
		data_tensor_make(&lse, fp32, 3, lse_shape + 1, NULL, NULL, 8);
		float *in_lses = (float *)(void *)(in_lse.host + in_lse.t.byte_offset);
		const int64_t rows = shape[1] * shape[2] * shape[3], values = rows * shape[4];
		for (int64_t i = 0; i < shape[0] * rows; i++) {
			const int64_t s = i % shape[2], h = i / shape[2] % shape[3], rest = i / shape[2] / shape[3];
			const uint64_t kind = random_bits(1, (uint64_t)i) % 5;
			in_lses[i] = kind == 0 ? INFINITY : kind == 1 ? -INFINITY : (float)(4 * random_normal(2, (uint64_t)i));
			for (int64_t v = 0; v < shape[4]; v++)
				value_set(in.t.dtype, in.host + in.t.byte_offset, ((rest * shape[2] + s) * shape[3] + h) * shape[4] + v,
				          kind <= 1 ? NAN : (float)random_normal(3, (uint64_t)(i * 600 + v)));
		}
		for (int64_t h = 0; h < shape[3]; h++)
			((float *)(void *)sink.host)[h] = h == 0 ? INFINITY : (float)h;
		const struct fmla_merge_args args = {.struct_size = sizeof(args),
		                                     .partial_out = &in.t,
		                                     .partial_lse = &in_lse.t,
		                                     .attn_sink = variant % 4 < 2 ? &sink.t : NULL,
		                                     .out = &out.t,
		                                     .lse = variant % 7 ? &lse.t : NULL,
		                                     .flags = variant % 2 ? FMLA_EMPTY_LSE_NEG_INF : 0};
		struct merge_problem p;
		assert_ok(ctx, fmla_merge(ctx, &args));
		char *want_out = malloc(out.bytes), *want_lse = malloc(lse.bytes);
		memcpy(want_out, out.host, out.bytes);
		memcpy(want_lse, lse.host, lse.bytes);
		memset(out.host + out.t.byte_offset, 0xff, out.bytes - out.t.byte_offset);
		assert_ok(ctx, check_merge(ctx, &args, &p));
		run_call(pk_merge_call(&p), ORDER_RANDOM);
		for (int64_t i = 0; i < values; i++) {
			const float a = value_get(out.t.dtype, out.host + out.t.byte_offset, i);
			const float b = value_get(out.t.dtype, want_out + out.t.byte_offset, i);
			if (!(fabsf(a - b) <= 1e-5f + fabsf(b) / (out.t.dtype.bits == 32 ? 1e5f : 120)))
				fail_msg("variant %d: value %lld is %g, want %g", variant, (long long)i, a, b);
		}
		for (int64_t i = 0; i < rows; i++) {
			const float a = ((float *)(void *)(lse.host + 8))[i], b = ((float *)(void *)(want_lse + 8))[i];
			assert_true(a == b || fabsf(a - b) < 1e-4f || (isnan(a) && isnan(b)));
		}
		free(want_out);
		free(want_lse);
		data_tensor_free(&in);
		data_tensor_free(&in_lse);
		data_tensor_free(&sink);
		data_tensor_free(&out);
		data_tensor_free(&lse);
	}
	fmla_ctx_destroy(ctx);
}

/* Every slot of a cache, some slots negative and past it: the rows arrive, nothing else changes. */
static void test_append(void **state)
{
	(void)state;
	enum { N = 9, HEADS = 2, PAGES = 3, PAGE = 5 };
	static const int64_t slots[N] = {3, -1, 14, 0, 7, PAGES * PAGE, 9, INT64_MIN, 5};
	fmla_ctx *ctx = subject_context(&(struct subject){.name = "oracle", .backend = "ref", .threads = 1});
	assert_non_null(ctx);
	for (int wide = 0; wide < 2; wide++) {
		const int64_t latent_shape[3] = {N, HEADS, 512}, rope_shape[3] = {N, HEADS, 64}, n = N;
		const int64_t cache_shape[4] = {PAGES, PAGE, HEADS, 576}, pad[4] = {0, 0, 8, 0};
		struct data_tensor latent, rope, slot, cache;
		data_tensor_make(&latent, bf16, 3, latent_shape, NULL, NULL, 2);
		data_tensor_make(&rope, bf16, 3, rope_shape, NULL, NULL, 4);
		data_tensor_make(&slot, wide ? int64 : int32, 1, &n, NULL, NULL, 8);
		data_tensor_make(&cache, bf16, 4, cache_shape, (const int[]){0, 1, 2, 3}, pad, 16);
		for (size_t i = 0; i < latent.bytes; i++)
			latent.host[i] = (char)(i * 7);
		for (size_t i = 0; i < rope.bytes; i++)
			rope.host[i] = (char)(i * 11 + 1);
		for (int i = 0; i < N; i++)
			if (wide)
				((int64_t *)(void *)(slot.host + 8))[i] = slots[i];
			else
				((int32_t *)(void *)(slot.host + 8))[i] = slots[i] < 0 ? -1 : (int32_t)slots[i];
		struct fmla_kv_append_args args = {.struct_size = sizeof(args),
		                                   .kv_latent = &latent.t,
		                                   .k_rope = &rope.t,
		                                   .slot_mapping = &slot.t,
		                                   .kv_cache = &cache.t};
		struct append_problem p;
		args.slot_mapping = &slot.t;
		slot.t.device.type = latent.t.device.type = rope.t.device.type = cache.t.device.type = FMLA_DEVICE_CUDA;
		assert_ok(ctx, check_append(ctx, &args, &p)); /* as on a device: slots are not looked at */
		memset(cache.host, 0x55, cache.bytes);
		run_call(pk_append_call(&p), ORDER_REVERSE);
		char *want = malloc(cache.bytes);
		memset(want, 0x55, cache.bytes);
		for (int i = 0; i < N; i++)
			for (int h = 0; slots[i] >= 0 && slots[i] < PAGES * PAGE && h < HEADS; h++) {
				char *to = want + 16 + 2 * (slots[i] / PAGE * p.kv_page + slots[i] % PAGE * p.kv_token + h * p.kv_head);
				memcpy(to, latent.host + 2 + (i * HEADS + h) * 1024, 1024);
				memcpy(to + 1024, rope.host + 4 + (i * HEADS + h) * 128, 128);
			}
		assert_memory_equal(cache.host, want, cache.bytes);
		free(want);
		data_tensor_free(&latent);
		data_tensor_free(&rope);
		data_tensor_free(&slot);
		data_tensor_free(&cache);
	}
	fmla_ctx_destroy(ctx);
}

/* Several requests of which some are split, as decode_mma.cu plans them itself. */
static const char *const several[] = {"b=3 varlen=1 s_k=400 h_q=4",
                                      "b=2 s_k=500 s_q=2 h_q=20 page=16 dtype=fp16",
                                      "b=4 varlen=1 s_k=300 ragged=1 s_q=3 h_q=2",
                                      "b=40 varlen=1 s_k=20 h_q=1 page=4",
                                      "b=2 s_k=600 h_q=65 sink=1",
                                      "b=7 varlen=1 s_k=700 h_q=2"};
enum { SEVERAL = sizeof(several) / sizeof(*several) };

/* ---- the table ------------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
	static const char *const order_names[] = {"forward", "reverse", "random", "waves", "mma"};
	static enum decoder decoders[] = {SCALAR, WAVES, MMA};
	enum { FIXED = 5, KINDS = EMULATOR_ORDERS + 2 };
	const size_t most = KINDS * case_quick_count + FIXED + 2 * SEVERAL;
	struct CMUnitTest *tests = calloc(most, sizeof(*tests));
	struct job *jobs = calloc(most, sizeof(*jobs));
	if (!tests || !jobs)
		return 2;
	size_t n = 0;
	tests[n++] =
	    (struct CMUnitTest){.name = "wild page", .test_func = test_wild_page, .initial_state = &decoders[SCALAR]};
	tests[n++] =
	    (struct CMUnitTest){.name = "wild page, waves", .test_func = test_wild_page, .initial_state = &decoders[WAVES]};
	tests[n++] =
	    (struct CMUnitTest){.name = "wild page, mma", .test_func = test_wild_page, .initial_state = &decoders[MMA]};
	tests[n++] = (struct CMUnitTest){.name = "merge", .test_func = test_merge};
	tests[n++] = (struct CMUnitTest){.name = "append", .test_func = test_append};
	for (size_t i = 0; i < case_quick_count; i++) {
		struct test_case c;
		char why[128];
		if (!case_parse(case_table[i], &c, why, sizeof(why)))
			return 2;
		for (int order = 0; order < KINDS; order++) { /* the longer cases in one order only */
			static const int64_t tiles[KINDS] = {FEW_TILES, FEW_TILES, MOST_TILES, WAVE_TILES, MMA_TILES};
			const enum decoder by = order < EMULATOR_ORDERS ? SCALAR : order == EMULATOR_ORDERS ? WAVES : MMA;
			if (key_tiles(&c) > tiles[order])
				continue;
			jobs[n] = (struct job){.line = case_table[i],
			                       .order = (enum emulator_order)(by == SCALAR ? order : (int)(i % 3)),
			                       .decoder = by};
			snprintf(jobs[n].name, sizeof(jobs[n].name), "%s | %s", order_names[order], case_table[i]);
			tests[n] =
			    (struct CMUnitTest){.name = jobs[n].name, .test_func = test_case_in_order, .initial_state = &jobs[n]};
			n++;
		}
	}
	for (size_t i = 0; i < 2 * SEVERAL; i++) {
		jobs[n] = (struct job){.line = several[i / 2], .order = i % 2 ? ORDER_RANDOM : ORDER_FORWARD, .decoder = MMA};
		snprintf(jobs[n].name, sizeof(jobs[n].name), "several, %s | %s", order_names[jobs[n].order], several[i / 2]);
		tests[n] =
		    (struct CMUnitTest){.name = jobs[n].name, .test_func = test_case_in_order, .initial_state = &jobs[n]};
		n++;
	}
	size_t kept = 0;
	for (size_t i = 0; i < n; i++)
		if (argc < 2 || fnmatch(argv[1], tests[i].name, 0) == 0)
			tests[kept++] = tests[i];
	if (kept == 0) {
		fprintf(stderr, "no test matches %s\n", argv[1]);
		return 1;
	}
	const int failed = _cmocka_run_group_tests("portable", tests, kept, NULL, NULL);
	free(tests);
	free(jobs);
	return failed != 0;
}
