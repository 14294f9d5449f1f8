/* SPDX-License-Identifier: MIT
 *
 * Status names, the sentence of the last failure, and the life of a context. */
#include "status.h"

#include "check.h"
#include "registry.h"
#include "threads.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 4096 };

const char *fmla_status_string(fmla_status status)
{
	switch (status) {
	case FMLA_OK:
		return "success";
	case FMLA_ERR_ARGUMENT:
		return "an argument breaks a documented rule";
	case FMLA_ERR_UNSUPPORTED:
		return "no available backend can serve this request";
	case FMLA_ERR_WORKSPACE:
		return "the workspace is missing, misaligned or too small";
	case FMLA_ERR_MEMORY:
		return "out of host memory";
	case FMLA_ERR_DEVICE:
		return "the device or its driver reported an error";
	case FMLA_ERR_PAGE:
		return "a used block table entry is out of range";
	}
	return "unknown status";
}

fmla_status fmla_fail(struct fmla_ctx *ctx, fmla_status status, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(ctx->error, sizeof(ctx->error), format, args);
	va_end(args);
	return status;
}

const char *fmla_last_error(const fmla_ctx *ctx)
{
	return ctx ? ctx->error : "the context is NULL";
}

/* FMLA_CPU names the fastest CPU variant that may be used. */
static fmla_status read_cpu_cap(struct fmla_ctx *ctx)
{
	static const char *const names[] = {
	    [CPU_REF] = "ref", [CPU_C] = "c", [CPU_AVX2] = "avx2", [CPU_AVX512] = "avx512", [CPU_AMX] = "amx"};
	const char *cap = getenv("FMLA_CPU");
	ctx->cpu_variant = CPU_AMX;
	if (!cap)
		return FMLA_OK;
	for (int v = CPU_REF; v <= CPU_AMX; v++) {
		if (strcmp(cap, names[v]) == 0) {
			ctx->cpu_variant = v;
			return FMLA_OK;
		}
	}
	return fmla_fail(ctx, FMLA_ERR_ARGUMENT, "FMLA_CPU is '%.64s', expected amx, avx512, avx2, c or ref", cap);
}

static fmla_status read_options(struct fmla_ctx *ctx, const struct fmla_ctx_options *user, int *num_threads)
{
	struct fmla_ctx_options o = {0};
	TRY(check_struct(ctx, "fmla_ctx_options", user, &o, sizeof(o)));
	REQUIRE(ctx, o.num_threads >= 0 && o.num_threads <= MAX_THREADS, "num_threads is %d, must be 0 .. %d",
	        o.num_threads, MAX_THREADS);
	*num_threads = o.num_threads ? o.num_threads : threads_offered();
	if (!o.backend)
		return FMLA_OK;

	ctx->forced = fmla_backend_named(o.backend);
	REQUIRE(ctx, ctx->forced, "backend is '%.64s', this library has %s", o.backend, fmla_backend_names());
	struct fmla_backend_info info = {.reason = ""};
	ctx->num_threads = *num_threads;
	TRY(ctx->forced->probe(ctx, &info));
	if (!info.available)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend '%s' is not available: %s", ctx->forced->name,
		                 info.reason);
	return FMLA_OK;
}

fmla_status fmla_ctx_create(fmla_ctx **out, const struct fmla_ctx_options *options)
{
	if (!out)
		return FMLA_ERR_ARGUMENT;
	struct fmla_ctx *ctx = *out = calloc(1, sizeof(*ctx));
	if (!ctx)
		return FMLA_ERR_MEMORY;
	int num_threads = 0;
	fmla_status status = read_cpu_cap(ctx);
	const struct fmla_ctx_options defaults = {.struct_size = sizeof(defaults)};
	if (status == FMLA_OK)
		status = read_options(ctx, options ? options : &defaults, &num_threads);
	ctx->num_threads = status == FMLA_OK ? num_threads : 0;
	return status;
}

void fmla_ctx_destroy(fmla_ctx *ctx)
{
	if (!ctx)
		return;
	for (int i = 0; fmla_backends[i]; i++)
		if (fmla_backends[i]->release)
			fmla_backends[i]->release(ctx);
	free(ctx);
}
