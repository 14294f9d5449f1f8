/* SPDX-License-Identifier: MIT
 *
 * check.c - `flashmla check`: a backend against the reference, case by case.
 *
 * Every case runs twice, without a plan and with one from fmla_plan, and both results are compared with the
 * reference.  The cases, their hostile data and the tolerances are those of the tests (tests/cases.h, data.h, close.h);
 * this needs no test framework, so it runs on a bare GPU machine and at users'. */
#include "cli.h"
#include "device.h"

#include "../tests/cases.h"
#include "../tests/close.h"
#include "../tests/data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GIVEN = 64 };

struct options {
	struct where where;
	const char *given[MAX_GIVEN]; /* --case */
	int num_given;
	int64_t random, seed;
	bool list, full, verbose;
};

struct check {
	struct options o;
	fmla_ctx *ctx, *ref;
	struct fmla_backend_info info;
	int64_t passed, failed, skipped;
};

enum outcome { PASSED, FAILED, SKIPPED, BROKEN }; /* BROKEN: memory or device; further cases make no sense */

/* ---- one call on the device ------------------------------------------------------------------------------------ */

struct plan_memory {
	struct fmla_tensor parts, splits;
	int64_t parts_shape[2], splits_shape[1];
};

/* Makes a plan in device memory and hands it to the call. */
static fmla_status attach_plan(struct check *k, struct data *d, struct plan_memory *m)
{
	static const struct fmla_dtype int32 = FMLA_INT32;
	const int type = k->info.device_type;
	const fmla_status status = fmla_plan_parts(k->ctx, &d->args, &m->parts_shape[0]);
	d->args.stream = device_stream(type);
	if (status != FMLA_OK)
		return status;
	m->parts_shape[1] = 8;
	m->splits_shape[0] = d->c.b + 1;
	m->parts = (struct fmla_tensor){.device = device_of(type), .ndim = 2, .dtype = int32, .shape = m->parts_shape};
	m->splits = (struct fmla_tensor){.device = device_of(type), .ndim = 1, .dtype = int32, .shape = m->splits_shape};
	m->parts.data = device_alloc(type, (size_t)m->parts_shape[0] * 8 * sizeof(int32_t));
	m->splits.data = device_alloc(type, (size_t)m->splits_shape[0] * sizeof(int32_t));
	if (!m->parts.data || !m->splits.data)
		return FMLA_ERR_MEMORY;
	d->args.plan_parts = &m->parts;
	d->args.plan_splits = &m->splits;
	return fmla_plan(k->ctx, &d->args);
}

static void detach_plan(struct check *k, struct data *d, struct plan_memory *m)
{
	device_free(k->info.device_type, m->parts.data);
	device_free(k->info.device_type, m->splits.data);
	*m = (struct plan_memory){0};
	d->args.plan_parts = d->args.plan_splits = NULL;
}

/* The tensors of a case on the device: moved there with everything around them, and the outputs back. */
static bool move_to_device(struct check *k, struct data *d)
{
	for (int i = 0; i < DATA_TENSORS; i++) {
		struct data_tensor *t = &d->tensors[i];
		t->t.device = device_of(k->info.device_type);
		t->t.data = NULL;
		if (t->bytes == 0)
			continue;
		t->t.data = device_alloc(k->info.device_type, t->bytes);
		if (!t->t.data || !device_upload(k->info.device_type, t->t.data, 0, t->host, t->bytes))
			return false;
	}
	return true;
}

static void free_device(struct check *k, struct data *d)
{
	for (int i = 0; i < DATA_TENSORS; i++) {
		struct data_tensor *t = &d->tensors[i];
		if (t->bytes && t->t.data != t->host)
			device_free(k->info.device_type, t->t.data);
		t->t.data = t->host;
		t->t.device = device_of(FMLA_DEVICE_CPU);
	}
}

static bool move_outputs_back(struct check *k, struct data *d)
{
	bool ok = device_sync(k->info.device_type);
	for (int i = DATA_OUT; i <= DATA_LSE; i++) {
		struct data_tensor *t = &d->tensors[i];
		ok = ok && (t->bytes == 0 || device_download(k->info.device_type, t->host, t->t.data, t->bytes));
	}
	return ok;
}

/* Decodes on a device other than the CPU; what data_decode does in host memory. */
static fmla_status decode_on_device(struct check *k, struct data *d, struct result *r, bool *ok)
{
	const int type = k->info.device_type;
	struct fmla_decode_args *a = &d->args;
	data_poison_outputs(d);
	for (int i = DATA_OUT; i <= DATA_LSE; i++)
		if (d->tensors[i].bytes &&
		    !device_upload(type, d->tensors[i].t.data, 0, d->tensors[i].host, d->tensors[i].bytes))
			return FMLA_ERR_DEVICE;
	fmla_status status = fmla_workspace_size(k->ctx, a, &a->workspace_size);
	if (status != FMLA_OK)
		return status;
	a->stream = device_stream(type);
	a->workspace = device_alloc(type, a->workspace_size);
	status = a->workspace ? fmla_decode(k->ctx, a) : FMLA_ERR_MEMORY;
	if (status == FMLA_OK && !move_outputs_back(k, d))
		status = FMLA_ERR_DEVICE;
	device_free(type, a->workspace);
	a->workspace = NULL;
	if (status == FMLA_OK)
		*ok = data_result(d, r);
	return status;
}

/* ---- one case -------------------------------------------------------------------------------------------------- */

static enum outcome compare(struct check *k, struct data *d, const struct result *want, char *why, size_t why_size)
{
	struct result got = {0};
	bool gaps_kept = true;
	const bool on_host = k->info.device_type == FMLA_DEVICE_CPU;
	const fmla_status status =
	    on_host ? data_decode(d, k->ctx, &got, &gaps_kept) : decode_on_device(k, d, &got, &gaps_kept);
	enum outcome outcome = PASSED;
	if (status != FMLA_OK) {
		const char *said = fmla_last_error(k->ctx);
		snprintf(why, why_size, "%s: %s", fmla_status_string(status), *said ? said : device_error(k->info.device_type));
		outcome = status == FMLA_ERR_UNSUPPORTED                           ? SKIPPED
		          : status == FMLA_ERR_DEVICE || status == FMLA_ERR_MEMORY ? BROKEN
		                                                                   : FAILED;
	} else if (!gaps_kept) {
		snprintf(why, why_size, "memory between the elements of an output was written");
		outcome = FAILED;
	} else if (!close_results(&got, want, why, why_size)) {
		outcome = FAILED;
	}
	result_free(&got);
	return outcome;
}

static enum outcome run_case(struct check *k, const struct test_case *c, char *why, size_t why_size)
{
	struct data d;
	struct result want = {0};
	struct plan_memory plan = {0};
	bool ok = true;
	data_make(&d, c);
	enum outcome outcome = FAILED;
	fmla_status status = data_decode(&d, k->ref, &want, &ok);
	if (status != FMLA_OK)
		snprintf(why, why_size, "the reference refuses it: %s", fmla_last_error(k->ref));
	else if (k->info.device_type != FMLA_DEVICE_CPU && !move_to_device(k, &d))
		snprintf(why, why_size, "%s", device_error(k->info.device_type)), outcome = BROKEN;
	else
		outcome = compare(k, &d, &want, why, why_size);
	if (outcome == PASSED) {
		status = attach_plan(k, &d, &plan);
		if (status == FMLA_OK)
			outcome = compare(k, &d, &want, why, why_size);
		else {
			snprintf(why, why_size, "plan: %s: %s", fmla_status_string(status), fmla_last_error(k->ctx));
			outcome = FAILED;
		}
	}
	detach_plan(k, &d, &plan);
	free_device(k, &d);
	result_free(&want);
	data_free(&d);
	return outcome;
}

/* Runs a case and reports it; false: stop here. */
static bool report_case(struct check *k, const struct test_case *c, int64_t at, int64_t total)
{
	char line[CASE_LINE], why[512] = "";
	case_format(c, line);
	progress(line, at, total);
	const enum outcome outcome = run_case(k, c, why, sizeof(why));
	if (outcome == PASSED) {
		k->passed++;
		if (k->o.verbose)
			progress_clear(), printf("pass  %s\n", line);
		return true;
	}
	progress_clear();
	if (outcome == SKIPPED) {
		k->skipped++;
		printf("SKIP  %s\n      %s\n", line, why);
		return true;
	}
	k->failed++;
	printf("FAIL  %s\n      run again: flashmla check --backend %s --case '%s'\n", why, k->info.name, line);
	fflush(stdout);
	return outcome == FAILED;
}

/* ---- all cases ------------------------------------------------------------------------------------------------- */

static int run_all(struct check *k)
{
	const bool full = k->o.full || k->info.device_type == FMLA_DEVICE_CUDA;
	const int64_t table = k->o.num_given || k->o.random ? 0 : (int64_t)(full ? case_count : case_quick_count);
	const int64_t total = table + k->o.num_given + k->o.random;
	bool go_on = true;
	for (int64_t i = 0; i < total && go_on && !interrupted; i++) {
		struct test_case c;
		char why[128];
		if (i < table + k->o.num_given) {
			const char *line = i < table ? case_table[i] : k->o.given[i - table];
			if (!case_parse(line, &c, why, sizeof(why)))
				return fail(EXIT_USAGE, "--case '%s': %s", line, why);
		} else {
			c = case_random((uint64_t)(k->o.seed + i));
		}
		go_on = report_case(k, &c, i, total);
	}
	progress_clear();
	if (interrupted)
		return EXIT_INTERRUPTED;
	if (k->skipped)
		printf("%lld skipped: the backend does not take them\n", (long long)k->skipped);
	printf("backend %s (%s) against ref, on %s\n", k->info.name, k->info.variant, k->info.device_name);
	printf("%lld passed, %lld failed\n", (long long)k->passed, (long long)k->failed);
	if (!go_on)
		return EXIT_SYSTEM;
	return k->failed ? EXIT_FAILED : k->passed ? EXIT_OK : EXIT_UNAVAILABLE;
}

static void list_cases(void)
{
	for (size_t i = 0; i < case_count; i++) {
		struct test_case c;
		char line[CASE_LINE], why[128];
		if (case_parse(case_table[i], &c, why, sizeof(why))) {
			case_format(&c, line);
			printf("%s%s\n", line, i < case_quick_count ? "" : "   # --full");
		}
	}
}

enum { OPT_FULL = 256, OPT_RANDOM, OPT_SEED };

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &o->where;
		return 0;
	case 'c':
		if (o->num_given == MAX_GIVEN)
			argp_error(state, "--case is given more than %d times", MAX_GIVEN);
		o->given[o->num_given++] = arg;
		return 0;
	case 'l':
		o->list = true;
		return 0;
	case 'v':
		o->verbose = true;
		return 0;
	case OPT_FULL:
		o->full = true;
		return 0;
	case OPT_RANDOM:
		o->random = parse_integer(state, "--random", arg, 1, INT32_MAX);
		return 0;
	case OPT_SEED:
		o->seed = parse_integer(state, "--seed", arg, 0, INT32_MAX);
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "'%s' is one argument too many (a case goes behind --case, in quotes)", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_check(int argc, char **argv)
{
	static const struct argp_option argp_options[] = {
	    {"case", 'c', "STRING", 0, "only this case, e.g. 'b=3 s_q=2 h_q=128 s_k=4097'; may be repeated", 0},
	    {"list", 'l', NULL, 0, "list the cases", 0},
	    {"full", OPT_FULL, NULL, 0, "the large cases as well (always on a GPU)", 0},
	    {"random", OPT_RANDOM, "N", 0, "N random cases instead of the table", 0},
	    {"seed", OPT_SEED, "N", 0, "first of the random cases; default 0", 0},
	    {"verbose", 'v', NULL, 0, "name the cases that pass, too", 0},
	    {0}};
	static const struct argp_child children[] = {{&where_argp, 0, NULL, 0}, {0}};
	static const struct argp argp = {.options = argp_options,
	                                 .parser = parse,
	                                 .children = children,
	                                 .doc = "Compares a backend with the reference, case by case, with and without a "
	                                        "plan.  A failure prints the command that runs it again; the last line is "
	                                        "\"N passed, N failed\"."};
	struct check k = {0};
	argp_parse(&argp, argc, argv, 0, NULL, &k.o);
	if (k.o.list) {
		list_cases();
		return EXIT_OK;
	}
	int code;
	struct fmla_backend_info ref_info;
	k.ctx = open_backend(k.o.where, &k.info, &code);
	k.ref =
	    k.ctx ? open_backend((struct where){.backend = "ref", .threads = k.o.where.threads}, &ref_info, &code) : NULL;
	if (k.ref)
		code = run_all(&k);
	fmla_ctx_destroy(k.ref);
	fmla_ctx_destroy(k.ctx);
	return code;
}
