/* SPDX-License-Identifier: MIT
 *
 * Contexts: what creating one may say, what a broken one still does; backends and strings. */
#include "harness.h"

#include "threads.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static fmla_ctx *ctx;

static void test_contexts(void **state)
{
	(void)state;
	fmla_ctx *c = NULL;
	struct fmla_ctx_options o = {.struct_size = sizeof(o)};
	assert_int_equal(fmla_ctx_create(NULL, NULL), FMLA_ERR_ARGUMENT);
	assert_string_equal(fmla_last_error(NULL), "the context is NULL");
	assert_int_equal(fmla_decode(NULL, NULL), FMLA_ERR_ARGUMENT);
	fmla_ctx_destroy(NULL);

	assert_int_equal(fmla_ctx_create(&c, NULL), FMLA_OK);
	assert_string_equal(fmla_last_error(c), "");
	assert_int_equal(fmla_decode(c, NULL), FMLA_ERR_ARGUMENT);
	assert_string_equal(fmla_last_error(c), "fmla_decode_args is NULL");
	assert_int_equal(fmla_merge(c, NULL), FMLA_ERR_ARGUMENT);
	assert_string_equal(fmla_last_error(c), "fmla_merge_args is NULL");
	assert_int_equal(fmla_kv_append(c, NULL), FMLA_ERR_ARGUMENT);
	assert_string_equal(fmla_last_error(c), "fmla_kv_append_args is NULL");
	fmla_ctx_destroy(c);

	const struct {
		struct fmla_ctx_options o;
		const char *cap, *words;
		fmla_status status;
	} bad[] = {
	    {{.struct_size = 3}, NULL, "fmla_ctx_options.struct_size is 3", FMLA_ERR_ARGUMENT},
	    {{.struct_size = sizeof(o), .backend = "quantum"}, NULL, "backend is 'quantum'|ref", FMLA_ERR_ARGUMENT},
	    {{.struct_size = sizeof(o), .num_threads = -1}, NULL, "num_threads is -1", FMLA_ERR_ARGUMENT},
	    {{.struct_size = sizeof(o), .num_threads = 5000}, NULL, "num_threads is 5000", FMLA_ERR_ARGUMENT},
	    {{.struct_size = sizeof(o)}, "avx1024", "FMLA_CPU is 'avx1024'|amx, avx512, avx2, c or ref", FMLA_ERR_ARGUMENT},
	    {{.struct_size = sizeof(o)}, "", "FMLA_CPU is ''", FMLA_ERR_ARGUMENT},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (bad[i].cap)
			setenv("FMLA_CPU", bad[i].cap, 1);
		assert_int_equal(fmla_ctx_create(&c, &bad[i].o), bad[i].status);
		unsetenv("FMLA_CPU");
		assert_words("context", fmla_last_error(c), bad[i].words);
		assert_int_equal(fmla_decode(c, NULL), FMLA_ERR_ARGUMENT); /* such a context only carries its sentence */
		assert_words("context", fmla_last_error(c), bad[i].words);
		fmla_ctx_destroy(c);
	}
}

static void test_backend_info(void **state)
{
	(void)state;
	struct fmla_backend_info info = {.struct_size = sizeof(info)};
	int n = 0, found_ref = 0;
	for (; fmla_backend_info(ctx, n, &info) == FMLA_OK; n++) {
		assert_true(info.name[0] && info.device_name && info.variant && info.reason);
		assert_true(info.available ? info.num_workers >= 1 : info.reason[0] != '\0');
		found_ref |= strcmp(info.name, "ref") == 0 && info.available && info.device_type == FMLA_DEVICE_CPU;
	}
	assert_true(found_ref && n >= 1);
	assert_int_equal(fmla_backend_info(ctx, n, &info), FMLA_ERR_ARGUMENT);
	assert_int_equal(fmla_backend_info(ctx, -1, &info), FMLA_ERR_ARGUMENT);
	assert_words("index", fmla_last_error(ctx), "index is -1");
	assert_int_equal(fmla_backend_info(ctx, 0, NULL), FMLA_ERR_ARGUMENT);
	info.struct_size = 0;
	assert_int_equal(fmla_backend_info(ctx, 0, &info), FMLA_ERR_ARGUMENT);
	/* an older caller's shorter struct is filled as far as it goes */
	struct fmla_backend_info older = {.struct_size = offsetof(struct fmla_backend_info, available), .num_workers = -7};
	assert_ok(ctx, fmla_backend_info(ctx, 0, &older));
	assert_non_null(older.name);
	assert_int_equal(older.num_workers, -7);
}

/* A machine whose CPUs 0 to 2 are one core, as are 3 and 9; of CPU 4 nothing is known. */
static void test_cores(void **state)
{
	(void)state;
	static const struct {
		int cpu;
		const char *list;
	} known[] = {{0, "0-2\n"}, {1, "0-2\n"}, {2, "0-2\n"}, {3, "3,9\n"}, {9, "3,9\n"}};
	enum { KNOWN = sizeof(known) / sizeof(known[0]) };
	char root[] = "/tmp/flashmla-cpus-XXXXXX", path[KNOWN][3][96];
	assert_non_null(mkdtemp(root));
	for (int i = 0; i < KNOWN; i++) {
		snprintf(path[i][0], 96, "%s/cpu%d", root, known[i].cpu);
		snprintf(path[i][1], 96, "%s/cpu%d/topology", root, known[i].cpu);
		snprintf(path[i][2], 96, "%s/cpu%d/topology/thread_siblings_list", root, known[i].cpu);
		assert_int_equal(mkdir(path[i][0], 0700) | mkdir(path[i][1], 0700), 0);
		FILE *f = fopen(path[i][2], "w");
		assert_non_null(f);
		fputs(known[i].list, f);
		fclose(f);
	}
	const unsigned char all[10] = {1, 1, 1, 1, 1, 0, 0, 0, 0, 1}, without_0[10] = {0, 1, 1}, none[10] = {0};
	assert_int_equal(threads_cores(root, all, 10), 3);
	assert_int_equal(threads_cores(root, all, 4), 2);
	assert_int_equal(threads_cores(root, without_0, 10), 1);
	assert_int_equal(threads_cores(root, none, 10), 0);
	for (int i = 0; i < KNOWN; i++)
		assert_int_equal(unlink(path[i][2]) | rmdir(path[i][1]) | rmdir(path[i][0]), 0);
	assert_int_equal(rmdir(root), 0);
	assert_true(threads_offered() >= 1);
}

static void test_strings(void **state)
{
	(void)state;
	for (int s = FMLA_OK; s <= FMLA_ERR_PAGE + 1; s++)
		for (int t = FMLA_OK; t < s; t++)
			assert_string_not_equal(fmla_status_string((fmla_status)s), fmla_status_string((fmla_status)t));
	assert_string_equal(fmla_status_string((fmla_status)-1), "unknown status");
	char version[32];
	snprintf(version, sizeof(version), "%d.%d.%d", FMLA_VERSION_MAJOR, FMLA_VERSION_MINOR, FMLA_VERSION_PATCH);
	assert_string_equal(fmla_version_string(), version);
	assert_int_equal(fmla_version(), FMLA_VERSION_MAJOR * 10000 + FMLA_VERSION_MINOR * 100 + FMLA_VERSION_PATCH);
}

int main(void)
{
	const struct fmla_ctx_options options = {.struct_size = sizeof(options), .backend = "ref", .num_threads = 2};
	if (fmla_ctx_create(&ctx, &options) != FMLA_OK)
		return 2;
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_contexts),
	    cmocka_unit_test(test_backend_info),
	    cmocka_unit_test(test_strings),
	    cmocka_unit_test(test_cores),
	};
	const int failed = cmocka_run_group_tests_name("context", tests, NULL, NULL);
	fmla_ctx_destroy(ctx);
	return failed != 0;
}
