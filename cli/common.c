/* SPDX-License-Identifier: MIT
 *
 * common.c - errors, option values, opening a backend, and the terminal. */
#include "cli.h"
#include "device.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

volatile sig_atomic_t interrupted;

/* ---- errors ---------------------------------------------------------------------------------------------------- */

int fail(int code, const char *format, ...)
{
	va_list list;
	progress_clear();
	fflush(stdout);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(list, format);
	vfprintf(stderr, format, list);
	va_end(list);
	fputc('\n', stderr);
	return code;
}

static int exit_code_of(fmla_status status)
{
	switch (status) {
	case FMLA_OK:
		return EXIT_OK;
	case FMLA_ERR_UNSUPPORTED:
		return EXIT_UNAVAILABLE;
	case FMLA_ERR_MEMORY:
	case FMLA_ERR_DEVICE:
		return EXIT_SYSTEM;
	default:
		return EXIT_USAGE;
	}
}

int fail_status(fmla_ctx *ctx, fmla_status status, const char *doing)
{
	return fail(exit_code_of(status), "%s: %s: %s", doing, fmla_status_string(status), fmla_last_error(ctx));
}

/* ---- option values --------------------------------------------------------------------------------------------- */

int64_t parse_integer(struct argp_state *state, const char *option, const char *text, int64_t least, int64_t most)
{
	char *end;
	errno = 0;
	const long long value = strtoll(text, &end, 10);
	if (errno || end == text || *end || value < least || value > most)
		argp_error(state, "%s takes an integer from %lld to %lld, not '%s'", option, (long long)least, (long long)most,
		           text);
	return value;
}

double parse_real(struct argp_state *state, const char *option, const char *text, double least, double most)
{
	char *end;
	const double value = strtod(text, &end);
	if (end == text || *end || !(value >= least && value <= most))
		argp_error(state, "%s takes a number from %g to %g, not '%s'", option, least, most, text);
	return value;
}

/* ---- backends -------------------------------------------------------------------------------------------------- */

static const struct argp_option where_options[] = {
    {"backend", 'B', "NAME", 0, "one of `flashmla info`; default: the best one that is available", 0},
    {"device", 'D', "N", 0, "number of the GPU or OpenCL device; default 0", 0},
    {"threads", 't', "N", 0, "threads of a CPU backend; default: all", 0},
    {0}};

static error_t parse_where(int key, char *arg, struct argp_state *state)
{
	struct where *w = state->input;
	switch (key) {
	case 'B': /* not b: --b is the size of a batch */
		w->backend = arg;
		return 0;
	case 'D':
		w->device = (int)parse_integer(state, "--device", arg, 0, 1023);
		return 0;
	case 't':
		w->threads = (int)parse_integer(state, "--threads", arg, 0, 4096);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

const struct argp where_argp = {.options = where_options, .parser = parse_where};

fmla_ctx *open_backend(struct where where, struct fmla_backend_info *info, int *code)
{
	const char *const backend = where.backend;
	const struct fmla_ctx_options options = {
	    .struct_size = sizeof(options), .backend = backend, .num_threads = where.threads};
	fmla_ctx *ctx = NULL;
	const fmla_status status = fmla_ctx_create(&ctx, &options);
	if (status != FMLA_OK) {
		/* Every failure here is about which backend can run: its name, FMLA_CPU, or a missing device. */
		*code = fail(status == FMLA_ERR_MEMORY ? EXIT_SYSTEM : EXIT_UNAVAILABLE, "%s", fmla_last_error(ctx));
		fmla_ctx_destroy(ctx);
		return NULL;
	}
	*info = (struct fmla_backend_info){.struct_size = sizeof(*info)};
	for (int i = 0; fmla_backend_info(ctx, i, info) == FMLA_OK; i++)
		if (info->available && (!backend || strcmp(info->name, backend) == 0)) {
			if (info->device_type != FMLA_DEVICE_CPU)
				device_select(where.device);
			const char *const name = device_name(info->device_type);
			if (name)
				info->device_name = name;
			return ctx;
		}
	*code = fail(EXIT_UNAVAILABLE, "backend '%s' is not available here; `flashmla info` says why",
	             backend ? backend : "any");
	fmla_ctx_destroy(ctx);
	return NULL;
}

bool can_write(const char *path)
{
	FILE *file = path ? fopen(path, "a") : NULL;
	return !path || (file && fclose(file) == 0);
}

/* ---- terminal -------------------------------------------------------------------------------------------------- */

static bool bar_is_drawn;

void progress(const char *what, int64_t done, int64_t total)
{
	enum { WIDTH = 32 };
	static double drawn_at;
	if (!isatty(STDERR_FILENO) || total < 1 || (bar_is_drawn && now_seconds() - drawn_at < 0.05))
		return;
	const int filled = (int)((done < total ? done : total) * WIDTH / total);
	char bar[WIDTH + 1];
	memset(bar, '.', WIDTH);
	memset(bar, '#', (size_t)filled);
	bar[WIDTH] = 0;
	fflush(stdout);
	fprintf(stderr, "\r\033[K[%s] %3d %%  %s", bar, (int)((done < total ? done : total) * 100 / total), what);
	drawn_at = now_seconds();
	bar_is_drawn = true;
}

void progress_clear(void)
{
	if (bar_is_drawn)
		fputs("\r\033[K", stderr);
	bar_is_drawn = false;
}

const char *human_count(double value, char text[16])
{
	static const char *const units[] = {"", " k", " M", " G"};
	int unit = 0;
	for (; value >= 9999.5 && unit < 3; unit++)
		value /= 1000;
	snprintf(text, 16, unit && value < 100 ? "%.1f%s" : "%.0f%s", value, units[unit]);
	return text;
}

double now_seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
