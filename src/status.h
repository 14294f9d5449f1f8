/* SPDX-License-Identifier: MIT
 *
 * Status plumbing and the context.  A failing check leaves one sentence in the context and returns. */
#ifndef FMLA_STATUS_H
#define FMLA_STATUS_H

#include "flash_mla.h"

struct fmla_backend;

struct fmla_ctx {
	const struct fmla_backend *forced; /* NULL: by the tensors' device    */
	int num_threads;                   /* > 0                             */
	int cpu_variant;                   /* enum cpu_variant, see src/cpu   */
	void *cuda;                        /* the CUDA backend's handle, lazily made; freed with the context */
	char error[512];
	char info_text[4][256];
};

/* Stores a printf-style sentence and returns `status`. */
fmla_status fmla_fail(struct fmla_ctx *ctx, fmla_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* TRY: forward a failure.  REQUIRE: an argument rule; the sentence is made from the check. */
#define TRY(expr)                         \
	do {                                  \
		fmla_status try_status_ = (expr); \
		if (try_status_ != FMLA_OK)       \
			return try_status_;           \
	} while (0)
#define REQUIRE(ctx, cond, ...)                                      \
	do {                                                             \
		if (!(cond))                                                 \
			return fmla_fail((ctx), FMLA_ERR_ARGUMENT, __VA_ARGS__); \
	} while (0)

#endif
