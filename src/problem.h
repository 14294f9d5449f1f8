/* SPDX-License-Identifier: MIT
 *
 * The internal contract.  check.c turns the user's tensors into one trusted `struct problem`; everything behind it
 * (plan, decode, combine of every backend) reads only this.  Compiles as C11 and as CUDA C. */
#ifndef FMLA_PROBLEM_H
#define FMLA_PROBLEM_H

#include "flash_mla.h"

#include <stdint.h>

#include "plan_types.h" /* after stdint.h */

enum value_type { TYPE_BF16, TYPE_FP16, TYPE_FP32 };

/* Strides count elements.  rows = s_q * group query rows share one KV head; row = s * group + g, head = kv_head * group
 * + g. */
struct problem {
	enum value_type type;
	struct fmla_device device;
	int64_t b, s_q; /* s_q: the largest number of query tokens of a request                        */
	int64_t total_q;
	int64_t h_q, h_kv, group, rows;
	int64_t d_qk, d_v;
	int64_t page, num_pages, max_pages;

	const void
	    *q; /* token n of request i at q + (i * q_b + n * q_s + h * q_h); ragged: q_b = 0, n += cu_seqlens_q[i] */
	int64_t q_b, q_s, q_h;
	const void *kv;
	int64_t kv_page, kv_token, kv_head;
	const int32_t *block_table;
	int64_t table_stride;
	const int32_t *cache_seqlens;
	const int32_t *cu_seqlens_q; /* NULL: every request has s_q tokens */
	const float *attn_sink;      /* NULL: none                         */
	void *out;
	int64_t out_b, out_s, out_h;
	float *lse; /* NULL: not wanted */
	int64_t lse_b, lse_h, lse_s;

	float scale; /* softmax_scale, natural units */
	int causal;
	int64_t window; /* 0: none */
	float empty_lse;
	int batch_invariant, check_pages;

	struct part *plan_parts; /* NULL: none given */
	int64_t num_parts;
	int32_t *plan_splits;
	void *workspace;
	size_t workspace_size;
	void *stream;

	/* OpenCL: the pointers above are buffer handles (cl_mem), and tensors start this many bytes into them.  Else 0. */
	struct {
		int64_t q, kv, table, lens, cu, sink, out, lse, parts, splits;
	} at;
};

/* log2 of a page's tokens; -1: not a power of two. */
static inline int page_shift(const struct problem *p)
{
	int shift = 0;
	while ((int64_t)1 << shift < p->page)
		shift++;
	return (int64_t)1 << shift == p->page ? shift : -1;
}

struct merge_problem {
	enum value_type in_type, out_type;
	struct fmla_device device;
	int64_t n, b, s_q, h_q, d_v;
	const void *in;
	int64_t in_n, in_b, in_s, in_h;
	const float *in_lse;
	int64_t in_lse_n, in_lse_b, in_lse_h, in_lse_s;
	const float *attn_sink;
	void *out;
	int64_t out_b, out_s, out_h;
	float *lse;
	int64_t lse_b, lse_h, lse_s;
	float empty_lse;
	void *stream;
	struct {
		int64_t in, in_lse, sink, out, lse;
	} at; /* see struct problem */
};

struct append_problem {
	enum value_type type;
	struct fmla_device device;
	int64_t n, h_kv, d_latent, d_rope; /* d_rope 0: k_rope is NULL */
	const void *latent;
	int64_t latent_n, latent_h;
	const void *rope;
	int64_t rope_n, rope_h;
	const void *slots;
	int slots_64; /* 1: int64, 0: int32 */
	int64_t slots_stride;
	void *kv;
	int64_t num_pages, page, kv_page, kv_token, kv_head;
	void *stream;
	struct {
		int64_t latent, rope, slots, kv;
	} at; /* see struct problem */
};

/* The slot of new token n; negative: skip it.  Host memory only. */
static inline int64_t append_slot(const struct append_problem *p, int64_t n)
{
	return p->slots_64 ? ((const int64_t *)p->slots)[n * p->slots_stride]
	                   : ((const int32_t *)p->slots)[n * p->slots_stride];
}

#endif
