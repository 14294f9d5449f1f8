/* SPDX-License-Identifier: MIT */
#include "batch.h"

#include "workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct fmla_dtype bf16 = FMLA_BF16, fp16 = FMLA_FP16;

const struct batch_options batch_defaults = {
    .shape = {.s_q = 1, .h_kv = 1, .d_qk = 576, .page = 64, .dtype = FMLA_BF16, .causal = 1},
    .max_batch = 64,
    .step_ms = 30,
    .steps = 12,
    .seed = 1,
};

const char *dtype_name(struct fmla_dtype dtype)
{
	return dtype.code == bf16.code ? "bf16" : "fp16";
}

/* ---- options --------------------------------------------------------------------------------------------------- */

enum {
	OPT_B = 256,
	OPT_S_Q,
	OPT_H_Q,
	OPT_H_KV,
	OPT_S_K,
	OPT_D_QK,
	OPT_PAGE,
	OPT_MAX_BATCH,
	OPT_STEP_MS,
	OPT_STEPS,
	OPT_SEED,
	OPT_NO_CAUSAL,
	OPT_VARLEN
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Which requests:", 2},
    {"workload", 'w', "NAME", 0, "azure-conv, azure-code, mooncake (lengths as in these serving traces) or uniform", 2},
    {"trace", 'T', "FILE", 0, "replay a trace file (Azure CSV or Mooncake JSONL) as a server would batch it", 2},
    {"b", OPT_B, "N", 0, "requests in the batch; default 32", 2},
    {"s-k", OPT_S_K, "N", 0, "cached tokens of each request (uniform); default 4096", 2},
    {"varlen", OPT_VARLEN, NULL, 0, "lengths drawn from normal(s_k, s_k/2), cut to [1, 4 s_k]", 2},
    {"max-batch", OPT_MAX_BATCH, "N", 0, "trace: most requests that the server runs at a time; default 64", 2},
    {"step-ms", OPT_STEP_MS, "MS", 0, "trace: time of a decode step; 0: the server is always full; default 30", 2},
    {"steps", OPT_STEPS, "N", 0, "trace: how many of its batches to take, evenly spaced; default 12", 2},
    {"seed", OPT_SEED, "N", 0, "seed of lengths, pages and data; default 1", 2},
    {NULL, 0, NULL, 0, "One layer:", 3},
    {"h-q", OPT_H_Q, "N[,N...]", 0,
     "query heads; default 128 (DeepSeek-V3; 16 when 8 workers share them); `bench` takes several", 3},
    {"h-kv", OPT_H_KV, "N", 0, "KV heads; default 1", 3},
    {"s-q", OPT_S_Q, "N", 0, "query tokens of each request; default 1", 3},
    {"d-qk", OPT_D_QK, "N", 0, "values of a key: 576 (default) or 512", 3},
    {"page", OPT_PAGE, "N", 0, "tokens in a page; default 64", 3},
    {"dtype", 'd', "TYPE", 0, "bf16 (default) or fp16", 3},
    {"no-causal", OPT_NO_CAUSAL, NULL, 0, "every query token sees all keys", 3},
    {0}};

/* "16,64,128" */
static void parse_heads(struct batch_options *o, const char *list, struct argp_state *state)
{
	o->num_heads = 0;
	for (const char *at = list;; at++) {
		char word[16];
		const size_t n = strcspn(at, ",");
		snprintf(word, sizeof(word), "%.*s", (int)(n < sizeof(word) ? n : sizeof(word) - 1), at);
		if (o->num_heads == MAX_HEADS)
			argp_error(state, "--h-q takes at most %d values", MAX_HEADS);
		o->heads[o->num_heads++] = parse_integer(state, "--h-q", word, 1, 1 << 16);
		at += n;
		if (!*at)
			break;
	}
	o->shape.h_q = o->heads[0];
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct batch_options *o = state->input;
	switch (key) {
	case 'w':
		if (strcmp(arg, "uniform") != 0 && !workload_find(arg))
			argp_error(state, "there is no workload '%s'; azure-conv, azure-code, mooncake or uniform", arg);
		o->workload = arg;
		return 0;
	case 'T':
		o->trace = arg;
		return 0;
	case 'd':
		if (strcmp(arg, "bf16") != 0 && strcmp(arg, "fp16") != 0)
			argp_error(state, "--dtype takes bf16 or fp16, not '%s'", arg);
		o->shape.dtype = arg[0] == 'b' ? bf16 : fp16;
		return 0;
	case OPT_B:
		o->b = parse_integer(state, "--b", arg, 1, 1 << 20);
		return 0;
	case OPT_S_K:
		o->s_k = parse_integer(state, "--s-k", arg, 1, 1 << 24);
		return 0;
	case OPT_VARLEN:
		o->varlen = true;
		return 0;
	case OPT_MAX_BATCH:
		o->max_batch = (int)parse_integer(state, "--max-batch", arg, 1, 1 << 16);
		return 0;
	case OPT_STEP_MS:
		o->step_ms = parse_real(state, "--step-ms", arg, 0, 1e6);
		return 0;
	case OPT_STEPS:
		o->steps = parse_integer(state, "--steps", arg, 1, 1 << 20);
		return 0;
	case OPT_SEED:
		o->seed = (uint64_t)parse_integer(state, "--seed", arg, 0, INT64_MAX);
		return 0;
	case OPT_H_Q:
		parse_heads(o, arg, state);
		return 0;
	case OPT_H_KV:
		o->shape.h_kv = parse_integer(state, "--h-kv", arg, 1, 1 << 16);
		return 0;
	case OPT_S_Q:
		o->shape.s_q = parse_integer(state, "--s-q", arg, 1, 1 << 16);
		return 0;
	case OPT_D_QK:
		o->shape.d_qk = parse_integer(state, "--d-qk", arg, 512, 576);
		if (o->shape.d_qk != 512 && o->shape.d_qk != 576)
			argp_error(state, "--d-qk takes 576 or 512, not '%s'", arg);
		return 0;
	case OPT_PAGE:
		o->shape.page = parse_integer(state, "--page", arg, 1, 1 << 20);
		return 0;
	case OPT_NO_CAUSAL:
		o->shape.causal = 0;
		return 0;
	case ARGP_KEY_END:
		if (!!o->workload + !!o->trace > 1)
			argp_error(state, "--workload and --trace exclude each other");
		if (o->trace && (o->b || o->s_k || o->varlen))
			argp_error(state, "--b, --s-k and --varlen have no meaning with --trace, which brings its own batches");
		if (o->workload && strcmp(o->workload, "uniform") != 0 && (o->s_k || o->varlen))
			argp_error(state, "--s-k and --varlen have no meaning with --workload %s, which brings its own lengths",
			           o->workload);
		for (int i = 0; i < o->num_heads; i++)
			if (o->heads[i] % o->shape.h_kv)
				argp_error(state, "--h-q must be a multiple of --h-kv");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

const struct argp batch_argp = {.options = options, .parser = parse};

/* ---- batches --------------------------------------------------------------------------------------------------- */

/* Runs the server once to learn how many batches it forms. */
static int open_trace(struct batches *all, const struct batch_options *o)
{
	double requests = 0;
	if (!trace_load(&all->trace, o->trace))
		return fail(EXIT_USAGE, "%s: %s", o->trace, all->trace.error);
	if (!replay_start(&all->replay, &all->trace, o->max_batch, o->step_ms))
		return fail(EXIT_SYSTEM, "out of memory");
	for (; !interrupted && replay_step(&all->replay); all->replay_steps++)
		requests += all->replay.count;
	if (all->replay_steps == 0)
		return fail(EXIT_USAGE, "%s: no request decodes more than one token", o->trace);
	all->mean_batch = requests / (double)all->replay_steps;
	all->count = o->steps < all->replay_steps ? o->steps : all->replay_steps;
	replay_free(&all->replay);
	return replay_start(&all->replay, &all->trace, o->max_batch, o->step_ms) ? EXIT_OK
	                                                                         : fail(EXIT_SYSTEM, "out of memory");
}

int batches_open(struct batches *all, const struct batch_options *options_given)
{
	*all = (struct batches){.options = options_given, .count = 1};
	return options_given->trace ? open_trace(all, options_given) : EXIT_OK;
}

void batches_close(struct batches *all)
{
	replay_free(&all->replay);
	trace_free(&all->trace);
}

static int64_t uniform_length(const struct batch_options *o)
{
	return o->s_k ? o->s_k : 4096;
}

static void next_lengths(const struct batch_options *o, struct batch *batch)
{
	const struct workload *w = o->workload ? workload_find(o->workload) : NULL;
	const int64_t s_k = uniform_length(o);
	batch->varlen = w != NULL || o->varlen;
	if (w) {
		workload_lengths(w, batch->b, o->seed, batch->lengths);
		snprintf(batch->name, sizeof(batch->name), "%s", w->name);
		return;
	}
	if (o->varlen)
		normal_lengths(s_k, batch->b, o->seed, batch->lengths);
	else
		for (int64_t i = 0; i < batch->b; i++)
			batch->lengths[i] = (int32_t)s_k;
	snprintf(batch->name, sizeof(batch->name), "s_k %lld%s", (long long)s_k, o->varlen ? " varied" : "");
}

/* Lets the server run to the next of the evenly spaced steps. */
static void next_replay(struct batches *all, struct batch *batch)
{
	const int64_t wanted = (2 * all->next + 1) * all->replay_steps / (2 * all->count);
	for (; all->replay_at <= wanted; all->replay_at++)
		replay_step(&all->replay);
	batch->b = all->replay.count;
	batch->varlen = true;
	snprintf(batch->name, sizeof(batch->name), "step %lld", (long long)wanted);
}

int batches_next(struct batches *all, struct batch *batch)
{
	const struct batch_options *o = all->options;
	const bool replayed = o->trace != NULL;
	*batch = (struct batch){.b = o->b ? o->b : 32};
	if (replayed)
		next_replay(all, batch);
	batch->lengths = malloc((size_t)batch->b * sizeof(*batch->lengths));
	if (!batch->lengths)
		return fail(EXIT_SYSTEM, "out of memory");
	if (replayed)
		for (int64_t i = 0; i < batch->b; i++)
			batch->lengths[i] = all->replay.slots[i].length;
	else
		next_lengths(o, batch);
	for (int64_t i = 0; i < batch->b; i++)
		if (batch->lengths[i] > batch->longest)
			batch->longest = batch->lengths[i];
	const bool shared = replayed && all->trace.num_hashes > 0;
	if (!pages_assign(&batch->pages, batch->lengths, batch->b, o->shape.page, o->seed, shared ? &all->trace : NULL,
	                  shared ? all->replay.slots : NULL))
		return fail(EXIT_SYSTEM, "the page table of %lld requests needs too much memory", (long long)batch->b);
	const bool asked = !replayed && (!o->workload || strcmp(o->workload, "uniform") == 0);
	batch->s_k = asked ? uniform_length(o) : (batch->pages.kv_tokens + batch->b / 2) / batch->b;
	all->next++;
	return EXIT_OK;
}

void batch_free(struct batch *batch)
{
	free(batch->lengths);
	pages_free(&batch->pages);
	batch->lengths = NULL;
}
