/* SPDX-License-Identifier: MIT
 *
 * info.c - `flashmla info`: the backends of this machine; `--trace FILE`: what is in a trace. */
#include "cli.h"
#include "json.h"
#include "trace.h"
#include "workload.h"

#include <stdio.h>
#include <string.h>

/* How far each way to a GPU was tried; the first words are those of docs/gpus.md, whose table says more. */
static const struct {
	const char *gpu, *path, *label, *detail;
} tried[] = {
    {"NVIDIA Hopper", "cuda, portable-cuda, opencl", "executed on hardware", "H200"},
    {"NVIDIA sm_80 to sm_120", "portable-cuda", "compiled and instruction-checked only",
     "the same PTX runs on an H200"},
    {"NVIDIA Turing, sm_75", "portable-cuda", "compiled and instruction-checked only", "no tensor cores"},
    {"AMD gfx90a, gfx942", "hip", "compiled and instruction-checked only", "MFMA"},
    {"AMD, other; Intel", "opencl", "executed on a CPU OpenCL only", "and on an H200, not on these"},
    {"MetaX", "CUDA dialect", "source only", ""},
    {"Moore Threads", "MUSA dialect, opencl", "source only", ""},
    {"Hygon DCU", "HIP dialect", "source only", ""},
    {"Iluvatar CoreX", "CUDA dialect", "source only", ""},
    {"Intellifusion", "", "not possible", "no kernel language for users, no bf16"},
};
enum { TRIED = sizeof(tried) / sizeof(*tried) };

struct options {
	const char *trace;
	int json;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	switch (key) {
	case 't':
		o->trace = arg;
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

static void print_backend(const struct fmla_backend_info *b)
{
	printf("%-14s %-4s", b->name, b->available ? "yes" : "no");
	if (b->available)
		printf(" %-19s %4d  %s%s%s%s\n", b->variant, b->num_workers, b->device_name, b->reason[0] ? "  (" : "",
		       b->reason, b->reason[0] ? ")" : "");
	else
		printf(" %s\n", b->reason);
}

static void print_tried(void)
{
	printf("\nGPU                     how                         tried by its authors (docs/gpus.md)\n");
	for (int i = 0; i < TRIED; i++)
		printf("%-23s %-27s %s%s%s%s\n", tried[i].gpu, tried[i].path, tried[i].label, tried[i].detail[0] ? " (" : "",
		       tried[i].detail, tried[i].detail[0] ? ")" : "");
}

static void print_tried_json(void)
{
	for (int i = 0; i < TRIED; i++)
		printf("{\"gpu\": \"%s\", \"path\": \"%s\", \"label\": \"%s\", \"detail\": \"%s\"}\n", tried[i].gpu,
		       tried[i].path, tried[i].label, tried[i].detail);
}

static void print_backend_json(const struct fmla_backend_info *b)
{
	const struct {
		const char *key, *value;
	} texts[] = {{"backend", b->name}, {"device", b->device_name}, {"variant", b->variant}, {"reason", b->reason}};
	putchar('{');
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		printf("\"%s\": ", texts[i].key);
		json_put_string(stdout, texts[i].value);
		fputs(", ", stdout);
	}
	printf("\"available\": %s, \"workers\": %d}\n", b->available ? "true" : "false", b->num_workers);
}

static int show_backends(int json)
{
	fmla_ctx *ctx = NULL;
	const fmla_status status = fmla_ctx_create(&ctx, NULL);
	if (status != FMLA_OK) {
		const int code = fail(EXIT_UNAVAILABLE, "%s", fmla_last_error(ctx));
		fmla_ctx_destroy(ctx);
		return code;
	}
	struct fmla_backend_info b = {.struct_size = sizeof(b)};
	if (!json)
		printf("flashmla %s\n\nbackend        here variant           workers  device\n", fmla_version_string());
	for (int i = 0; fmla_backend_info(ctx, i, &b) == FMLA_OK; i++)
		(json ? print_backend_json : print_backend)(&b);
	(json ? print_tried_json : print_tried)();
	if (!json)
		printf("\ndecode: bf16 and fp16; d_qk/d_v 576/512 and 512/512; any number of heads, query tokens, requests;\n"
		       "pages of any size; variable lengths, causal mask, left window, attention sinks, ragged queries.\n");
	fmla_ctx_destroy(ctx);
	return EXIT_OK;
}

static int show_trace(const char *path, int json)
{
	struct trace t;
	int code = EXIT_OK;
	if (!trace_load(&t, path)) {
		code = fail(EXIT_USAGE, "%s: %s", path, t.error);
		trace_free(&t);
		return code;
	}
	int32_t q[WORKLOAD_KNOTS];
	double input = 0, output = 0;
	for (size_t i = 0; i < t.count; i++) {
		input += t.requests[i].input;
		output += t.requests[i].output;
	}
	workload_quantiles(&t, q);
	const double minutes = (t.requests[t.count - 1].arrival_ms - t.requests[0].arrival_ms) / 60000;
	if (json) {
		printf("{\"trace\": ");
		json_put_string(stdout, path);
		printf(
		    ", \"requests\": %zu, \"minutes\": %.1f, \"input_tokens\": %.0f, \"output_tokens\": %.0f, \"hashes\": %zu, "
		    "\"cache_quantiles\": [",
		    t.count, minutes, input, output, t.num_hashes);
		for (int k = 0; k < WORKLOAD_KNOTS; k++)
			printf("%s%d", k ? ", " : "", q[k]);
		printf("]}\n");
	} else {
		printf("%s\n%zu requests in %.1f minutes, %.0f prompt and %.0f answer tokens each on average, %s\n\n", path,
		       t.count, minutes, input / (double)t.count, output / (double)t.count,
		       t.num_hashes ? "with prefix hashes" : "without prefix hashes");
		printf("Tokens in the cache of a running request, over all decode steps (the table of a workload):\n");
		for (int k = 0; k < WORKLOAD_KNOTS; k++)
			printf("%5d %% %8d%s", k * 100 / (WORKLOAD_KNOTS - 1), q[k],
			       k % 5 == 4 || k + 1 == WORKLOAD_KNOTS ? "\n" : " ");
	}
	trace_free(&t);
	return EXIT_OK;
}

int cmd_info(int argc, char **argv)
{
	static const struct argp_option options[] = {
	    {"trace", 't', "FILE", 0, "describe a trace file (Azure CSV or Mooncake JSONL) instead", 0},
	    {"json", 'j', NULL, 0, "one JSON object a line", 0},
	    {0}};
	static const struct argp argp = {.options = options,
	                                 .parser = parse,
	                                 .doc = "Lists the backends of this machine, and why one is missing or slower than "
	                                        "it could be."};
	struct options o = {0};
	argp_parse(&argp, argc, argv, 0, NULL, &o);
	return o.trace ? show_trace(o.trace, o.json) : show_backends(o.json);
}
