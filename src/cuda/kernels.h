/* SPDX-License-Identifier: MIT
 *
 * The border between the host part of the CUDA backend (C) and its kernels (CUDA C): plain parameter structs and one
 * launcher per kernel, each of which only enqueues work on `stream` and returns a CUDA error code. */
#ifndef FMLA_KERNELS_H
#define FMLA_KERNELS_H

#include "plan_core.h"
#include "problem.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

/* A request that `pieces` consecutive parts share, `tokens` query tokens; pieces 0: none. */
struct split {
	int32_t req, first_part, pieces, tokens;
};

struct word128; /* of 16 bytes: ptx.cuh */

/* Parts of a decode launch.  One CTA walks one part for one tile of query rows of one KV head:
 *     blockIdx = {row_tile, kv_head, part}
 * so CTAs that read the same pages are neighbours.  Strides count elements. */
struct decode_params {
	const void *q;
	int64_t q_b, q_s, q_h;
	const int32_t *block_table;
	int64_t table_stride;
	const int32_t *cache_seqlens;
	const int32_t *cu_seqlens_q; /* NULL: s_q tokens each */
	const float *attn_sink;      /* NULL: none            */
	void *out;
	int64_t out_b, out_s, out_h;
	float *lse; /* NULL: not wanted */
	int64_t lse_b, lse_h, lse_s;

	int32_t max_len; /* max_pages * page: longer lengths are cut */
	int32_t b, s_q, h_kv, group, page, num_pages;
	int32_t slices; /* d_qk / 64: 9 or 8                                      */
	int32_t row_tiles;
	int32_t cluster;    /* 2: the CTAs of two row tiles share what they fetch; 1   */
	int32_t tile_rows;  /* rows of a tile: 8, 16, 32 (swapped) or 64          */
	int32_t page_shift; /* log2(page), -1: page is not a power of two          */
	int32_t box_shift;  /* log2 of the tokens of a TMA box, which divide a page and a tile */
	int32_t box_slices; /* slices of a TMA box: 2, 3, 4 if box_tokens is 64; 1 */
	int32_t num_parts;
	int32_t causal;
	int32_t window;   /* 0: none */
	float scale_log2; /* softmax_scale * log2(e) */
	float empty_lse;
	int32_t q_aligned;   /* q rows may be read 16 bytes at a time  */
	int32_t out_aligned; /* out rows may be written 16 bytes at a time */
	int32_t small;       /* sums of blocks, times parts, fit 31 bits */
	struct plan_costs costs;
	int32_t max_chunks; /* batch-invariant mode: chunks of the longest request; else 0 */

	/* Workspace.  A slot holds one piece of a split request: h_kv * row_tiles tiles of tile_rows rows.
	 * Slots 2 part (a piece that continues) and 2 part + 1 (one that starts); with chunks: request * max_chunks +
	 * chunk. */
	void *partial_out;        /* [slots][h_kv * row_tiles][tile_rows][512], normalised                  */
	int32_t partial_bytes;    /* of a value: 4 (fp32), 2 (fp16 with scales in the arrivals)             */
	float *partial_lse;       /* with chunks: [slots][h_kv * row_tiles][tile_rows], base 2, -inf: empty */
	struct word128 *arrivals; /* else: [2][h_kv * row_tiles][arrival_width][num_parts]; gather.cuh      */
	int32_t arrival_width;
};

/* The cache as TMA sees it: in boxes of box_slices slices, and of one slice. */
struct kv_maps {
	CUtensorMap group, slice;
};

/* What the kernels ask of the card. */
enum { SWAP_THREADS = 256, SEESAW_THREADS = 384, COMBINE_THREADS = 256 };
enum {
	MAX_LEN = INT32_MAX - BLOCK, /* of a request: longer ones are cut                        */
	MAX_ENTRIES = 128,           /* of a tile in gather.cuh                                      */
	WATCHERS = 128               /* threads of a CTA that wait there for the pieces of other CTAs */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Once per device, before the first launch: lets the kernels use their shared memory, loads them. */
cudaError_t fmla_prepare_decode_swap(void);
cudaError_t fmla_prepare_decode_seesaw(void);
cudaError_t fmla_prepare_combine(void);
/* decode_swap.cu: tiles of 8, 16 or 32 rows.  decode_seesaw.cu: tiles of 64 rows. */
cudaError_t fmla_launch_decode_swap(const struct decode_params *p, const CUtensorMap *kv, int fp16,
                                    cudaStream_t stream);
cudaError_t fmla_launch_decode_seesaw(const struct decode_params *p, const struct kv_maps *kv, int fp16,
                                      cudaStream_t stream);
/* combine.cu: batch-invariant mode, merges the chunks of requests. */
cudaError_t fmla_launch_combine(const struct decode_params *p, int num_sms, int fp16, cudaStream_t stream);
/* plan.cu: rows [num_rows >= num_parts] (the rest idle) and splits [b + 1] of fmla_plan; of *p it reads what
 * walk.cuh reads to find a part: b, s_q, lengths, max_len, window, num_parts, costs. */
cudaError_t fmla_launch_plan(const struct decode_params *p, struct part *rows, int64_t num_rows, int32_t *splits,
                             cudaStream_t stream);
/* pages.cu: *first (device memory, all ones before) becomes request << 32 | entry of the first wrong page. */
cudaError_t fmla_launch_check_pages(const struct decode_params *p, uint64_t *first, cudaStream_t stream);
/* merge.cu, append.cu. */
cudaError_t fmla_launch_merge(const struct merge_problem *p, cudaStream_t stream);
cudaError_t fmla_launch_append(const struct append_problem *p, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
