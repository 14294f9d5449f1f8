/* SPDX-License-Identifier: MIT
 *
 * Stages 3 and 4: every case of the table on every CPU backend and variant that this machine has, against one oracle.
 * The oracle is the ref backend on one thread, where no request is split; a second, naive reading of the header checks
 * it on the smaller cases.
 *
 *     test_decode [PATTERN]     a shell pattern of test names, e.g. '*h_q=7*' or 'amx x[13] *' */
#include "harness.h"

#include "close.h"
#include "subjects.h"

#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAIVE_WORK = 3000000 };

/* Who computes; number 0 is the naive reading below. */
static struct subject subjects[1 + MAX_SUBJECTS] = {{.name = "naive"}};

/* ---- the naive reading of the header ---------------------------------------------------------------------------- */

static const void *data_of(const struct data *d, enum data_name name)
{
	return d->tensors[name].host + d->tensors[name].t.byte_offset;
}

static void naive_row(const struct data *d, int64_t i, int64_t s, int64_t s_q, int64_t token, int64_t h,
                      struct result *r)
{
	const struct test_case *c = &d->c;
	const struct data_tensor *q = &d->tensors[DATA_Q], *kv = &d->tensors[DATA_KV], *table = &d->tensors[DATA_TABLE];
	const int64_t *qs = q->strides, *ks = kv->strides;
	const int64_t q_at = (c->ragged ? token * qs[0] + h * qs[1] : i * qs[0] + s * qs[1] + h * qs[2]);
	const int64_t L = ((const int32_t *)data_of(d, DATA_LENS))[i];
	const float scale = (float)d->args.softmax_scale;
	double *score = malloc((size_t)(L + 1) * sizeof(*score)), max = -INFINITY, sum = 0, out[512] = {0};
	for (int pass = 0; pass < 2; pass++) {
		for (int64_t t = 0; t < L; t++) {
			if ((c->causal && t > L - s_q + s) || (c->window > 0 && t <= L - s_q + s - c->window))
				continue;
			const int64_t page = ((const int32_t *)data_of(d, DATA_TABLE))[i * table->strides[0] + t / c->page];
			const int64_t at = page * ks[0] + t % c->page * ks[1] + h / (c->h_q / c->h_kv) * ks[2];
			if (pass == 0) {
				score[t] = 0;
				for (int64_t v = 0; v < c->dqk; v++)
					score[t] += (double)value_get(q->t.dtype, data_of(d, DATA_Q), q_at + v) *
					            value_get(kv->t.dtype, data_of(d, DATA_KV), at + v);
				score[t] *= scale;
				max = fmax(max, score[t]);
			} else {
				sum += exp(score[t] - max);
				for (int64_t v = 0; v < 512; v++)
					out[v] += exp(score[t] - max) * value_get(kv->t.dtype, data_of(d, DATA_KV), at + v);
			}
		}
	}
	free(score);
	const int64_t row = token * c->h_q + h;
	const double lse = max + log(sum);
	r->lse[row] = sum > 0 ? (float)lse : c->neg_inf ? -INFINITY : INFINITY;
	const double sunk = c->sink && sum > 0 ? 1 / (1 + exp(((const float *)data_of(d, DATA_SINK))[h] - lse)) : 1;
	for (int64_t v = 0; v < 512; v++)
		r->out[row * 512 + v] = sum > 0 ? (float)(out[v] / sum * sunk) : 0;
}

static void naive_decode(const struct data *d, struct result *r)
{
	const struct test_case *c = &d->c;
	const int32_t *cu = c->ragged ? data_of(d, DATA_CU) : NULL;
	*r = (struct result){.tokens = d->total_q, .h_q = c->h_q, .d_v = 512, .deviation = 0.1 * (double)c->peak};
	r->out = calloc((size_t)(r->tokens * r->h_q * 512 + 1), sizeof(float));
	r->lse = calloc((size_t)(r->tokens * r->h_q + 1), sizeof(float));
	for (int64_t i = 0; i < c->b; i++) {
		const int64_t first = cu ? cu[i] : i * c->s_q, s_q = cu ? cu[i + 1] - cu[i] : c->s_q;
		for (int64_t s = 0; s < s_q; s++)
			for (int64_t h = 0; h < c->h_q; h++)
				naive_row(d, i, s, s_q, first + s, h, r);
	}
}

/* ---- one test: one case on one subject -------------------------------------------------------------------------- */

/* The case at hand with the oracle's answer; tests of one case follow each other, so it is made once. */
static struct {
	const char *line;
	struct data data;
	struct result want;
} current;

static void drop_current(void)
{
	if (!current.line)
		return;
	data_free(&current.data);
	result_free(&current.want);
	current.line = NULL;
}

static void set_current(const char *line)
{
	if (current.line == line)
		return;
	drop_current();
	struct test_case c;
	char why[128];
	if (!case_parse(line, &c, why, sizeof(why)))
		fail_msg("case '%s': %s", line, why);
	data_make(&current.data, &c);
	current.line = line;
	fmla_ctx *ctx = subject_context(&(struct subject){.name = "oracle", .backend = "ref", .threads = 1});
	assert_non_null(ctx);
	bool ok;
	assert_ok(ctx, data_decode(&current.data, ctx, &current.want, &ok));
	assert_true(ok);
	fmla_ctx_destroy(ctx);
}

struct job {
	const char *line;
	const struct subject *subject;
};

static void test_case_on_subject(void **state)
{
	const struct job *job = *state;
	set_current(job->line);
	const struct test_case *c = &current.data.c;
	struct result got;
	bool ok = true;
	if (!job->subject->backend) {
		if (c->b * c->s_q * c->h_q * c->s_k > NAIVE_WORK)
			skip();
		naive_decode(&current.data, &got);
		for (int64_t i = 0; i < got.tokens * got.h_q * got.d_v; i++) { /* the oracle's output is rounded to 16 bits */
			uint16_t rounded;
			value_set(current.data.tensors[DATA_OUT].t.dtype, &rounded, 0, got.out[i]);
			got.out[i] = value_get(current.data.tensors[DATA_OUT].t.dtype, &rounded, 0);
		}
	} else {
		fmla_ctx *ctx = subject_context(job->subject);
		assert_non_null(ctx);
		assert_ok(ctx, data_decode(&current.data, ctx, &got, &ok));
		fmla_ctx_destroy(ctx);
	}
	char why[256];
	const bool close = close_results(&got, &current.want, why, sizeof(why));
	result_free(&got);
	assert_true(ok); /* gaps between output elements are untouched */
	if (!close)
		fail_msg("case '%s' on %s: %s", job->line, job->subject->name, why);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
	char missing[64];
	const int num_subjects = 1 + subjects_here(subjects + 1, missing, sizeof(missing));
	if (missing[0])
		fprintf(stderr, "SKIP: this machine or build has no CPU variant %s\n", missing);

	const size_t most = case_quick_count * (size_t)num_subjects;
	struct CMUnitTest *tests = calloc(most, sizeof(*tests));
	struct job *jobs = calloc(most, sizeof(*jobs));
	char(*names)[CASE_LINE] = calloc(most, sizeof(*names));
	if (!tests || !jobs || !names)
		return 2;
	size_t n = 0;
	for (size_t i = 0; i < most; i++) {
		jobs[n] = (struct job){case_table[i / (size_t)num_subjects], &subjects[i % (size_t)num_subjects]};
		snprintf(names[n], sizeof(names[n]), "%s | %s", jobs[n].subject->name, jobs[n].line);
		tests[n] = (struct CMUnitTest){.name = names[n], .test_func = test_case_on_subject, .initial_state = &jobs[n]};
		n += argc < 2 || fnmatch(argv[1], names[n], 0) == 0;
	}
	if (n == 0) {
		fprintf(stderr, "no test matches %s\n", argv[1]);
		return 1;
	}
	const int failed = _cmocka_run_group_tests("decode", tests, n, NULL, NULL);
	drop_current();
	free(tests);
	free(jobs);
	free(names);
	return failed != 0;
}
