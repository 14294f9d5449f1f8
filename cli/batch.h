/* SPDX-License-Identifier: MIT
 *
 * batch.h - which requests are decoded together: one shape, a workload, or a recorded trace.  The options for it, and
 * the batches that they describe. */
#ifndef CLI_BATCH_H
#define CLI_BATCH_H

#include "cli.h"
#include "pages.h"
#include "trace.h"

/* What one attention layer looks like to one worker of a model. */
struct layer_shape {
	int64_t s_q, h_q, h_kv, d_qk, page;
	struct fmla_dtype dtype;
	int causal;
};

enum { MAX_HEADS = 8 };

struct batch_options {
	int64_t b, s_k; /* 0: not given */
	bool varlen;
	struct layer_shape shape; /* h_q: of heads[0], or 0 when not given  */
	int64_t heads[MAX_HEADS]; /* --h-q of `bench`, which takes several  */
	int num_heads;
	const char *workload, *trace;
	int max_batch;
	double step_ms;
	int64_t steps;
	uint64_t seed;
};

extern const struct batch_options batch_defaults;
extern const struct argp batch_argp; /* a child parser; its input is a struct batch_options */

/* One decoding step of a server. */
struct batch {
	char name[64];           /* "azure-conv", "s_k 4096", "step 1200" */
	int64_t b, s_k, longest; /* s_k: cached tokens of a request as asked for, or on average */
	int32_t *lengths;        /* [b] */
	bool varlen;
	struct pages pages;
};

/* The batches of the options, one after the other. */
struct batches {
	const struct batch_options *options;
	int64_t count, next; /* how many there are, which one comes next */
	struct trace trace;
	struct replay replay;
	int64_t replay_steps, replay_at;
	double mean_batch; /* of all steps of the trace */
};

int batches_open(struct batches *all, const struct batch_options *options); /* an exit code */
int batches_next(struct batches *all, struct batch *batch);                 /* an exit code */
void batch_free(struct batch *batch);
void batches_close(struct batches *all);

/* "bf16", "fp16" */
const char *dtype_name(struct fmla_dtype dtype);

#endif
