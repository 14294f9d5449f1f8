/* SPDX-License-Identifier: MIT
 *
 * Tensors for a case, adversarial where the contract allows it: NaN in every cache row that no query token sees and in
 * every unused page, 2147480000 or -7 in every unused table entry, shuffled pages, NaN in outputs before the call.
 * Every buffer lies between guard pages, its end at the upper one.
 *
 * All of it lives in host memory.  A GPU check copies each of the `tensors` to the device (bytes from host, all of
 * them), points t.data there and sets t.device; afterwards it copies the two outputs back. */
#ifndef FMLA_TESTS_DATA_H
#define FMLA_TESTS_DATA_H

#include "cases.h"

#include "flash_mla.h"

enum { DATA_DIMS = 5 };

struct data_tensor {
	struct fmla_tensor t; /* t.data is `host` until a GPU check changes it */
	int64_t shape[DATA_DIMS], strides[DATA_DIMS];
	char *host;
	size_t bytes; /* of the whole buffer, byte_offset and gaps included */
};

enum data_name { DATA_Q, DATA_KV, DATA_TABLE, DATA_LENS, DATA_CU, DATA_SINK, DATA_OUT, DATA_LSE, DATA_TENSORS };

struct data {
	struct test_case c;
	int64_t total_q;
	struct data_tensor tensors[DATA_TENSORS]; /* bytes 0: not part of this case */
	struct fmla_decode_args args;             /* points into `tensors`: do not copy the struct */
};

/* Dense results, in the order [query token, head, value] and [query token, head]. */
struct result {
	int64_t tokens, h_q, d_v;
	float *out, *lse;
	double deviation; /* of the scores, see close.c; 0: around one at most */
};

void data_make(struct data *d, const struct test_case *c);
void data_free(struct data *d);

/* NaN into both outputs, gaps included. */
void data_poison_outputs(struct data *d);
/* Reads the outputs in host memory.  False when a gap between output elements was written. */
bool data_result(const struct data *d, struct result *r);
void result_free(struct result *r);

/* Poison, decode on the host with a fresh workspace of exactly the size asked for, result.  The context's backend must
 * take host memory.  `ok` (may be NULL) gets what data_result says. */
fmla_status data_decode(struct data *d, fmla_ctx *ctx, struct result *r, bool *ok);

/* ---- pieces for other tests ------------------------------------------------------------------------------------ */

/* Memory between two inaccessible pages; the end is as close to the upper one as `align` allows. */
void *guarded_alloc(size_t bytes, size_t align);
void guarded_free(void *p, size_t bytes);

/* A tensor over fresh guarded memory.  `order` lists the axes from the outermost in memory to the innermost, pad[axis]
 * elements follow each run of that axis; NULL: dense row-major. */
void data_tensor_make(struct data_tensor *t, struct fmla_dtype dtype, int ndim, const int64_t *shape, const int *order,
                      const int64_t *pad, size_t byte_offset);
void data_tensor_free(struct data_tensor *t);

uint64_t random_bits(uint64_t seed, uint64_t index);
double random_normal(uint64_t seed, uint64_t index); /* about normal, within +-3.5 */
float value_get(struct fmla_dtype dtype, const void *base, int64_t i);
void value_set(struct fmla_dtype dtype, void *base, int64_t i, float v);

#endif
