/* SPDX-License-Identifier: MIT
 *
 * What must hold between two runs of one backend, whatever the right answer is: the same call twice gives the same
 * bits; where pages lie changes nothing; in batch-invariant mode a request alone gives the bits that it gives in a
 * batch, on any number of threads; no memory is allocated inside fmla_decode, and the caller's arithmetic is as before. */
#include "harness.h"

#include "close.h"
#include "subjects.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct subject subjects[MAX_SUBJECTS];
static int num_subjects;

/* ---- allocations: the linker sends those of the library here (--wrap) ------------------------------------------- */

static volatile int allocations; /* volatile: the compiler believes that malloc changes no variable */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__real_aligned_alloc(size_t align, size_t bytes);
int __real_posix_memalign(void **p, size_t align, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
int __wrap_posix_memalign(void **p, size_t align, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
	allocations++;
	return __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
	allocations++;
	return __real_calloc(n, bytes);
}

void *__wrap_realloc(void *p, size_t bytes)
{
	allocations++;
	return __real_realloc(p, bytes);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
	allocations++;
	return __real_aligned_alloc(align, bytes);
}

int __wrap_posix_memalign(void **p, size_t align, size_t bytes)
{
	allocations++;
	return __real_posix_memalign(p, align, bytes);
}

/* ---- helpers ------------------------------------------------------------------------------------------------------
 */

static void make_data(struct data *d, const char *line)
{
	struct test_case c;
	char why[128];
	if (!case_parse(line, &c, why, sizeof(why)))
		fail_msg("%s", why);
	data_make(d, &c);
}

static struct result decode(struct data *d, fmla_ctx *ctx)
{
	struct result r;
	assert_ok(ctx, data_decode(d, ctx, &r, NULL));
	return r;
}

static bool same_bits(const struct result *a, int64_t row_a, const struct result *b, int64_t row_b, int64_t rows)
{
	return memcmp(a->out + row_a * a->d_v, b->out + row_b * b->d_v, (size_t)(rows * a->d_v) * sizeof(float)) == 0 &&
	       memcmp(a->lse + row_a, b->lse + row_b, (size_t)rows * sizeof(float)) == 0;
}

static void for_each_subject(void (*test)(const struct subject *, fmla_ctx *))
{
	for (int s = 0; s < num_subjects; s++) {
		fmla_ctx *ctx = subject_context(&subjects[s]);
		assert_non_null(ctx);
		test(&subjects[s], ctx);
		fmla_ctx_destroy(ctx);
	}
}

/* ---- tests --------------------------------------------------------------------------------------------------------
 */

static void no_allocation(const struct subject *s, fmla_ctx *ctx)
{
	static const char *const lines[] = {"b=4 s_k=700 varlen=1 h_q=20", "s_k=9000 h_q=3 invariant=1",
	                                    "s_k=300 s_q=3 dtype=fp16"};
	for (int i = 0; i < 3; i++) {
		struct data d;
		size_t bytes;
		make_data(&d, lines[i]);
		assert_ok(ctx, fmla_workspace_size(ctx, &d.args, &bytes));
		d.args.workspace = guarded_alloc(bytes, 256);
		d.args.workspace_size = bytes;
		allocations = 0;
		void *volatile one = malloc(1); /* the counter counts */
		free(one);
		assert_int_equal(allocations, 1);
		assert_ok(ctx, fmla_decode(ctx, &d.args));
		if (allocations != 1)
			fail_msg("%s: %d allocations inside fmla_decode", s->name, allocations - 1);
		guarded_free(d.args.workspace, bytes);
		data_free(&d);
	}
}

/* Kernels may compute with denormal results as zeros; their caller does not. */
static void arithmetic_kept(const struct subject *s, fmla_ctx *ctx)
{
	struct data d;
	make_data(&d, "b=2 s_k=100 h_q=20");
	struct result r = decode(&d, ctx);
	volatile float smallest = 0x1p-126f;
	if (smallest * 0.5f == 0)
		fail_msg("%s: after fmla_decode denormal results are zeros", s->name);
	result_free(&r);
	data_free(&d);
}

static void same_twice(const struct subject *s, fmla_ctx *ctx)
{
	struct data d;
	make_data(&d, "b=5 s_k=1500 varlen=1 h_q=20 s_q=2 wild=1");
	struct result first = decode(&d, ctx);
	for (int i = 0; i < 3; i++) {
		struct result again = decode(&d, ctx);
		if (!same_bits(&first, 0, &again, 0, first.tokens * first.h_q))
			fail_msg("%s: two equal calls differ", s->name);
		result_free(&again);
	}
	result_free(&first);
	data_free(&d);
}

/* Reverses the order of all pages in memory and in the table. */
static void permuted_pages(const struct subject *s, fmla_ctx *ctx)
{
	struct data d;
	make_data(&d, "b=4 s_k=700 varlen=1 h_q=7 page=32");
	struct result before = decode(&d, ctx);
	struct data_tensor *kv = &d.tensors[DATA_KV], *table = &d.tensors[DATA_TABLE];
	const int64_t pages = kv->shape[0];
	const size_t page_bytes = (size_t)kv->strides[0] * 2;
	char *copy = malloc(kv->bytes);
	assert_non_null(copy);
	memcpy(copy, kv->host, kv->bytes);
	for (int64_t n = 0; n < pages; n++)
		memcpy(kv->host + (size_t)(pages - 1 - n) * page_bytes, copy + (size_t)n * page_bytes, page_bytes);
	free(copy);
	for (size_t i = 0; i < table->bytes / 4; i++) {
		int32_t *entry = (int32_t *)(void *)table->host + i;
		if (*entry >= 0 && *entry < pages)
			*entry = (int32_t)pages - 1 - *entry;
	}
	struct result after = decode(&d, ctx);
	if (!same_bits(&before, 0, &after, 0, before.tokens * before.h_q))
		fail_msg("%s: results depend on where pages lie", s->name);
	result_free(&before);
	result_free(&after);
	data_free(&d);
}

/* Request i of a batch, as a batch of its own: views into the same tensors. */
static struct result decode_alone(struct data *d, int64_t i, fmla_ctx *ctx)
{
	static const enum data_name batched[] = {DATA_Q, DATA_TABLE, DATA_LENS, DATA_OUT, DATA_LSE};
	struct data_tensor keep[5];
	for (int n = 0; n < 5; n++) {
		struct data_tensor *t = &d->tensors[batched[n]];
		keep[n] = *t;
		t->shape[0] = 1;
		t->t.byte_offset += (uint64_t)(i * t->strides[0]) * (t->t.dtype.bits / 8u);
	}
	const int64_t b = d->c.b, total_q = d->total_q;
	size_t bytes;
	assert_ok(ctx, fmla_workspace_size(ctx, &d->args, &bytes));
	d->args.workspace = guarded_alloc(bytes, 256);
	d->args.workspace_size = bytes;
	assert_ok(ctx, fmla_decode(ctx, &d->args));
	guarded_free(d->args.workspace, bytes);
	d->c.b = 1;
	d->total_q = d->c.s_q;
	struct result r;
	data_result(d, &r);
	d->c.b = b;
	d->total_q = total_q;
	for (int n = 0; n < 5; n++)
		d->tensors[batched[n]] = keep[n];
	return r;
}

static void batch_invariance(const struct subject *s, fmla_ctx *ctx)
{
	static const char *const lines[] = {"b=6 s_k=9500 varlen=1 h_q=4 invariant=1 seed=5",
	                                    "b=3 s_k=9500 varlen=1 h_q=2 s_q=3 invariant=1 window=6000 dtype=fp16"};
	for (int n = 0; n < 2; n++) {
		struct data d;
		make_data(&d, lines[n]);
		struct result batch = decode(&d, ctx);
		for (int64_t i = 0; i < d.c.b; i++) {
			for (int threads = 1; threads <= 5; threads += 4) {
				struct subject other = *s;
				other.threads = threads;
				fmla_ctx *ctx2 = subject_context(&other);
				assert_non_null(ctx2);
				struct result alone = decode_alone(&d, i, ctx2);
				if (!same_bits(&batch, i * d.c.s_q * d.c.h_q, &alone, 0, d.c.s_q * d.c.h_q))
					fail_msg("%s: '%s': request %d differs alone on %d threads", s->name, lines[n], (int)i, threads);
				result_free(&alone);
				fmla_ctx_destroy(ctx2);
			}
		}
		result_free(&batch);
		data_free(&d);
	}
}

/* softmax_scale 0 averages V over the visible keys; equal keys give that key and lse = score + ln n. */
static void closed_forms(const struct subject *s, fmla_ctx *ctx)
{
	struct data d;
	make_data(&d, "b=2 s_k=300 h_q=3 page=300");
	d.args.softmax_scale = 0;
	struct result r = decode(&d, ctx);
	for (int64_t row = 0; row < r.tokens * r.h_q; row++)
		if (r.lse[row] < 5.70377f || r.lse[row] > 5.70380f) /* ln 300 = 5.703782 */
			fail_msg("%s: lse of 300 equal scores is %.7g", s->name, r.lse[row]);
	result_free(&r);

	struct data_tensor *kv = &d.tensors[DATA_KV];
	for (size_t i = 0; i < kv->bytes / 2; i++)
		value_set(kv->t.dtype, kv->host, (int64_t)i, (float)((int64_t)i % 576 - 288) / 256);
	d.args.softmax_scale = 0.01;
	r = decode(&d, ctx);
	for (int64_t row = 0; row < r.tokens * r.h_q; row++)
		for (int64_t v = 0; v < 512; v++) {
			const float error = r.out[row * 512 + v] - (float)(v - 288) / 256;
			if (error > 0.004f || error < -0.004f)
				fail_msg("%s: out[%d] of equal keys is off by %g", s->name, (int)v, error);
		}
	result_free(&r);
	data_free(&d);
}

/* Scores up to the range of fp32: all weight is on the key with the largest one. */
static void huge_scores(const struct subject *s, fmla_ctx *ctx)
{
	enum { TOP = 77, BOTTOM = 100 };
	struct data d;
	make_data(&d, "s_k=130 h_q=20");
	struct data_tensor *q = &d.tensors[DATA_Q], *kv = &d.tensors[DATA_KV];
	const int32_t *table = (const int32_t *)(void *)d.tensors[DATA_TABLE].host;
	for (size_t i = 0; i < q->bytes / 2; i++)
		value_set(q->t.dtype, q->host, (int64_t)i, i % 576 == 512 ? 1.f : 0.f);
	for (int t = 0; t < 130; t++)
		value_set(kv->t.dtype, kv->host, (table[t / 64] * 64 + t % 64) * 576 + 512,
		          t == TOP      ? 1
		          : t == BOTTOM ? -1
		                        : 0.5f);
	for (int sign = -1; sign <= 1; sign += 2) {
		const int t = sign > 0 ? TOP : BOTTOM, at = (table[t / 64] * 64 + t % 64) * 576;
		d.args.softmax_scale = sign * 3.3e38;
		struct result r = decode(&d, ctx);
		for (int64_t i = 0; i < r.tokens * r.h_q * 512; i++)
			if (r.out[i] != value_get(kv->t.dtype, kv->host, at + i % 512))
				fail_msg("%s: scale %g: out[%d] is %g", s->name, sign * 3.3e38, (int)i, r.out[i]);
		result_free(&r);
	}
	data_free(&d);
}

static void test_no_allocation(void **state)
{
	(void)state;
	for_each_subject(no_allocation);
}

static void test_same_twice(void **state)
{
	(void)state;
	for_each_subject(same_twice);
}

static void test_arithmetic_kept(void **state)
{
	(void)state;
	for_each_subject(arithmetic_kept);
}

static void test_permuted_pages(void **state)
{
	(void)state;
	for_each_subject(permuted_pages);
}

static void test_batch_invariance(void **state)
{
	(void)state;
	for_each_subject(batch_invariance);
}

static void test_closed_forms(void **state)
{
	(void)state;
	for_each_subject(closed_forms);
}

static void test_huge_scores(void **state)
{
	(void)state;
	for_each_subject(huge_scores);
}

int main(void)
{
	char missing[64];
	num_subjects = subjects_here(subjects, missing, sizeof(missing));
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_no_allocation),    cmocka_unit_test(test_arithmetic_kept),
	    cmocka_unit_test(test_same_twice),       cmocka_unit_test(test_permuted_pages),
	    cmocka_unit_test(test_batch_invariance), cmocka_unit_test(test_closed_forms),
	    cmocka_unit_test(test_huge_scores),
	};
	return cmocka_run_group_tests_name("properties", tests, NULL, NULL) != 0;
}
