/* SPDX-License-Identifier: MIT
 *
 * plan.c - `flashmla plan`: which worker walks which blocks of which request. */
#include "batch.h"
#include "cli.h"
#include "device.h"
#include "step.h"
#include "svg.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
	struct where where;
	struct batch_options batch;
	const char *svg;
	int json;
};

/* A row of plan_parts as fmla_plan documents it. */
struct plan_row {
	int32_t begin_req, end_req, begin_block, end_block, begin_split, first_split, last_split, tag;
};

enum { BLOCK_TOKENS = 64 };

/* A plan, back on the host, as the pieces that its workers walk. */
struct plan_view {
	int64_t num_parts, count, longest, total;
	int32_t active; /* workers with work */
	struct plan_row *rows;
	int32_t *splits; /* [b + 1] */
	struct gantt_piece *pieces;
	int64_t *blocks; /* [num_parts] */
};

static void view_free(struct plan_view *v)
{
	free(v->rows);
	free(v->splits);
	free(v->pieces);
	free(v->blocks);
}

static void add_pieces(struct plan_view *v, int32_t part, const struct batch *batch)
{
	const struct plan_row *row = &v->rows[part];
	for (int32_t r = row->begin_req; r <= row->end_req && r < batch->b; r++) {
		const int64_t all = (batch->lengths[r] + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
		const int64_t begin = r == row->begin_req ? row->begin_block : 0,
		              end = r == row->end_req ? row->end_block : all;
		v->pieces[v->count++] = (struct gantt_piece){.part = part,
		                                             .request = r,
		                                             .begin = v->blocks[part],
		                                             .blocks = end - begin,
		                                             .split = r == row->begin_req ? row->begin_split : 0,
		                                             .splits = v->splits[r + 1] - v->splits[r]};
		v->blocks[part] += end - begin;
	}
	v->active += row->begin_req <= row->end_req && row->begin_req < batch->b;
	v->total += v->blocks[part];
	if (v->blocks[part] > v->longest)
		v->longest = v->blocks[part];
}

static int view_create(struct plan_view *v, const struct step *s)
{
	const int64_t b = s->batch->b, parts = s->num_parts;
	const size_t rows_bytes = (size_t)parts * sizeof(*v->rows), splits_bytes = (size_t)(b + 1) * sizeof(*v->splits);
	*v = (struct plan_view){.num_parts = parts, .rows = malloc(rows_bytes), .splits = malloc(splits_bytes)};
	v->pieces = calloc((size_t)(b + parts), sizeof(*v->pieces)); /* each border adds at most one piece */
	v->blocks = calloc((size_t)parts, sizeof(*v->blocks));
	if (!v->rows || !v->splits || !v->pieces || !v->blocks)
		return fail(EXIT_SYSTEM, "out of memory");
	if (!device_sync(s->device) || !device_download(s->device, v->rows, s->plan_parts.dl.data, rows_bytes) ||
	    !device_download(s->device, v->splits, s->plan_splits.dl.data, splits_bytes))
		return fail(EXIT_SYSTEM, "the plan: %s", device_error(s->device));
	for (int32_t p = 0; p < parts; p++)
		add_pieces(v, p, s->batch);
	return EXIT_OK;
}

/* ---- output ---------------------------------------------------------------------------------------------------- */

static void print_json(const struct plan_view *v)
{
	for (int64_t i = 0; i < v->count; i++) {
		const struct gantt_piece *p = &v->pieces[i];
		printf("{\"worker\": %d, \"request\": %d, \"begin\": %lld, \"blocks\": %lld, \"split\": %d, \"splits\": %d}\n",
		       p->part, p->request, (long long)p->begin, (long long)p->blocks, p->split, p->splits);
	}
}

static void print_table(const struct plan_view *v, const struct batch *batch)
{
	int64_t split_requests = 0;
	printf("worker  blocks  requests (piece/pieces where a request is shared)\n");
	for (int64_t i = 0, p = 0; p < v->num_parts; p++) {
		enum { SHOWN = 9 };
		int shown = 0;
		int64_t hidden = 0;
		printf("%6lld %7lld ", (long long)p, (long long)v->blocks[p]);
		for (; i < v->count && v->pieces[i].part == p; i++) {
			const struct gantt_piece *piece = &v->pieces[i];
			const bool last = i + 1 == v->count || v->pieces[i + 1].part != p;
			if (shown++ >= SHOWN && !last) {
				hidden++;
				continue;
			}
			if (hidden)
				printf(" ... %lld more ...", (long long)hidden);
			hidden = 0;
			printf(piece->splits > 1 ? " %d(%d/%d)" : " %d", piece->request, piece->split + 1, piece->splits);
		}
		printf("%s\n", shown ? "" : " idle");
	}
	for (int64_t r = 0; r < batch->b; r++)
		split_requests += v->splits[r + 1] - v->splits[r] > 1;
	const double mean = (double)v->total / (double)v->num_parts;
	printf(
	    "\n%lld blocks of %d tokens on %d of %lld workers; the longest has %lld, the average %.1f: balance %.1f %%\n",
	    (long long)v->total, BLOCK_TOKENS, v->active, (long long)v->num_parts, (long long)v->longest, mean,
	    v->longest ? 100 * mean / (double)v->longest : 100);
	printf("%lld of %lld requests are shared by several workers\n", (long long)split_requests, (long long)batch->b);
}

static int draw(const struct plan_view *v, const struct batch *batch, const struct fmla_backend_info *info,
                const char *path)
{
	char subtitle[256], tokens[16];
	snprintf(subtitle, sizeof(subtitle), "%s: %lld requests, %s cached tokens, longest %lld; %s (%s), %lld workers",
	         batch->name, (long long)batch->b, human_count((double)batch->pages.kv_tokens, tokens),
	         (long long)batch->longest, info->name, info->variant, (long long)v->num_parts);
	const struct gantt_chart chart = {.title = "Plan of one decoding step",
	                                  .subtitle = subtitle,
	                                  .parts = (int32_t)v->num_parts,
	                                  .longest = v->longest,
	                                  .mean = (double)v->total / (double)v->num_parts,
	                                  .pieces = v->pieces,
	                                  .count = v->count};
	if (!svg_gantt(path, &chart))
		return fail(EXIT_SYSTEM, "%s cannot be written", path);
	return EXIT_OK;
}

static int show(const struct options *o, fmla_ctx *ctx, const struct fmla_backend_info *info, const struct batch *batch)
{
	struct step step;
	struct plan_view view = {0};
	int code = step_create(&step, ctx, info->device_type, &o->batch.shape, batch, 0, o->batch.seed, false);
	if (code == EXIT_OK) {
		const fmla_status status = step_plan(&step);
		code = status == FMLA_OK ? view_create(&view, &step) : fail_status(ctx, status, "plan");
	}
	if (code == EXIT_OK && o->json)
		print_json(&view);
	if (code == EXIT_OK && !o->json) {
		char tokens[16];
		printf("%s: %lld requests, %s cached tokens, longest %lld; %s (%s)\n\n", batch->name, (long long)batch->b,
		       human_count((double)batch->pages.kv_tokens, tokens), (long long)batch->longest, info->name,
		       info->variant);
		print_table(&view, batch);
	}
	if (code == EXIT_OK && o->svg)
		code = draw(&view, batch, info, o->svg);
	if (code == EXIT_OK && o->svg && !o->json)
		printf("picture: %s\n", o->svg);
	view_free(&view);
	step_destroy(&step);
	return code;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	switch (key) {
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &o->where;
		state->child_inputs[1] = &o->batch;
		return 0;
	case 'g':
		o->svg = arg;
		return 0;
	case 'j':
		o->json = 1;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "'%s' is one argument too many", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_plan(int argc, char **argv)
{
	static const struct argp_option argp_options[] = {
	    {NULL, 0, NULL, 0, "Output:", 4},
	    {"svg", 'g', "FILE", 0, "draw the plan as a Gantt chart", 4},
	    {"json", 'j', NULL, 0, "one JSON object per piece of work and line", 4},
	    {0}};
	static const struct argp_child children[] = {{&where_argp, 0, "Where:", 1}, {&batch_argp, 0, NULL, 0}, {0}};
	static const struct argp argp = {.options = argp_options,
	                                 .parser = parse,
	                                 .children = children,
	                                 .doc = "Plans one decoding step and shows which worker (thread or GPU block) gets "
	                                        "which requests.  Default: azure-conv, 32 requests."};
	struct options o = {.batch = batch_defaults};
	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (!o.batch.workload && !o.batch.trace && !o.batch.s_k && !o.batch.varlen)
		o.batch.workload = "azure-conv";
	if (o.batch.trace)
		o.batch.steps = 1;
	if (!o.batch.shape.h_q)
		o.batch.shape.h_q = 128;

	struct fmla_backend_info info;
	struct batches all;
	struct batch batch = {0};
	int code;
	fmla_ctx *ctx = open_backend(o.where, &info, &code);
	if (!ctx)
		return code;
	code = batches_open(&all, &o.batch);
	if (code == EXIT_OK)
		code = batches_next(&all, &batch);
	if (code == EXIT_OK)
		code = show(&o, ctx, &info, &batch);
	batch_free(&batch);
	batches_close(&all);
	fmla_ctx_destroy(ctx);
	return code;
}
