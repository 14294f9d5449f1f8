/* SPDX-License-Identifier: MIT
 *
 * bench.c - `flashmla bench`: time of one attention layer, against the limits of this machine.
 *
 * Method.  A pass decodes all layers of a step, each from its own KV cache (1 GiB together by default, so that memory
 * and not a cache is measured; --layers 1 keeps one small cache warm), with one plan that is made outside of the
 * window.  One pass warms up, then passes are timed for --seconds, at least three; the median counts, divided by the
 * layers.  bytes: every distinct cached token once, q, out and lse.  flop: both products on visible keys.
 *
 * A shared machine changes by the second.  So each pass has a probe of the machine's limits next to it (roof.h) and
 * counts as its share of that.  A pass whose probe found less than 80 % of the best arithmetic of this run is dropped,
 * whatever its own time was: a busy hyper-thread halves the probe, the clock alone moves it by 20 %.  A row whose
 * passes were all disturbed, or during which other processes took more than 5 % of a core, is marked. */
#include "batch.h"
#include "cli.h"
#include "device.h"
#include "json.h"
#include "roof.h"
#include "step.h"
#include "svg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
	struct where where;
	struct batch_options batch;
	const char *svg;
	int64_t layers;
	double seconds;
	bool json, verify;
};

/* One line of the result. */
struct row {
	char name[64];
	struct layer_shape shape;
	bool varlen;
	int64_t b, s_k, kv_tokens, kv_distinct, layers, passes,
	    calm; /* calm: passes whose probe found an undisturbed machine */
	double us, us_min, plan_us, bytes, flop;
	double share;     /* of the limit, 0..1; 0: no limit is known */
	double others;    /* cores that other processes kept busy     */
	struct roof roof; /* medians of the probes                    */
	int64_t wrong;    /* requests that differ from the reference; -1: not compared */
	double worst;     /* largest absolute error of out */
};

struct bench {
	struct options o;
	fmla_ctx *ctx;
	struct fmla_backend_info info;
	double best_tflops; /* of all probes so far: what this machine does when nobody disturbs it */
	struct row *rows;
	int count, capacity;
};

/* What is timed when the options name nothing: the shapes that the project's goals name. */
static const struct bench_case {
	int device;
	int64_t b, s_q, h_q, s_k, layers;
	bool varlen;
	struct fmla_dtype dtype;
} default_cases[] = {
    {FMLA_DEVICE_CPU, 64, 1, 16, 16384, 1, false, FMLA_BF16},
    {FMLA_DEVICE_CPU, 64, 1, 64, 16384, 1, false, FMLA_BF16},
    {FMLA_DEVICE_CPU, 64, 1, 128, 16384, 1, false, FMLA_BF16},
    {FMLA_DEVICE_CPU, 1, 1, 128, 16384, 1, false, FMLA_BF16},
    {FMLA_DEVICE_CPU, 64, 1, 16, 16384, 1, false, FMLA_FP16},
    {FMLA_DEVICE_CPU, 1, 1, 128, 16384, 1, false, FMLA_FP16},
    {FMLA_DEVICE_CUDA, 128, 1, 128, 4096, 0, true, FMLA_BF16},
    {FMLA_DEVICE_CUDA, 128, 1, 128, 8192, 0, true, FMLA_BF16},
    {FMLA_DEVICE_CUDA, 128, 2, 128, 4096, 0, true, FMLA_BF16},
    {FMLA_DEVICE_CUDA, 128, 1, 64, 8192, 0, true, FMLA_BF16},
    {FMLA_DEVICE_CUDA, 128, 1, 16, 8192, 0, true, FMLA_BF16},
    {FMLA_DEVICE_CUDA, 1, 1, 128, 8192, 0, false, FMLA_BF16},
    {FMLA_DEVICE_OPENCL, 8, 1, 16, 1024, 1, false, FMLA_BF16},
    {FMLA_DEVICE_OPENCL, 8, 1, 128, 1024, 1, false, FMLA_BF16},
    {FMLA_DEVICE_OPENCL, 8, 1, 16, 1024, 1, false, FMLA_FP16},
};
enum { NUM_DEFAULT_CASES = sizeof(default_cases) / sizeof(*default_cases) };

/* ---- timing ---------------------------------------------------------------------------------------------------- */

struct sample {
	double us, share;
	struct roof roof;
};

/* One pass over all layers; microseconds per layer, NAN after a failure or Ctrl-C. */
static double time_pass(struct step *s, int *code)
{
	const double start = now_seconds();
	for (int64_t l = 0; l < s->layers; l++) {
		if (interrupted)
			return NAN;
		const fmla_status status = step_decode(s, l);
		if (status != FMLA_OK) {
			*code = fail_status(s->ctx, status, "decode");
			return NAN;
		}
	}
	if (!device_sync(s->device)) {
		*code = fail(EXIT_SYSTEM, "decode: %s", device_error(s->device));
		return NAN;
	}
	return (now_seconds() - start) * 1e6 / (double)s->layers;
}

/* Plans, warms up, and collects samples [most]. */
static int time_passes(struct bench *b, struct step *s, struct row *row, struct sample *samples, int64_t most)
{
	enum { LEAST = 3 };
	double start = now_seconds();
	int code = EXIT_OK;
	const fmla_status status = step_plan(s);
	if (status != FMLA_OK)
		return fail_status(s->ctx, status, "plan");
	if (!device_sync(s->device))
		return fail(EXIT_SYSTEM, "plan: %s", device_error(s->device));
	row->plan_us = (now_seconds() - start) * 1e6;

	progress(row->name, 0, 1);
	time_pass(s, &code);
	const double others = others_cpu_seconds();
	start = now_seconds();
	while (code == EXIT_OK && !interrupted && row->passes < most &&
	       (row->passes < LEAST || now_seconds() - start < b->o.seconds)) {
		struct sample *sample = &samples[row->passes];
		sample->roof = roof_probe(&b->info, s->kv, (size_t)s->layers * s->layer_bytes);
		sample->us = time_pass(s, &code);
		sample->share = roof_us(sample->roof, row->bytes, row->flop) / sample->us;
		row->passes += !isnan(sample->us);
		b->best_tflops = fmax(b->best_tflops, sample->roof.tflops);
		progress(row->name, (int64_t)((now_seconds() - start) * 1e3), (int64_t)(b->o.seconds * 1e3) + 1);
	}
	if (s->device == FMLA_DEVICE_CPU)
		row->others = fmax(0, others_cpu_seconds() - others) / (now_seconds() - start);
	return code;
}

static int by_value(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

/* The median of one field of the samples; scratch [count]. */
static double median(const struct sample *samples, int64_t count, size_t field, double *scratch)
{
	for (int64_t i = 0; i < count; i++)
		memcpy(&scratch[i], (const char *)&samples[i] + field, sizeof(*scratch));
	qsort(scratch, (size_t)count, sizeof(*scratch), by_value);
	return scratch[count / 2];
}

/* Moves the undisturbed samples to the front; how many there are. */
static int64_t keep_calm(struct sample *samples, int64_t count, double best_tflops)
{
	int64_t calm = 0;
	for (int64_t i = 0; i < count; i++)
		if (samples[i].roof.tflops >= 0.8 * best_tflops) {
			const struct sample swap = samples[calm];
			samples[calm++] = samples[i];
			samples[i] = swap;
		}
	return calm;
}

static int time_step(struct bench *b, struct step *s, struct row *row)
{
	enum { MOST = 1 << 15 };
	struct sample *samples = malloc(MOST * sizeof(*samples));
	double *scratch = malloc(MOST * sizeof(*scratch));
	const int code = samples && scratch ? time_passes(b, s, row, samples, MOST) : fail(EXIT_SYSTEM, "out of memory");
	if (row->passes > 0) {
		row->calm = keep_calm(samples, row->passes, b->best_tflops);
		const int64_t counted = row->calm ? row->calm : row->passes;
		row->us = median(samples, counted, offsetof(struct sample, us), scratch);
		row->us_min = scratch[0];
		row->share = median(samples, counted, offsetof(struct sample, share), scratch);
		row->roof.gbs = median(samples, counted, offsetof(struct sample, roof.gbs), scratch);
		row->roof.tflops = median(samples, counted, offsetof(struct sample, roof.tflops), scratch);
	}
	free(samples);
	free(scratch);
	return code;
}

/* ---- output ---------------------------------------------------------------------------------------------------- */

static void print_row_json(const struct bench *b, const struct row *r)
{
	const struct {
		const char *key;
		int64_t value;
	} counts[] = {
	    {"b", r->b},
	    {"s_q", r->shape.s_q},
	    {"h_q", r->shape.h_q},
	    {"h_kv", r->shape.h_kv},
	    {"s_k", r->s_k},
	    {"varlen", r->varlen},
	    {"page", r->shape.page},
	    {"kv_tokens", r->kv_tokens},
	    {"kv_distinct", r->kv_distinct},
	    {"layers", r->layers},
	    {"passes", r->passes},
	};
	printf("{\"backend\": \"%s\", \"variant\": \"%s\", \"case\": ", b->info.name, b->info.variant);
	json_put_string(stdout, r->name);
	for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
		printf(", \"%s\": %lld", counts[i].key, (long long)counts[i].value);
	printf(", \"dtype\": \"%s\", \"us\": %.2f, \"us_min\": %.2f, \"plan_us\": %.2f, \"gbs\": %.2f, \"tflops\": %.4f",
	       dtype_name(r->shape.dtype), r->us, r->us_min, r->plan_us, r->bytes / r->us / 1e3, r->flop / r->us / 1e6);
	printf(", \"roof_pct\": ");
	if (r->share > 0)
		printf("%.1f, \"roof_gbs\": %.2f, \"roof_tflops\": %.4f, \"undisturbed\": %lld, \"other_cores\": %.2f",
		       100 * r->share, r->roof.gbs, r->roof.tflops, (long long)r->calm, r->others);
	else
		printf("null");
	if (r->wrong >= 0)
		printf(", \"wrong\": %lld, \"max_error\": %.3g", (long long)r->wrong, r->worst);
	printf("}\n");
	fflush(stdout);
}

static void print_head(const struct bench *b)
{
	printf("flashmla %s, backend %s (%s), %s, %d workers\n", fmla_version_string(), b->info.name, b->info.variant,
	       b->info.device_name, b->info.num_workers);
	printf("\n%-16s %5s %4s %4s %5s %8s %9s %8s %8s %6s", "requests", "b", "s_q", "h_q", "type", "tokens", "us/layer",
	       "GB/s", "TFLOP/s", "limit");
	printf(b->o.verify ? "  %s\n" : "\n", "largest error");
}

static bool is_disturbed(const struct row *r)
{
	return r->share > 0 && (r->calm == 0 || r->others > 0.05);
}

static void print_row(const struct row *r)
{
	char tokens[16], limit[16] = "-";
	if (r->share > 0)
		snprintf(limit, sizeof(limit), "%.0f %%%s", 100 * r->share, is_disturbed(r) ? "*" : "");
	printf("%-16s %5lld %4lld %4lld %5s %8s %9.1f %8.1f %8.3f %6s", r->name, (long long)r->b, (long long)r->shape.s_q,
	       (long long)r->shape.h_q, dtype_name(r->shape.dtype), human_count((double)r->kv_tokens, tokens), r->us,
	       r->bytes / r->us / 1e3, r->flop / r->us / 1e6, limit);
	if (r->wrong > 0)
		printf("  %.1e, %lld of %lld requests WRONG", r->worst, (long long)r->wrong, (long long)r->b);
	else if (r->wrong == 0)
		printf("  %.1e, all %lld right", r->worst, (long long)r->b);
	putchar('\n');
	fflush(stdout);
}

/* The limits to draw and to name: those of the row with the largest caches, so that memory is meant and no cache. */
static struct roof shown_roof(const struct bench *b)
{
	struct roof roof = {0, 0};
	double largest = -1;
	for (int i = 0; i < b->count; i++) {
		const double kv = (double)b->rows[i].kv_tokens * (double)b->rows[i].layers;
		if (kv > largest) {
			roof = b->rows[i].roof;
			largest = kv;
		}
	}
	return roof;
}

static void print_trace_summary(const struct bench *b, const struct batches *all)
{
	double us = 0, floor = 0, bytes = 0, flop = 0;
	for (int i = 0; i < b->count; i++) {
		us += b->rows[i].us;
		floor += b->rows[i].us * b->rows[i].share;
		bytes += b->rows[i].bytes;
		flop += b->rows[i].flop;
	}
	printf("\n%d of %lld steps of the trace (%.1f requests in an average step): %.1f us per layer and step, %.1f GB/s, "
	       "%.3f TFLOP/s",
	       b->count, (long long)all->replay_steps, all->mean_batch, us / b->count, bytes / us / 1e3, flop / us / 1e6);
	printf(floor > 0 ? ", %.0f %% of the limit\n" : "\n", 100 * floor / us);
}

static void print_tail(const struct bench *b, const struct batches *all)
{
	const struct roof roof = shown_roof(b);
	bool disturbed = false;
	for (int i = 0; i < b->count; i++)
		disturbed = disturbed || is_disturbed(&b->rows[i]);
	if (b->o.batch.trace && b->count > 1)
		print_trace_summary(b, all);
	if (roof.gbs > 0)
		printf("\nthis machine, measured in the same run: %s %.4g GB/s, %s %.3g TFLOP/s\n", roof_read_name(&b->info),
		       roof.gbs, roof_compute_name(&b->info), roof.tflops);
	printf("\nb         requests decoded together, each with its own cached tokens\n"
	       "h_q       query heads: DeepSeek-V3 has 128; 16 when 8 workers share them\n"
	       "tokens    cached tokens that the batch attends to\n"
	       "us/layer  time of one attention layer for the whole batch, in microseconds (median)\n"
	       "GB/s      memory traffic: each cached token once, queries and results\n");
	if (roof.gbs > 0)
		printf("limit     share of what this machine can do: 100 %% would be a perfect use of its memory or of its\n"
		       "          arithmetic, whichever binds%s\n",
		       disturbed ? "; * other work kept the machine busy meanwhile" : "");
	if (b->o.verify)
		printf("largest error  of an output value; every request was compared with the double-precision reference\n");
}

static int draw(const struct bench *b)
{
	char subtitle[256];
	const struct roof roof = shown_roof(b);
	struct roof_point *points = calloc((size_t)b->count + 1, sizeof(*points));
	if (!points)
		return fail(EXIT_SYSTEM, "out of memory");
	for (int i = 0; i < b->count; i++) {
		const struct row *r = &b->rows[i];
		points[i] = (struct roof_point){.intensity = r->flop / r->bytes,
		                                .tflops = r->flop / r->us / 1e6,
		                                .roof_pct = r->share > 0 ? 100 * r->share : -1};
		char queries[16] = "";
		if (r->shape.s_q > 1)
			snprintf(queries, sizeof(queries), ", s_q %d", (int)r->shape.s_q);
		snprintf(points[i].label, sizeof(points[i].label), "%.20s, b %lld, h_q %lld%s, %s", r->name, (long long)r->b,
		         (long long)r->shape.h_q, queries, dtype_name(r->shape.dtype));
	}
	snprintf(subtitle, sizeof(subtitle),
	         "flashmla %s, backend %s (%s) on %s, %d workers; a point is one attention layer", fmla_version_string(),
	         b->info.name, b->info.variant, b->info.device_name, b->info.num_workers);
	const struct roof_chart chart = {.title = "MLA decode against the limits of this machine",
	                                 .subtitle = subtitle,
	                                 .gbs = roof.gbs,
	                                 .tflops = roof.tflops,
	                                 .gbs_name = roof_read_name(&b->info),
	                                 .tflops_name = roof_compute_name(&b->info),
	                                 .points = points,
	                                 .count = b->count};
	const bool ok = svg_roofline(b->o.svg, &chart);
	free(points);
	if (!ok)
		return fail(EXIT_SYSTEM, "%s cannot be written", b->o.svg);
	if (!b->o.json)
		printf("\npicture: %s\n", b->o.svg);
	return EXIT_OK;
}

/* ---- cases ----------------------------------------------------------------------------------------------------- */

static struct row *add_row(struct bench *b)
{
	if (b->count == b->capacity) {
		const int capacity = b->capacity ? 2 * b->capacity : 64;
		struct row *rows = realloc(b->rows, (size_t)capacity * sizeof(*rows));
		if (!rows)
			return NULL;
		b->rows = rows;
		b->capacity = capacity;
	}
	b->rows[b->count] = (struct row){.wrong = -1};
	return &b->rows[b->count];
}

static int bench_batch(struct bench *b, const struct layer_shape *shape, const struct batch *batch, int64_t layers)
{
	struct step step;
	struct row *row = add_row(b);
	if (!row)
		return fail(EXIT_SYSTEM, "out of memory");
	int code = step_create(&step, b->ctx, b->info.device_type, shape, batch, layers, b->o.batch.seed, true);
	if (code == EXIT_OK && !interrupted) {
		const struct step_cost cost = step_cost(shape, batch);
		snprintf(row->name, sizeof(row->name), "%s", batch->name);
		row->shape = *shape;
		row->varlen = batch->varlen;
		row->b = batch->b;
		row->s_k = batch->s_k;
		row->kv_tokens = batch->pages.kv_tokens;
		row->kv_distinct = batch->pages.distinct_tokens;
		row->layers = step.layers;
		row->bytes = cost.bytes;
		row->flop = cost.flop;
		code = time_step(b, &step, row);
	}
	if (code == EXIT_OK && !interrupted && b->o.verify)
		code = step_verify(&step, &row->wrong, &row->worst);
	step_destroy(&step);
	progress_clear();
	if (code == EXIT_OK && !interrupted) {
		b->count++;
		if (b->o.json)
			print_row_json(b, row);
		else
			print_row(row);
		if (row->wrong > 0)
			code = EXIT_FAILED;
	}
	return code;
}

/* All batches of the options, each with every head count. */
static int bench_batches(struct bench *b, struct batches *all, int64_t layers)
{
	int worst = EXIT_OK;
	while (all->next < all->count && !interrupted) {
		struct batch batch;
		int code = batches_next(all, &batch);
		for (int i = 0; i < b->o.batch.num_heads && code <= EXIT_FAILED && !interrupted; i++) {
			struct layer_shape shape = b->o.batch.shape;
			shape.h_q = b->o.batch.heads[i];
			code = bench_batch(b, &shape, &batch, layers);
			worst = code > worst ? code : worst;
		}
		batch_free(&batch);
		if (code > EXIT_FAILED)
			return code;
	}
	return worst;
}

static int bench_default_cases(struct bench *b)
{
	int worst = EXIT_OK;
	for (int i = 0; i < NUM_DEFAULT_CASES && worst <= EXIT_FAILED && !interrupted; i++) {
		const struct bench_case *c = &default_cases[i];
		struct batches all;
		if (c->device != b->info.device_type)
			continue;
		struct batch_options *o = &b->o.batch;
		o->b = c->b;
		o->s_k = c->s_k;
		o->varlen = c->varlen;
		o->heads[0] = c->h_q;
		o->num_heads = 1;
		o->shape.s_q = c->s_q;
		o->shape.dtype = c->dtype;
		int code = batches_open(&all, o);
		if (code == EXIT_OK)
			code = bench_batches(b, &all, b->o.layers ? b->o.layers : c->layers);
		batches_close(&all);
		worst = code > worst ? code : worst;
	}
	return worst;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &o->where;
		state->child_inputs[1] = &o->batch;
		return 0;
	case 'l':
		o->layers = parse_integer(state, "--layers", arg, 0, 4096);
		return 0;
	case 's':
		o->seconds = parse_real(state, "--seconds", arg, 0, 3600);
		return 0;
	case 'v':
		o->verify = true;
		return 0;
	case 'g':
		o->svg = arg;
		return 0;
	case 'j':
		o->json = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "'%s' is one argument too many", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_bench(int argc, char **argv)
{
	static const struct argp_option argp_options[] = {
	    {NULL, 0, NULL, 0, "Measuring:", 4},
	    {"layers", 'l', "N", 0, "KV caches to walk through in turn; default: as many as make 1 GiB", 4},
	    {"seconds", 's', "X", 0, "time each case for X seconds; default 1", 4},
	    {"verify", 'v', NULL, 0, "compare every request with the reference", 4},
	    {"svg", 'g', "FILE", 0, "draw the roofline", 4},
	    {"json", 'j', NULL, 0, "one JSON object a line", 4},
	    {0}};
	static const struct argp_child children[] = {{&where_argp, 0, "Where:", 1}, {&batch_argp, 0, NULL, 0}, {0}};
	static const struct argp argp = {
	    .options = argp_options,
	    .parser = parse,
	    .children = children,
	    .doc = "Measures one attention layer for a batch of requests against the limits of this machine.  Without a "
	           "shape, a workload or a trace it times the shapes that the project's goals name."};
	struct bench b = {.o = {.batch = batch_defaults, .seconds = 1}};
	struct batch_options *o = &b.o.batch;
	argp_parse(&argp, argc, argv, 0, NULL, &b.o);

	int code;
	struct batches all = {0};
	b.ctx = open_backend(b.o.where, &b.info, &code);
	if (!b.ctx)
		return code;
	const bool given = o->workload || o->trace || o->b || o->s_k || o->varlen || o->num_heads;
	if (!o->num_heads) {
		o->heads[0] = 128;
		o->num_heads = 1;
	}
	code = given ? batches_open(&all, o) : EXIT_OK;
	if (code == EXIT_OK && !can_write(b.o.svg))
		code = fail(EXIT_SYSTEM, "%s cannot be written", b.o.svg);
	if (code == EXIT_OK && !interrupted) {
		if (!b.o.json)
			print_head(&b);
		code = given ? bench_batches(&b, &all, b.o.layers) : bench_default_cases(&b);
	}
	if (b.count > 0 && !b.o.json)
		print_tail(&b, &all);
	if (b.count > 0 && b.o.svg) {
		const int drawn = draw(&b);
		code = drawn > code ? drawn : code;
	}
	free(b.rows);
	batches_close(&all);
	fmla_ctx_destroy(b.ctx);
	return code;
}
