/* SPDX-License-Identifier: MIT
 *
 * Who can decode host memory here: the ref backend and every CPU variant of this machine and build, on several numbers
 * of threads. */
#ifndef FMLA_TESTS_SUBJECTS_H
#define FMLA_TESTS_SUBJECTS_H

#include "flash_mla.h"

struct subject {
	char name[32];
	const char *backend, *cap; /* cap: value of FMLA_CPU, NULL: unset */
	int threads;
};

enum { MAX_SUBJECTS = 16 };

/* Fills `list` and returns how many there are.  `missing` gets the names of the CPU variants that are not here, "" when
 * all are. */
int subjects_here(struct subject list[MAX_SUBJECTS], char *missing, int missing_size);

/* A context for it; NULL with the reason on stderr when there is none. */
fmla_ctx *subject_context(const struct subject *s);

#endif
