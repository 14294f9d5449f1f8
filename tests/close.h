/* SPDX-License-Identifier: MIT
 *
 * Are two results the same answer?  NaN and infinities must sit in the same places; every finite value must be close
 * absolutely or relatively; and as vectors they must point the same way.  docs/testing.md derives the limits. */
#ifndef FMLA_TESTS_CLOSE_H
#define FMLA_TESTS_CLOSE_H

#include "data.h"

struct limits {
	double abs, rel, cos; /* |got - want| <= abs or <= rel * |want|; 1 - cosine <= cos (0: not asked) */
};
extern const struct limits limits_out;
struct limits limits_lse(double deviation); /* of the scores */

/* What was found: the worst element (by how far it exceeds its limit) and the figures over all. */
struct closeness {
	bool close;
	int64_t worst;  /* index of the worst element                   */
	double max_abs; /* largest absolute error of a finite element   */
	double cosine;  /* 1 - cosine of the finite elements            */
};

struct closeness close_values(const float *got, const float *want, int64_t n, struct limits limits);

/* Both parts of a result.  On failure `why` names the worst element with its coordinates and both values. */
bool close_results(const struct result *got, const struct result *want, char *why, size_t why_size);

#endif
