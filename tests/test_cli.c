/* SPDX-License-Identifier: MIT
 *
 * The parts of the command that its output does not show: JSON, safetensors there and back, dates, the server that a
 * trace is replayed on, pages, workloads. */
#include "harness.h"

#include "../cli/json.h"
#include "../cli/pages.h"
#include "../cli/safetensors.h"
#include "../cli/trace.h"
#include "../cli/workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static void json_strings(void **state)
{
	static const struct {
		const char *text, *value; /* value NULL: an error */
	} cases[] = {
	    {"\"\"", ""},
	    {" \"a\\\"\\\\\\/\\b\\f\\n\\r\\t\" ", "a\"\\/\b\f\n\r\t"},
	    {"\"\\u0041\\u00e9\\u20aC\\ud83d\\ude00\"", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
	    {"\"1234567\"", "1234567"},
	    {"\"12345678\"", NULL}, /* does not fit */
	    {"\"\\u0000\"", NULL},
	    {"\"\\ud83d\"", NULL},
	    {"\"\\ud83dx\\ude00\"", NULL},
	    {"\"\\ude00\"", NULL},
	    {"\"\\ud83d\\u0041\"", NULL},
	    {"\"\\u12g4\"", NULL},
	    {"\"\\u12", NULL},
	    {"\"\\x\"", NULL},
	    {"\"\\", NULL},
	    {"\"a", NULL},
	    {"\"a\nb\"", NULL},
	    {"a", NULL},
	    {"\"\" x", NULL},
	};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct json j;
		char small[8], large[32];
		const bool roomy = cases[i].value && strlen(cases[i].value) >= sizeof(small);
		char *buf = roomy ? large : small;
		json_open(&j, cases[i].text, strlen(cases[i].text));
		const bool ok = json_string(&j, buf, roomy ? sizeof(large) : sizeof(small)) && json_end(&j);
		if (ok != (cases[i].value != NULL) || (ok && strcmp(buf, cases[i].value) != 0))
			fail_msg("%s: %s", cases[i].text, ok ? buf : json_error(&j));
	}
}

static void json_integers(void **state)
{
	static const struct {
		const char *text;
		bool ok;
		int64_t value;
	} cases[] = {{"0", true, 0},
	             {"-0", true, 0},
	             {"9223372036854775807", true, INT64_MAX},
	             {"-9223372036854775808", true, INT64_MIN},
	             {"9223372036854775808", false, 0},
	             {"-9223372036854775809", false, 0},
	             {"99999999999999999999999", false, 0},
	             {"01", false, 0},
	             {"-", false, 0},
	             {"+1", false, 0},
	             {"1.0", false, 0},
	             {"1e3", false, 0},
	             {"", false, 0}};
	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct json j;
		int64_t value = 1;
		json_open(&j, cases[i].text, strlen(cases[i].text));
		const bool ok = json_int64(&j, &value) && json_end(&j);
		if (ok != cases[i].ok || (ok && value != cases[i].value))
			fail_msg("%s: %lld, %s", cases[i].text, (long long)value, json_error(&j));
	}
}

static void json_values(void **state)
{
	static const char *const good[] = {"{}",
	                                   "[]",
	                                   " [ 1 , -2.5e+3 , \"x\" , true , false , null ] ",
	                                   "0.1E9",
	                                   "{\"a\":{},\"b\":[[]]}",
	                                   "[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]"};
	static const char *const bad[] = {"",      "[",       "[1,]",       "[,1]",
	                                  "[1 2]", "{\"a\"}", "{\"a\":1,}", "{1:2}",
	                                  "[1}",   "tru",     "nul",        "1.",
	                                  "1e",    "-a",      "[1]]",       "{}{}",
	                                  "[01x",  "\"\\q\"", "{\"a\" 1}",  "[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]"};
	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(*good) + sizeof(bad) / sizeof(*bad); i++) {
		const bool is_good = i < sizeof(good) / sizeof(*good);
		const char *text = is_good ? good[i] : bad[i - sizeof(good) / sizeof(*good)];
		struct json j;
		json_open(&j, text, strlen(text));
		if ((json_skip(&j) && json_end(&j)) != is_good)
			fail_msg("%s: %s", text, is_good ? json_error(&j) : "accepted");
	}
}

/* ---- safetensors ----------------------------------------------------------------------------------------------- */

static void safetensors_round_trip(void **state)
{
	char path[64], error[256];
	float lse[6] = {1, 2, 3, 4, 5, 6}, lse_read[6];
	uint8_t bytes[3] = {7, 8, 9}, bytes_read[3];
	struct st_tensor tensors[] = {{.name = "quo\"te\\", .dtype = "U8", .ndim = 1, .shape = {3}},
	                              {.name = "empty", .dtype = "BF16", .ndim = 2, .shape = {0, 5}},
	                              {.name = "lse", .dtype = "F32", .ndim = 2, .shape = {2, 3}}};
	void *data[] = {bytes, NULL, lse};
	const char *const metadata[] = {"key", "value", NULL};
	struct safetensors st;
	(void)state;
	snprintf(path, sizeof(path), "/tmp/flashmla-test-%ld", (long)getpid());
	assert_true(st_write(path, tensors, data, 3, metadata, error, sizeof(error)));
	const bool opened = st_open(&st, path);
	unlink(path);
	if (!opened)
		fail_msg("%s", st.error);
	assert_int_equal(st.count, 3);
	assert_int_equal(st.data_start % 8, 0);
	assert_null(st_find(&st, "key"));
	assert_int_equal(st_find(&st, "empty")->shape[1], 5);
	assert_true(st_read(&st, st_find(&st, "lse"), lse_read) && st_read(&st, st_find(&st, "quo\"te\\"), bytes_read));
	assert_memory_equal(lse, lse_read, sizeof(lse));
	assert_memory_equal(bytes, bytes_read, sizeof(bytes));
	st_close(&st);
}

/* ---- traces ---------------------------------------------------------------------------------------------------- */

static void parse(struct trace *t, const char *text)
{
	if (!trace_parse(t, text, strlen(text)))
		fail_msg("%s", t->error);
}

#define CSV "TIMESTAMP,ContextTokens,GeneratedTokens\n"

static void trace_dates(void **state)
{
	struct trace t;
	(void)state;
	parse(&t, CSV "2024-03-01 00:00:00.5,2,3\r\n2024-02-28 23:59:59,1,4\n1970-01-01 00:00:01+00:00,9,9");
	assert_int_equal(t.count, 3);
	assert_int_equal(t.requests[0].input, 9); /* sorted by arrival */
	assert_true(t.requests[0].arrival_ms == 1000);
	assert_true(t.requests[2].arrival_ms - t.requests[1].arrival_ms == 86400000 + 1500); /* 2024 is a leap year */
	trace_free(&t);
}

/* Every request runs output - 1 steps, one token longer in each, never with more than max_batch others. */
static void replay_is_a_server(void **state)
{
	static const double step_ms[] = {0, 1, 30, 5000};
	struct trace t;
	(void)state;
	if (!trace_load(&t, "tests/traces/azure_llm_2023_conv_400.csv"))
		fail_msg("%s", t.error);
	int32_t *steps = calloc(t.count, sizeof(*steps));
	for (size_t k = 0; k < 4; k++) {
		enum { MAX_BATCH = 24 };
		struct replay r;
		memset(steps, 0, t.count * sizeof(*steps));
		assert_true(replay_start(&r, &t, MAX_BATCH, step_ms[k]));
		double before = r.now_ms;
		while (replay_step(&r)) {
			assert_in_range(r.count, 1, MAX_BATCH);
			for (int i = 0; i < r.count; i++) {
				const struct trace_request *q = &t.requests[r.slots[i].request];
				assert_int_equal(r.slots[i].length, q->input + ++steps[r.slots[i].request]);
				assert_true(step_ms[k] == 0 || q->arrival_ms <= r.now_ms);
			}
			if (step_ms[k] == 0 && r.next < t.count)
				assert_int_equal(r.count, MAX_BATCH); /* always full */
			assert_true(r.now_ms >= before);
			before = r.now_ms;
		}
		for (size_t i = 0; i < t.count; i++)
			assert_int_equal(steps[i], t.requests[i].output > 1 ? t.requests[i].output - 1 : 0);
		replay_free(&r);
	}
	free(steps);
	trace_free(&t);
}

/* ---- pages and workloads --------------------------------------------------------------------------------------- */

static void pages_are_shared_by_prefix(void **state)
{
	struct trace t;
	struct pages p;
	(void)state;
	/* 0 and 1 share 512 tokens; 2 has the same second hash in another place, which is no common prefix */
	parse(&t, "{\"timestamp\": 0, \"input_length\": 1024, \"output_length\": 9, \"hash_ids\": [7, 8]}\n"
	          "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 9, \"hash_ids\": [7, 9]}\n"
	          "{\"timestamp\": 0, \"input_length\": 512, \"output_length\": 9, \"hash_ids\": [8]}\n");
	const struct replay_slot slots[] = {{0, 1030}, {1, 601}, {2, 513}};
	const int32_t lengths[] = {1030, 601, 513};
	assert_true(pages_assign(&p, lengths, 3, 100, 1, &t, slots));
	assert_int_equal(p.max_pages, 11);
	assert_int_equal(p.num_pages, 11 + 7 + 6 - 5); /* five pages of 100 tokens lie in 512 */
	assert_int_equal(p.kv_tokens - p.distinct_tokens, 500);
	for (int j = 0; j < 11; j++) {
		const int32_t a = p.table[j], b = p.table[11 + j], c = p.table[22 + j];
		assert_true((a == b) == (j < 5));
		assert_true(a != c && a >= 0 && (b >= 0) == (j < 7) && (c >= 0) == (j < 6));
	}
	pages_free(&p);
	assert_true(pages_assign(&p, lengths, 3, 100, 1, NULL, NULL));
	assert_int_equal(p.num_pages, 24);
	pages_free(&p);
	trace_free(&t);
}

static int by_length(const void *a, const void *b)
{
	return *(const int32_t *)a - *(const int32_t *)b;
}

/* A drawn batch has the quantiles of its table: request i of b, sorted, lies between the quantiles i/b and (i + 1)/b.
 */
static void workloads_follow_their_quantiles(void **state)
{
	enum { B = 4 * (WORKLOAD_KNOTS - 1) };
	int32_t lengths[B], again[B];
	(void)state;
	for (int k = 0; k < num_workloads; k++) {
		const struct workload *w = &workloads[k];
		assert_ptr_equal(workload_find(w->name), w);
		workload_lengths(w, B, 5, lengths);
		workload_lengths(w, B, 5, again);
		assert_memory_equal(lengths, again, sizeof(lengths));
		workload_lengths(w, B, 6, again);
		assert_memory_not_equal(lengths, again, sizeof(lengths));
		qsort(lengths, B, sizeof(*lengths), by_length);
		for (int i = 0; i < B; i++)
			assert_in_range(lengths[i], w->quantiles[i / 4], w->quantiles[i / 4 + 1]);
	}
	assert_null(workload_find("azure"));
}

/* One request, 3 tokens in, 5 out: its cache has 4, 5, 6 and 7 tokens in its four steps. */
static void quantiles_weigh_by_steps(void **state)
{
	struct trace t;
	int32_t q[WORKLOAD_KNOTS];
	(void)state;
	parse(&t, CSV "2024-03-01 00:00:00,3,5\n2024-03-01 00:00:00,1000,1\n");
	workload_quantiles(&t, q);
	assert_int_equal(q[0], 4);
	assert_int_equal(q[5], 4);
	assert_int_equal(q[6], 5);
	assert_int_equal(q[10], 5);
	assert_int_equal(q[20], 7);
	trace_free(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(json_strings),
	    cmocka_unit_test(json_integers),
	    cmocka_unit_test(json_values),
	    cmocka_unit_test(safetensors_round_trip),
	    cmocka_unit_test(trace_dates),
	    cmocka_unit_test(replay_is_a_server),
	    cmocka_unit_test(pages_are_shared_by_prefix),
	    cmocka_unit_test(workloads_follow_their_quantiles),
	    cmocka_unit_test(quantiles_weigh_by_steps),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
