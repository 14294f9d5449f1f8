/* SPDX-License-Identifier: MIT
 *
 * What every cmocka test here starts with. */
#ifndef FMLA_TESTS_HARNESS_H
#define FMLA_TESTS_HARNESS_H

/* cmocka.h wants these four first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "flash_mla.h"

#include <stdlib.h>

/* A context for `backend` (NULL: default) with `threads` threads and FMLA_CPU = cap (NULL: unset). */
static inline fmla_ctx *make_context(const char *backend, int threads, const char *cap)
{
	if (cap)
		setenv("FMLA_CPU", cap, 1);
	else
		unsetenv("FMLA_CPU");
	fmla_ctx *ctx = NULL;
	const struct fmla_ctx_options options = {
	    .struct_size = sizeof(options), .backend = backend, .num_threads = threads};
	if (fmla_ctx_create(&ctx, &options) != FMLA_OK)
		fail_msg("no context for backend %s: %s", backend ? backend : "(default)", fmla_last_error(ctx));
	unsetenv("FMLA_CPU");
	return ctx;
}

#define assert_ok(ctx, call)                                                                  \
	do {                                                                                      \
		const fmla_status status_ = (call);                                                   \
		if (status_ != FMLA_OK)                                                               \
			fail_msg("%s: %s: %s", #call, fmla_status_string(status_), fmla_last_error(ctx)); \
	} while (0)

#endif
