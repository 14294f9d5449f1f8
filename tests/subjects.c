/* SPDX-License-Identifier: MIT */
#include "subjects.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

fmla_ctx *subject_context(const struct subject *s)
{
	if (s->cap)
		setenv("FMLA_CPU", s->cap, 1);
	else
		unsetenv("FMLA_CPU");
	fmla_ctx *ctx = NULL;
	const struct fmla_ctx_options options = {
	    .struct_size = sizeof(options), .backend = s->backend, .num_threads = s->threads};
	const fmla_status status = fmla_ctx_create(&ctx, &options);
	unsetenv("FMLA_CPU");
	if (status == FMLA_OK)
		return ctx;
	fprintf(stderr, "no context for %s: %s\n", s->name, fmla_last_error(ctx));
	fmla_ctx_destroy(ctx);
	return NULL;
}

/* FMLA_CPU only caps: the variant is here when backend_info reports that very one. */
static int variant_is_here(const char *cap)
{
	int found = 0;
	fmla_ctx *ctx = subject_context(&(struct subject){.cap = cap});
	struct fmla_backend_info info = {.struct_size = sizeof(info)};
	for (int n = 0; ctx && fmla_backend_info(ctx, n, &info) == FMLA_OK; n++)
		found |= strcmp(info.name, "cpu") == 0 && info.available && strcmp(info.variant, cap) == 0;
	fmla_ctx_destroy(ctx);
	return found;
}

static void add(struct subject *list, int *n, const char *name, const char *backend, const char *cap, int threads)
{
	struct subject *s = &list[(*n)++];
	*s = (struct subject){.backend = backend, .cap = cap, .threads = threads};
	snprintf(s->name, sizeof(s->name), "%s x%d", name, threads);
}

int subjects_here(struct subject list[MAX_SUBJECTS], char *missing, int missing_size)
{
	static const char *const caps[] = {"amx", "avx512", "avx2", "c"};
	int n = 0, at = 0;
	missing[0] = '\0';
	add(list, &n, "ref", "ref", NULL, 2);
	add(list, &n, "ref", "ref", NULL, 7);
	for (size_t i = 0; i < sizeof(caps) / sizeof(caps[0]); i++) {
		if (variant_is_here(caps[i])) {
			add(list, &n, caps[i], "cpu", caps[i], 1);
			add(list, &n, caps[i], "cpu", caps[i], 3);
		} else if (at < missing_size) {
			at += snprintf(missing + at, (size_t)(missing_size - at), "%s%s", at ? ", " : "", caps[i]);
		}
	}
	return n;
}
