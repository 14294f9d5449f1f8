/* SPDX-License-Identifier: MIT
 *
 * workload.h - batch lengths as real servers see them, without a trace file at hand.
 *
 * A table holds the quantiles of "tokens in the cache of a running request, in a decode step chosen at random from the
 * whole trace": what a batch is made of.  A batch of b draws one length from each of b equal slices of the
 * distribution and shuffles them, so that even a small batch has the trace's shape; the same seed gives the same batch.
 */
#ifndef CLI_WORKLOAD_H
#define CLI_WORKLOAD_H

#include "trace.h"

#include <stdint.h>

enum { WORKLOAD_KNOTS = 21 };

struct workload {
	const char *name, *source, *licence;
	int32_t quantiles[WORKLOAD_KNOTS]; /* at 0 %, 5 %, ... 100 % */
};

extern const struct workload workloads[];
extern const int num_workloads;

const struct workload *workload_find(const char *name); /* NULL: unknown */
void workload_lengths(const struct workload *w, int64_t b, uint64_t seed, int32_t *lengths);

/* The quantiles of a trace: how the tables were made (`flashmla info --trace FILE`). */
void workload_quantiles(const struct trace *t, int32_t quantiles[WORKLOAD_KNOTS]);

/* Lengths drawn from normal(s_k, s_k / 2), cut to [1, 4 s_k]: the variable batches of FlashMLA's own benchmark. */
void normal_lengths(int64_t s_k, int64_t b, uint64_t seed, int32_t *lengths);

void shuffle(int32_t *values, int64_t count, uint64_t seed);

#endif
