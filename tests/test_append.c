/* SPDX-License-Identifier: MIT
 *
 * fmla_kv_append: every byte of the cache after the call is either the new row's or untouched; every rule of its check.
 */
#include "harness.h"

#include "data.h"
#include "subjects.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct subject subjects[MAX_SUBJECTS];
static int num_subjects;

static const struct fmla_dtype bf16 = FMLA_BF16, fp16 = FMLA_FP16, int32 = FMLA_INT32, int64 = FMLA_INT64;

struct append {
	int64_t n, pages, page, h_kv, d_latent, d_rope;
	struct data_tensor latent, rope, slots, kv;
	struct fmla_kv_append_args args;
};

struct shape {
	int64_t n, pages, page, h_kv, d_latent, d_rope;
	struct fmla_dtype dtype, slot_type;
	bool wild, flat; /* flat: new rows are [n, d] */
};

static uint16_t *at(const struct data_tensor *t, int64_t i, int64_t j, int64_t k)
{
	const int64_t index[3] = {i, j, k};
	int64_t element = 0;
	for (int d = 0; d < t->t.ndim - 1; d++)
		element += index[d] * t->strides[d];
	return (uint16_t *)(void *)(t->host + t->t.byte_offset) + element;
}

static void set_slot(const struct append *a, int64_t n, int64_t slot)
{
	char *base = a->slots.host + a->slots.t.byte_offset;
	if (a->slots.t.dtype.bits == 64)
		((int64_t *)(void *)base)[n * a->slots.strides[0]] = slot;
	else
		((int32_t *)(void *)base)[n * a->slots.strides[0]] = (int32_t)slot;
}

static void make_append(struct append *a, struct shape s)
{
	*a = (struct append){
	    .n = s.n, .pages = s.pages, .page = s.page, .h_kv = s.h_kv, .d_latent = s.d_latent, .d_rope = s.d_rope};
	const int64_t pad[4] = {3, 5, 7, 1}, kv_shape[4] = {s.pages, s.page, s.h_kv, s.d_latent + s.d_rope};
	const int64_t latent3[3] = {s.n, s.h_kv, s.d_latent}, latent2[2] = {s.n, s.d_latent};
	const int64_t rope3[3] = {s.n, s.h_kv, s.d_rope}, rope2[2] = {s.n, s.d_rope};
	static const int heads_outside[4] = {2, 0, 1, 3};
	data_tensor_make(&a->kv, s.dtype, 4, kv_shape, s.wild ? heads_outside : NULL, s.wild ? pad : NULL, s.wild ? 2 : 0);
	data_tensor_make(&a->latent, s.dtype, s.flat ? 2 : 3, s.flat ? latent2 : latent3, NULL, s.wild ? pad : NULL, 0);
	data_tensor_make(&a->rope, s.dtype, s.flat ? 2 : 3, s.flat ? rope2 : rope3, NULL, s.wild ? pad : NULL,
	                 s.wild ? 6 : 0);
	data_tensor_make(&a->slots, s.slot_type, 1, &s.n, NULL, NULL, s.wild ? 8 : 0);
	for (size_t i = 0; i < a->latent.bytes; i++)
		a->latent.host[i] = (char)random_bits(1, i);
	for (size_t i = 0; i < a->rope.bytes; i++)
		a->rope.host[i] = (char)random_bits(2, i);
	for (size_t i = 0; i < a->kv.bytes; i++)
		a->kv.host[i] = (char)random_bits(3, i);
	a->args = (struct fmla_kv_append_args){.struct_size = sizeof(a->args),
	                                       .kv_latent = &a->latent.t,
	                                       .k_rope = s.d_rope ? &a->rope.t : NULL,
	                                       .slot_mapping = &a->slots.t,
	                                       .kv_cache = &a->kv.t};
}

static void free_append(struct append *a)
{
	data_tensor_free(&a->latent);
	data_tensor_free(&a->rope);
	data_tensor_free(&a->slots);
	data_tensor_free(&a->kv);
}

/* Distinct random slots, every fifth token skipped. */
static void test_rows_land(void **state)
{
	(void)state;
	const struct shape shapes[] = {
	    {1, 1, 1, 1, 512, 64, bf16, int64, false, true},  {7, 3, 64, 1, 512, 64, bf16, int64, false, true},
	    {40, 4, 16, 1, 512, 64, fp16, int32, true, true}, {40, 4, 16, 2, 512, 64, bf16, int32, true, false},
	    {20, 2, 17, 3, 512, 0, fp16, int64, true, false}, {9, 5, 2, 1, 1, 0, bf16, int32, false, true},
	    {0, 2, 4, 1, 512, 64, bf16, int64, false, true},  {5, 2, 64, 1, 448, 128, bf16, int64, true, true},
	    {6, 2, 64, 1, 0, 576, bf16, int64, false, true},
	};
	for (int s = 0; s < num_subjects; s++) {
		fmla_ctx *ctx = subject_context(&subjects[s]);
		assert_non_null(ctx);
		for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
			struct append a;
			make_append(&a, shapes[i]);
			char *want = malloc(a.kv.bytes + 1);
			memcpy(want, a.kv.host, a.kv.bytes);
			const int64_t slots = a.pages * a.page, step = slots > 1 ? slots / 2 * 2 - 1 : 1;
			for (int64_t n = 0; n < a.n; n++) {
				const int64_t slot = n % 5 == 4 ? -1 - n : (n * step + 3) % slots;
				set_slot(&a, n, slot);
				for (int64_t h = 0; slot >= 0 && h < a.h_kv; h++) {
					const size_t offset = (size_t)((char *)at(&a.kv, slot / a.page, slot % a.page, h) - a.kv.host);
					memcpy(want + offset, at(&a.latent, n, h, 0), (size_t)a.d_latent * 2);
					memcpy(want + offset + (size_t)a.d_latent * 2, at(&a.rope, n, h, 0), (size_t)a.d_rope * 2);
				}
			}
			assert_ok(ctx, fmla_kv_append(ctx, &a.args));
			assert_memory_equal(a.kv.host, want, a.kv.bytes);
			free(want);
			free_append(&a);
		}
		fmla_ctx_destroy(ctx);
	}
}

/* Two equal slots: one of the rows, whole. */
static void test_equal_slots(void **state)
{
	(void)state;
	for (int s = 0; s < num_subjects; s++) {
		fmla_ctx *ctx = subject_context(&subjects[s]);
		assert_non_null(ctx);
		struct append a;
		make_append(&a, (struct shape){64, 1, 8, 1, 512, 64, bf16, int64, false, true});
		for (int64_t n = 0; n < a.n; n++)
			set_slot(&a, n, 5);
		assert_ok(ctx, fmla_kv_append(ctx, &a.args));
		int64_t winner = -1;
		for (int64_t n = 0; n < a.n; n++)
			if (memcmp(at(&a.kv, 0, 5, 0), at(&a.latent, n, 0, 0), 1024) == 0)
				winner = n;
		assert_true(winner >= 0);
		assert_memory_equal(at(&a.kv, 0, 5, 0) + 512, at(&a.rope, winner, 0, 0), 128);
		free_append(&a);
		fmla_ctx_destroy(ctx);
	}
}

/* ---- rules ------------------------------------------------------------------------------------------------------- */

#define RULE(id) static void rule_##id(struct append *a)
/* clang-format off */
RULE(size)               { a->args.struct_size = 0; }
RULE(kv_null)            { a->args.kv_cache = NULL; }
RULE(kv_ndim)            { a->kv.t.ndim = 3; }
RULE(kv_dtype)           { a->kv.t.dtype = int32; }
RULE(kv_last_stride)     { a->kv.strides[3] = 2; }
RULE(kv_overlap)         { a->kv.strides[1] = 0; }
RULE(kv_data)            { a->kv.t.data = NULL; }
RULE(kv_odd)             { a->kv.t.byte_offset = 1; }
RULE(kv_page)            { a->kv.shape[1] = 0; }
RULE(kv_heads)           { a->kv.shape[2] = 0; }
RULE(latent_null)        { a->args.kv_latent = NULL; }
RULE(latent_ndim)        { a->latent.t.ndim = 1; }
RULE(latent_flat)        { a->latent.t.ndim = 2; a->latent.strides[1] = 1; }
RULE(latent_dtype)       { a->latent.t.dtype = fp16; }
RULE(latent_device)      { a->latent.t.device.id = 1; }
RULE(latent_last_stride) { a->latent.strides[2] = 2; }
RULE(latent_heads)       { a->latent.shape[1] = 1; }
RULE(latent_data)        { a->latent.t.data = NULL; }
RULE(rope_n)             { a->rope.shape[0] = 3; }
RULE(rope_dtype)         { a->rope.t.dtype = fp16; }
RULE(rope_missing)       { a->args.k_rope = NULL; }
RULE(rope_width)         { a->rope.shape[2] = 32; }
RULE(slots_null)         { a->args.slot_mapping = NULL; }
RULE(slots_ndim)         { a->slots.t.ndim = 2; }
RULE(slots_n)            { a->slots.shape[0] = 3; }
RULE(slots_dtype)        { a->slots.t.dtype = fp16; }
RULE(slots_device)       { a->slots.t.device.type = FMLA_DEVICE_ROCM; }
RULE(slots_data)         { a->slots.t.data = NULL; }
RULE(slot_high)          { set_slot(a, 3, 32); }
/* clang-format on */

static const struct rule {
	const char *name;
	void (*break_it)(struct append *a);
	const char *words;
} rules[] = {
#define A(id, words)          \
	{                         \
#id, rule_##id, words \
	}
    A(size, "fmla_kv_append_args.struct_size is 0"),
    A(kv_null, "kv_cache is NULL"),
    A(kv_ndim, "kv_cache has 3 dimensions"),
    A(kv_dtype, "dtype of kv_cache is"),
    A(kv_last_stride, "last stride of kv_cache is 2"),
    A(kv_overlap, "stride 1 of kv_cache is 0"),
    A(kv_data, "data of kv_cache is NULL"),
    A(kv_odd, "2-byte aligned"),
    A(kv_page, "page (dimension 1 of kv_cache) is 0"),
    A(kv_heads, "h_kv (dimension 2 of kv_cache) is 0"),
    A(latent_null, "kv_latent is NULL"),
    A(latent_ndim, "kv_latent has 1 dimensions"),
    A(latent_flat, "kv_latent is [n, d], but kv_cache has h_kv = 2"),
    A(latent_dtype, "dtype of kv_latent"),
    A(latent_device, "kv_latent is on device 1:1"),
    A(latent_last_stride, "last stride of kv_latent is 2"),
    A(latent_heads, "dimension 1 of kv_latent is 1, must be 2 (h_kv of kv_cache)"),
    A(latent_data, "data of kv_latent is NULL"),
    A(rope_n, "dimension 0 of k_rope is 3, must be 4 (n of kv_latent)"),
    A(rope_dtype, "dtype of k_rope"),
    A(rope_missing, "kv_latent has 512 values and k_rope 0, kv_cache rows have 576"),
    A(rope_width, "kv_latent has 512 values and k_rope 32, kv_cache rows have 576"),
    A(slots_null, "slot_mapping is NULL"),
    A(slots_ndim, "slot_mapping has 2 dimensions"),
    A(slots_n, "dimension 0 of slot_mapping is 3, must be 4"),
    A(slots_dtype, "dtype of slot_mapping is {code 2, bits 16, lanes 1}, must be int64 or int32"),
    A(slots_device, "slot_mapping is on device 10:0"),
    A(slots_data, "data of slot_mapping is NULL"),
    A(slot_high, "slot_mapping[3] is 32, kv_cache has 2 * 16 slots"),
#undef A
};

static void test_rule(void **state)
{
	const struct rule *rule = *state;
	fmla_ctx *ctx = subject_context(&subjects[0]);
	assert_non_null(ctx);
	struct append a;
	make_append(&a, (struct shape){4, 2, 16, 2, 512, 64, bf16, int64, false, false});
	for (int64_t n = 0; n < a.n; n++)
		set_slot(&a, n, n);
	char *before = malloc(a.kv.bytes);
	memcpy(before, a.kv.host, a.kv.bytes);
	rule->break_it(&a);
	assert_int_equal(fmla_kv_append(ctx, &a.args), FMLA_ERR_ARGUMENT);
	if (!strstr(fmla_last_error(ctx), rule->words))
		fail_msg("%s: '%s' does not say '%s'", rule->name, fmla_last_error(ctx), rule->words);
	assert_memory_equal(a.kv.host, before, a.kv.bytes);
	free(before);
	free_append(&a);
	fmla_ctx_destroy(ctx);
}

int main(void)
{
	char missing[64];
	num_subjects = subjects_here(subjects, missing, sizeof(missing));
	enum { NUM_RULES = sizeof(rules) / sizeof(rules[0]) };
	struct CMUnitTest tests[2 + NUM_RULES] = {cmocka_unit_test(test_rows_land), cmocka_unit_test(test_equal_slots)};
	for (int i = 0; i < NUM_RULES; i++)
		tests[2 + i] =
		    (struct CMUnitTest){.name = rules[i].name, .test_func = test_rule, .initial_state = (void *)&rules[i]};
	return cmocka_run_group_tests_name("append", tests, NULL, NULL) != 0;
}
