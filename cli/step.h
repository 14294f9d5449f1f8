/* SPDX-License-Identifier: MIT
 *
 * step.h - one decoding step on a device: the tensors of a batch, its plan, and a KV cache per layer.
 *
 * A server decodes all layers of a model with one plan, each layer from its own cache, so no call finds its cache warm.
 * A step does the same with `layers` caches.  Data are normal random numbers, distinct in every page. */
#ifndef CLI_STEP_H
#define CLI_STEP_H

#include "batch.h"

struct step_tensor {
	struct fmla_tensor dl;
	int64_t shape[4];
};

struct step {
	fmla_ctx *ctx;
	int device; /* enum fmla_device_type */
	const struct batch *batch;
	struct layer_shape shape;
	int64_t layers, num_parts;
	size_t layer_bytes; /* of one KV cache */
	void *kv;           /* [layers] caches */
	struct step_tensor q, kv_cache, block_table, cache_seqlens, out, lse, plan_parts, plan_splits;
	struct fmla_decode_args args;
};

/* Traffic and work of one call: what has to move at least, and the products on visible keys. */
struct step_cost {
	double bytes, flop;
};

/* layers 0: as many as make 1 GiB of KV, at most 64.  with_kv false: shapes and lengths only, enough for a plan.
 * Exit codes; destroy also after a failure. */
int step_create(struct step *s, fmla_ctx *ctx, int device, const struct layer_shape *shape, const struct batch *batch,
                int64_t layers, uint64_t seed, bool with_kv);
void step_destroy(struct step *s);

fmla_status step_plan(struct step *s);
fmla_status step_decode(struct step *s, int64_t layer);

struct step_cost step_cost(const struct layer_shape *shape, const struct batch *batch);

/* Compares the results of layer 0 with the reference, request by request.  Adds to *wrong the requests that differ by
 * more than the tests allow, and raises *worst to the largest absolute error of `out`. */
int step_verify(struct step *s, int64_t *wrong, double *worst);

#endif
