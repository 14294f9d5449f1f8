/* SPDX-License-Identifier: MIT
 *
 * run.c - `flashmla run IN.safetensors -o OUT.safetensors`: decode tensors from a file. */
#include "cli.h"
#include "device.h"
#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
	struct where where;
	const char *in, *out;
	int causal;
	double scale; /* NAN: 1 / sqrt(d_qk) */
	int64_t window;
	bool neg_inf, check_pages;
};

/* The inputs by the names that they have in the file, and the two results. */
enum { Q, KV_CACHE, BLOCK_TABLE, CACHE_SEQLENS, CU_SEQLENS_Q, ATTN_SINK, OUT, LSE, NUM_TENSORS };
static const char *const names[NUM_TENSORS] = {"q",         "kv_cache", "block_table", "cache_seqlens", "cu_seqlens_q",
                                               "attn_sink", "out",      "lse"};
enum { NUM_INPUTS = OUT, NUM_NEEDED = CU_SEQLENS_Q };

struct problem_file {
	struct safetensors st;
	struct fmla_tensor dl[NUM_TENSORS];
	int64_t shape[NUM_TENSORS][ST_MAX_DIMS];
	const struct st_tensor *source[NUM_INPUTS]; /* NULL: the file has none */
	struct fmla_decode_args args;
	int device; /* enum fmla_device_type */
};

static const struct {
	const char *name;
	struct fmla_dtype dtype;
} dtypes[] = {{"BF16", FMLA_BF16}, {"F16", FMLA_FP16}, {"F32", FMLA_FP32}, {"I32", FMLA_INT32}, {"I64", FMLA_INT64}};
enum { NUM_DTYPES = sizeof(dtypes) / sizeof(*dtypes) };

/* Fills dl[which] from the file's header; data stays NULL. */
static int describe_input(struct problem_file *f, const char *path, int which)
{
	const struct st_tensor *t = f->source[which] = st_find(&f->st, names[which]);
	struct fmla_tensor *dl = &f->dl[which];
	if (!t)
		return which < NUM_NEEDED ? fail(EXIT_USAGE, "%s: there is no tensor named %s", path, names[which]) : EXIT_OK;
	dl->dtype.lanes = 0;
	for (int i = 0; i < NUM_DTYPES; i++)
		if (strcmp(dtypes[i].name, t->dtype) == 0)
			dl->dtype = dtypes[i].dtype;
	if (dl->dtype.lanes == 0)
		return fail(EXIT_USAGE, "%s: tensor %s has dtype %s, which decode has no use for", path, t->name, t->dtype);
	dl->device = device_of(f->device);
	dl->ndim = t->ndim;
	dl->shape = memcpy(f->shape[which], t->shape, sizeof(t->shape));
	return EXIT_OK;
}

/* out like q with d_v values, lse [b, h_q, s_q] or [h_q, total_q]. */
static int describe_outputs(struct problem_file *f, const char *path, int64_t d_v)
{
	const struct fmla_tensor *q = &f->dl[Q];
	const bool ragged = f->source[CU_SEQLENS_Q] != NULL;
	if (q->ndim != (ragged ? 3 : 4))
		return fail(EXIT_USAGE, "%s: q has %d dimensions, %s", path, q->ndim,
		            ragged ? "[total_q, h_q, d_qk] is expected beside cu_seqlens_q"
		                   : "[b, s_q, h_q, d_qk] is expected");
	const int n = q->ndim;
	f->dl[OUT] = *q;
	f->dl[OUT].shape = memcpy(f->shape[OUT], q->shape, sizeof(f->shape[OUT]));
	f->dl[OUT].shape[n - 1] = d_v;
	f->dl[LSE] =
	    (struct fmla_tensor){.device = q->device, .ndim = n - 1, .dtype = dtypes[2].dtype, .shape = f->shape[LSE]};
	const int64_t uniform[3] = {q->shape[0], q->shape[2], q->shape[1]}, flat[2] = {q->shape[1], q->shape[0]};
	memcpy(f->shape[LSE], ragged ? flat : uniform, ragged ? sizeof(flat) : sizeof(uniform));
	return EXIT_OK;
}

static int load_inputs(struct problem_file *f, const char *path)
{
	for (int i = 0; i < NUM_INPUTS; i++) {
		const size_t bytes = f->source[i] ? tensor_bytes(&f->dl[i]) : 0;
		if (!f->source[i])
			continue;
		progress("reading", i, NUM_INPUTS);
		void *data = f->dl[i].data = device_alloc(f->device, bytes);
		if (!data)
			return fail(EXIT_SYSTEM, "%s of %zu bytes: %s", names[i], bytes, device_error(f->device));
		void *host = f->device == FMLA_DEVICE_CPU ? data : device_alloc(FMLA_DEVICE_CPU, bytes);
		if (!host)
			return fail(EXIT_SYSTEM, "%s of %zu bytes: out of memory", names[i], bytes);
		const bool read = st_read(&f->st, f->source[i], host),
		           moved = read && device_upload(f->device, data, 0, host, bytes);
		if (host != data)
			device_free(FMLA_DEVICE_CPU, host);
		if (!read)
			return fail(EXIT_USAGE, "%s: %s", path, f->st.error);
		if (!moved)
			return fail(EXIT_SYSTEM, "%s: %s", names[i], device_error(f->device));
	}
	return EXIT_OK;
}

static int decode(struct problem_file *f, fmla_ctx *ctx, double *seconds)
{
	struct fmla_decode_args *a = &f->args;
	for (int i = OUT; i <= LSE; i++)
		if (!(f->dl[i].data = device_alloc(f->device, tensor_bytes(&f->dl[i]))))
			return fail(EXIT_SYSTEM, "%s: %s", names[i], device_error(f->device));
	if (!(a->workspace = device_alloc(f->device, a->workspace_size)))
		return fail(EXIT_SYSTEM, "workspace: %s", device_error(f->device));
	a->stream = device_stream(f->device);
	const double start = now_seconds();
	const fmla_status status = fmla_decode(ctx, a);
	if (status != FMLA_OK)
		return fail_status(ctx, status, "decode");
	if (!device_sync(f->device))
		return fail(EXIT_SYSTEM, "decode: %s", device_error(f->device));
	*seconds = now_seconds() - start;
	return EXIT_OK;
}

static int save_outputs(struct problem_file *f, const char *path, const char *backend)
{
	struct st_tensor tensors[2] = {{.name = "out"}, {.name = "lse", .dtype = "F32"}};
	void *data[2] = {NULL, NULL};
	char scale[32], error[256] = "out of memory";
	snprintf(scale, sizeof(scale), "%.9g", f->args.softmax_scale);
	const char *const metadata[] = {"producer",      "flashmla", "version", fmla_version_string(), "backend", backend,
	                                "softmax_scale", scale,      NULL};
	bool ok = true;
	memcpy(tensors[0].dtype, f->source[Q]->dtype, sizeof(tensors[0].dtype));
	for (int i = 0; i < 2 && ok; i++) {
		const struct fmla_tensor *t = &f->dl[OUT + i];
		tensors[i].ndim = t->ndim;
		memcpy(tensors[i].shape, t->shape, sizeof(tensors[i].shape));
		data[i] = device_alloc(FMLA_DEVICE_CPU, tensor_bytes(t));
		ok = data[i] && device_download(f->device, data[i], t->data, tensor_bytes(t));
	}
	ok = ok && st_write(path, tensors, data, 2, metadata, error, sizeof(error));
	device_free(FMLA_DEVICE_CPU, data[0]);
	device_free(FMLA_DEVICE_CPU, data[1]);
	return ok ? EXIT_OK : fail(EXIT_SYSTEM, "%s", error);
}

static int run(struct problem_file *f, fmla_ctx *ctx, const struct options *o, const char *backend)
{
	double seconds = 0;
	int code = EXIT_OK;
	if (!st_open(&f->st, o->in))
		return fail(EXIT_USAGE, "%s: %s", o->in, f->st.error);
	for (int i = 0; i < NUM_INPUTS && code == EXIT_OK; i++)
		code = describe_input(f, o->in, i);
	f->args = (struct fmla_decode_args){
	    .struct_size = sizeof(f->args),
	    .q = &f->dl[Q],
	    .kv_cache = &f->dl[KV_CACHE],
	    .block_table = &f->dl[BLOCK_TABLE],
	    .cache_seqlens = &f->dl[CACHE_SEQLENS],
	    .cu_seqlens_q = f->source[CU_SEQLENS_Q] ? &f->dl[CU_SEQLENS_Q] : NULL,
	    .attn_sink = f->source[ATTN_SINK] ? &f->dl[ATTN_SINK] : NULL,
	    .out = &f->dl[OUT],
	    .lse = &f->dl[LSE],
	    .causal = o->causal,
	    .window = o->window,
	    .flags = (o->neg_inf ? FMLA_EMPTY_LSE_NEG_INF : 0u) | (o->check_pages ? FMLA_CHECK_PAGES : 0u),
	};
	enum { HEAD_DIM_V = 512 };
	if (code == EXIT_OK)
		code = describe_outputs(f, o->in, HEAD_DIM_V);
	if (code != EXIT_OK)
		return code;
	f->args.softmax_scale = isnan(o->scale) ? 1 / sqrt((double)f->dl[Q].shape[f->dl[Q].ndim - 1]) : o->scale;

	/* All shapes are checked here, before anything of their size is allocated. */
	const fmla_status status = fmla_workspace_size(ctx, &f->args, &f->args.workspace_size);
	if (status != FMLA_OK)
		return fail_status(ctx, status, o->in);
	code = load_inputs(f, o->in);
	progress_clear();
	if (code == EXIT_OK && !interrupted)
		code = decode(f, ctx, &seconds);
	if (code == EXIT_OK && !interrupted)
		code = save_outputs(f, o->out, backend);
	if (code == EXIT_OK && !interrupted)
		printf("%s: out and lse of %lld query rows, decoded by %s in %.3f ms, softmax scale %.6g\n", o->out,
		       (long long)(tensor_bytes(&f->dl[LSE]) / 4), backend, seconds * 1000, f->args.softmax_scale);
	return code;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	switch (key) {
	case 'o':
		o->out = arg;
		return 0;
	case ARGP_KEY_INIT:
		state->child_inputs[0] = &o->where;
		return 0;
	case 'c':
		o->causal = 1;
		return 0;
	case 's':
		o->scale = parse_real(state, "--softmax-scale", arg, -1e30, 1e30);
		return 0;
	case 'w':
		o->window = parse_integer(state, "--window", arg, 0, INT32_MAX);
		return 0;
	case 'n':
		o->neg_inf = true;
		return 0;
	case 'p':
		o->check_pages = true;
		return 0;
	case ARGP_KEY_ARG:
		if (o->in)
			argp_error(state, "'%s' is one argument too many", arg);
		o->in = arg;
		return 0;
	case ARGP_KEY_END:
		if (!o->in || !o->out)
			argp_error(state, "an input file and -o OUTPUT are needed");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_run(int argc, char **argv)
{
	static const struct argp_option argp_options[] = {
	    {"output", 'o', "FILE", 0, "write out and lse to this .safetensors file", 0},
	    {"causal", 'c', NULL, 0, "query token s of s_q sees keys up to length - s_q + s", 0},
	    {"softmax-scale", 's', "X", 0, "default 1/sqrt(d_qk), as flash_mla_with_kvcache; models give their own", 0},
	    {"window", 'w', "N", 0, "sliding window of N keys; default: all", 0},
	    {"neg-inf", 'n', NULL, 0, "lse of empty rows is -inf instead of +inf", 0},
	    {"check-pages", 'p', NULL, 0, "look for page indices out of range first (GPU)", 0},
	    {0}};
	static const struct argp_child children[] = {{&where_argp, 0, NULL, 0}, {0}};
	static const struct argp argp = {
	    .options = argp_options,
	    .parser = parse,
	    .children = children,
	    .args_doc = "IN.safetensors -o OUT.safetensors",
	    .doc =
	        "Decodes tensors from a file: q [b, s_q, h_q, d_qk], kv_cache [num_pages, page, h_kv, d_qk] (bf16 or "
	        "fp16), block_table [b, max_pages], cache_seqlens [b] (int32), optionally attn_sink [h_q] (fp32) and "
	        "cu_seqlens_q [b + 1] with q [total_q, h_q, d_qk].  Writes out [b, s_q, h_q, 512] and lse [b, h_q, s_q]."};
	struct options o = {.scale = NAN};
	argp_parse(&argp, argc, argv, 0, NULL, &o);

	struct fmla_backend_info info;
	int code;
	fmla_ctx *ctx = open_backend(o.where, &info, &code);
	if (!ctx)
		return code;
	struct problem_file f = {.device = info.device_type};
	code = run(&f, ctx, &o, info.name);
	for (int i = 0; i < NUM_TENSORS; i++)
		device_free(f.device, f.dl[i].data);
	device_free(f.device, f.args.workspace);
	st_close(&f.st);
	fmla_ctx_destroy(ctx);
	return code;
}
