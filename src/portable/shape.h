/* SPDX-License-Identifier: MIT
 *
 * shape.h - what a kernel is told besides its buffers.  Passed by value on every API, so the layout must be the same for
 * every compiler: 8-byte fields first, then 4-byte ones.
 *
 * at_*: where a tensor starts in its buffer, in bytes (0 where buffers are pointers); ws_*: where things lie in the
 * workspace, in bytes.  Other offsets and strides count elements.
 *
 * Slots      a partial result of one KV head group: h_kv * row_tiles * tile_rows rows of D_V floats and as many lse
 *            (base 2).  Part j has slot 2 j for a piece that continues a request and 2 j + 1 for one that starts it;
 *            with costs.chunk, chunk c of request i has slot i * max_chunks + c. */
#ifndef FMLA_PORTABLE_SHAPE_H
#define FMLA_PORTABLE_SHAPE_H

#include "plan_core.h"

struct pk_shape {
	int64_t at_q, at_kv, at_table, at_lens, at_cu, at_sink, at_out, at_lse, at_parts, at_splits;
	int64_t ws_parts, ws_splits, ws_lse, ws_out; /* ws_splits: an int32 count, then struct pk_split */
	int64_t q_b, q_s, q_h;
	int64_t kv_page, kv_token, kv_head;
	int64_t table_stride;
	int64_t out_b, out_s, out_h;
	int64_t lse_b, lse_h, lse_s;
	int64_t window;
	int32_t b, s_q, h_kv, group;
	int32_t page, num_pages, max_len, d_qk;
	int32_t row_tiles, tile_rows, num_parts, plan_rows; /* plan_rows: rows that the plan kernel writes */
	int32_t max_chunks, causal;
	int32_t own_plan; /* 1: the plan is for decode and combine, splits go to ws_splits as struct pk_split */
	int32_t has_cu, has_sink, has_lse, fp16;
	float scale_log2, empty_lse;
	struct plan_costs costs;
};

/* The split requests, for combine: in the workspace, `count` and then as many of these. */
struct pk_split {
	int32_t req, pieces;
	int32_t first; /* the part with the first piece (not with costs.chunk) */
};

/* fmla_merge; types as in enum value_type. */
struct pk_merge_shape {
	int64_t at_in, at_in_lse, at_sink, at_out, at_lse;
	int64_t in_n, in_b, in_s, in_h;
	int64_t in_lse_n, in_lse_b, in_lse_h, in_lse_s;
	int64_t out_b, out_s, out_h;
	int64_t lse_b, lse_h, lse_s;
	int64_t rows; /* b * s_q * h_q */
	int32_t n, s_q, h_q, d_v;
	int32_t in_type, out_type;
	int32_t has_sink, has_lse;
	float empty_lse;
	int32_t unused; /* the size is a multiple of 8 */
};

/* fmla_kv_append. */
struct pk_append_shape {
	int64_t at_latent, at_rope, at_slots, at_kv;
	int64_t latent_n, latent_h, rope_n, rope_h;
	int64_t kv_page, kv_token, kv_head;
	int64_t slots_stride, n, num_slots;
	int32_t h_kv, d_latent, d_rope, page;
	int32_t slots_64, unused;
};

#endif
