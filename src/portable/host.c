/* SPDX-License-Identifier: MIT */
#include "host.h"

#include <string.h>

enum {
	ALIGN = 256,
	MAX_PARTS = 1024,      /* PK_MAX_PARTS of plan.h                            */
	COMBINE_GROUPS = 1024, /* PK_COMBINE_GROUPS of merge.h                      */
	COMBINE_CTAS = 528,    /* of mma_combine.cuh: four an SM of a large GPU        */
	APPEND_GROUPS = 4096,  /* PK_APPEND_GROUPS of merge.h                       */
	CHUNK_BLOCKS = 32,     /* batch-invariant mode: a split every 2048 tokens   */
	MANY_REQUESTS = 1024,  /* more are planned once, not by every CTA              */
	OVERHEAD_BLOCKS = 2,   /* price of starting a request                       */
	MAX_SNAP_BLOCKS = 2,
	WHOLE_BLOCKS = 4 /* what a batch dealt out evenly may cost more        */
};

const char *const pk_kernel_name[PK_KERNELS] = {
    [PK_PLAN] = "fmla_pk_plan",
    [PK_DECODE_BF16] = "fmla_pk_decode_bf16",
    [PK_DECODE_FP16] = "fmla_pk_decode_fp16",
    [PK_COMBINE] = "fmla_pk_combine",
    [PK_MERGE] = "fmla_pk_merge",
    [PK_APPEND] = "fmla_pk_append",
    [PK_PAGES] = "fmla_pk_pages",
};

static int64_t div_up(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

static int64_t row_tiles(const struct problem *p, struct pk_target t)
{
	return p->rows ? div_up(p->rows, t.tile_rows) : 1;
}

static int64_t tiles(const struct problem *p, struct pk_target t)
{
	return p->h_kv * row_tiles(p, t);
}

int64_t pk_num_parts(const struct problem *p, struct pk_target t)
{
	const int64_t parts = t.workers / tiles(p, t);
	return parts < 1 ? 1 : parts > MAX_PARTS ? MAX_PARTS : parts;
}

static int64_t max_chunks(const struct problem *p)
{
	return p->batch_invariant ? div_up(p->max_pages * p->page, CHUNK_BLOCKS * BLOCK) : 0;
}

int pk_splits_requests(const struct problem *p, struct pk_target t)
{
	return p->batch_invariant || pk_num_parts(p, t) > 1;
}

/* ---- workspace ----------------------------------------------------------------------------------------------------- */

/* Requests that a plan can split. */
static int64_t most_splits(const struct problem *p, struct pk_target t)
{
	const int64_t borders = pk_num_parts(p, t) - 1;
	return p->batch_invariant || p->b < borders ? p->b : borders;
}

struct layout {
	int64_t parts, splits, lse, out, end;
};

static int64_t align_up(int64_t bytes)
{
	return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static struct layout layout_of(const struct problem *p, struct pk_target t)
{
	const int64_t parts = pk_num_parts(p, t);
	const int64_t slots = p->batch_invariant ? p->b * max_chunks(p) : parts > 1 ? 2 * parts : 0;
	const int64_t rows = slots * tiles(p, t) * t.tile_rows;
	struct layout at = {.parts = 0};
	at.splits = align_up(parts * (int64_t)sizeof(struct part));
	at.lse = at.splits + align_up((int64_t)sizeof(int32_t) + most_splits(p, t) * (int64_t)sizeof(struct pk_split));
	at.out = at.lse + align_up(rows * (int64_t)sizeof(float));
	at.end = at.out + rows * D_V * (int64_t)sizeof(float);
	return at;
}

size_t pk_workspace_size(const struct problem *p, struct pk_target t)
{
	return (size_t)layout_of(p, t).end;
}

/* Units of work of combine at most: rows of split requests, and quarters of rows while those are few. */
static int64_t combine_groups(const struct problem *p, struct pk_target t)
{
	const int64_t units = 4 * most_splits(p, t) * p->s_q * p->h_q;
	return units < COMBINE_GROUPS ? units : COMBINE_GROUPS;
}

/* ---- calls --------------------------------------------------------------------------------------------------------- */

static struct pk_shape shape_of(const struct problem *p, struct pk_target t)
{
	const struct layout at = layout_of(p, t);
	const int64_t keys = p->max_pages * p->page;
	return (struct pk_shape){
	    .at_q = p->at.q,
	    .at_kv = p->at.kv,
	    .at_table = p->at.table,
	    .at_lens = p->at.lens,
	    .at_cu = p->at.cu,
	    .at_sink = p->at.sink,
	    .at_out = p->at.out,
	    .at_lse = p->at.lse,
	    .at_parts = p->at.parts,
	    .at_splits = p->at.splits,
	    .ws_parts = at.parts,
	    .ws_splits = at.splits,
	    .ws_lse = at.lse,
	    .ws_out = at.out,
	    .q_b = p->q_b,
	    .q_s = p->q_s,
	    .q_h = p->q_h,
	    .kv_page = p->kv_page,
	    .kv_token = p->kv_token,
	    .kv_head = p->kv_head,
	    .table_stride = p->table_stride,
	    .out_b = p->out_b,
	    .out_s = p->out_s,
	    .out_h = p->out_h,
	    .lse_b = p->lse_b,
	    .lse_h = p->lse_h,
	    .lse_s = p->lse_s,
	    .window = p->window,
	    .b = (int32_t)p->b,
	    .s_q = (int32_t)p->s_q,
	    .h_kv = (int32_t)p->h_kv,
	    .group = (int32_t)p->group,
	    .page = (int32_t)p->page,
	    .num_pages = (int32_t)p->num_pages,
	    .max_len = (int32_t)(keys < INT32_MAX - BLOCK ? keys : INT32_MAX - BLOCK),
	    .d_qk = (int32_t)p->d_qk,
	    .row_tiles = (int32_t)row_tiles(p, t),
	    .tile_rows = t.tile_rows,
	    .num_parts = (int32_t)pk_num_parts(p, t),
	    .max_chunks = (int32_t)max_chunks(p),
	    .causal = p->causal,
	    .has_cu = p->cu_seqlens_q != NULL,
	    .has_sink = p->attn_sink != NULL,
	    .has_lse = p->lse != NULL,
	    .fp16 = p->type == TYPE_FP16,
	    .scale_log2 = p->scale * 1.44269504088896341f,
	    .empty_lse = p->empty_lse,
	    .costs = {.overhead = OVERHEAD_BLOCKS,
	              .min_blocks = 1,
	              .max_snap = MAX_SNAP_BLOCKS,
	              .chunk = p->batch_invariant ? CHUNK_BLOCKS : 0,
	              .whole = WHOLE_BLOCKS,
	              .even = 1},
	};
}

static struct pk_call decode_call(const struct problem *p, struct pk_target t, enum pk_kernel kernel, int64_t groups,
                                  int num_buffers, const void *const buffer[])
{
	struct pk_call c = {.kernel = kernel, .groups = groups, .num_buffers = num_buffers};
	memcpy(c.buffer, buffer, (size_t)num_buffers * sizeof(*buffer));
	c.shape.decode = shape_of(p, t);
	c.shape_size = sizeof(c.shape.decode);
	return c;
}

struct pk_call pk_plan_call(const struct problem *p, struct pk_target t)
{
	const void *const buffer[] = {p->cache_seqlens, p->cu_seqlens_q, p->plan_parts, p->plan_splits};
	struct pk_call c = decode_call(p, t, PK_PLAN, 1, 4, buffer);
	c.shape.decode.plan_rows = (int32_t)p->num_parts;
	c.shape.decode.costs.even = 0; /* only the CTAs of decode_mma.cu know the shortest request */
	return c;
}

struct pk_call pk_own_plan_call(const struct problem *p, struct pk_target t)
{
	const void *const buffer[] = {p->cache_seqlens, p->cu_seqlens_q, p->workspace, p->workspace};
	struct pk_call c = decode_call(p, t, PK_PLAN, 1, 4, buffer);
	c.shape.decode.plan_rows = c.shape.decode.num_parts;
	c.shape.decode.at_parts = c.shape.decode.ws_parts;
	c.shape.decode.at_splits = c.shape.decode.ws_splits;
	c.shape.decode.own_plan = 1;
	c.shape.decode.costs.even = 0;
	return c;
}

struct pk_call pk_pages_call(const struct problem *p, struct pk_target t)
{
	const void *const buffer[] = {p->block_table, p->cache_seqlens, p->cu_seqlens_q, p->workspace};
	return decode_call(p, t, PK_PAGES, 1, 4, buffer);
}

struct pk_call pk_decode_call(const struct problem *p, struct pk_target t)
{
	const void *const buffer[] = {p->q,         p->kv,  p->block_table, p->cache_seqlens, p->cu_seqlens_q,
	                              p->attn_sink, p->out, p->lse,         p->workspace};
	return decode_call(p, t, p->type == TYPE_FP16 ? PK_DECODE_FP16 : PK_DECODE_BF16, pk_num_parts(p, t) * tiles(p, t),
	                   9, buffer);
}

static int even(int64_t a, int64_t b, int64_t c)
{
	return a % 2 == 0 && b % 2 == 0 && c % 2 == 0;
}

int pk_mma_plans_itself(const struct problem *p)
{
	return !p->batch_invariant && p->b <= MANY_REQUESTS;
}

/* For combine after decode_mma.cu: warps that share a row's pieces, about so many that each has four at a time; few pieces:
 * more columns a warp.  Batch-invariant mode: fixed, or the order of additions would depend on the batch. */
struct combine_team {
	int team, wide;
};

static struct combine_team combine_team(const struct problem *p, int64_t num_parts)
{
	const int64_t pieces = p->batch_invariant ? 16 : num_parts / (p->b > 0 ? p->b : 1);
	return (struct combine_team){pieces >= 24 ? 8 : pieces >= 12 ? 4 : pieces >= 8 ? 2 : 1, pieces < 4 ? 2 : 1};
}

struct mma_buffers pk_mma_buffers(const struct problem *p, struct pk_target t, const struct pk_call *decode)
{
	const struct pk_shape *shape = &decode->shape.decode;
	const int64_t parts = shape->num_parts, runs = p->b > 0 && p->b <= parts ? parts / p->b : 1;
	const struct combine_team team = combine_team(p, parts);
	const int q_pairs = (uintptr_t)p->q % 4 == 0 && even(p->q_b, p->q_s, p->q_h);
	const int out_pairs = (uintptr_t)p->out % 4 == 0 && even(p->out_b, p->out_s, p->out_h);
	const int64_t splits = most_splits(p, t), units = splits * p->s_q * p->h_q * 4 / team.wide;
	const int64_t groups = div_up(units * team.team, MMA_COMBINE_WARPS);
	char *const workspace = p->workspace;
	return (struct mma_buffers){
	    .q = p->q,
	    .kv = p->kv,
	    .table = p->block_table,
	    .lens = p->cache_seqlens,
	    .cu = p->cu_seqlens_q,
	    .sink = p->attn_sink,
	    .out = p->out,
	    .lse = p->lse,
	    .parts = (const struct part *)(const void *)(workspace + shape->ws_parts),
	    .splits = (int32_t *)(void *)(workspace + shape->ws_splits),
	    .plans_itself = pk_mma_plans_itself(p),
	    .partial_lse = (float *)(void *)(workspace + shape->ws_lse),
	    .partial_out = (float *)(void *)(workspace + shape->ws_out),
	    .page_shift = page_shift(p),
	    .plain = p->b > 0 && pk_mma_plans_itself(p) && page_shift(p) >= 0 && q_pairs && out_pairs && p->d_qk == D_QK &&
	             p->h_kv == 1 && p->s_q == 1 && !p->cu_seqlens_q && p->window == 0 && p->page >= BLOCK &&
	             p->kv_token == D_QK,
	    .q_pairs = q_pairs,
	    .out_pairs = out_pairs,
	    .most_splits = (int)splits,
	    .guess_each = parts < p->b ? (int)div_up(p->b, parts) : 0,
	    .guess_runs = (float)runs,
	    .combine_ctas = (int)(groups < COMBINE_CTAS ? groups : COMBINE_CTAS),
	    .combine_team = team.team,
	    .combine_wide = team.wide,
	};
}

struct pk_call pk_combine_call(const struct problem *p, struct pk_target t)
{
	const void *const buffer[] = {p->cache_seqlens, p->cu_seqlens_q, p->attn_sink, p->out, p->lse, p->workspace};
	return decode_call(p, t, PK_COMBINE, combine_groups(p, t), 6, buffer);
}

struct pk_call pk_merge_call(const struct merge_problem *p)
{
	struct pk_call c = {.kernel = PK_MERGE,
	                    .groups = p->b * p->s_q * p->h_q,
	                    .num_buffers = 5,
	                    .buffer = {p->in, p->in_lse, p->attn_sink, p->out, p->lse},
	                    .shape_size = sizeof(c.shape.merge)};
	c.shape.merge = (struct pk_merge_shape){.at_in = p->at.in,
	                                        .at_in_lse = p->at.in_lse,
	                                        .at_sink = p->at.sink,
	                                        .at_out = p->at.out,
	                                        .at_lse = p->at.lse,
	                                        .in_n = p->in_n,
	                                        .in_b = p->in_b,
	                                        .in_s = p->in_s,
	                                        .in_h = p->in_h,
	                                        .in_lse_n = p->in_lse_n,
	                                        .in_lse_b = p->in_lse_b,
	                                        .in_lse_h = p->in_lse_h,
	                                        .in_lse_s = p->in_lse_s,
	                                        .out_b = p->out_b,
	                                        .out_s = p->out_s,
	                                        .out_h = p->out_h,
	                                        .lse_b = p->lse_b,
	                                        .lse_h = p->lse_h,
	                                        .lse_s = p->lse_s,
	                                        .rows = c.groups,
	                                        .n = (int32_t)p->n,
	                                        .s_q = (int32_t)p->s_q,
	                                        .h_q = (int32_t)p->h_q,
	                                        .d_v = (int32_t)p->d_v,
	                                        .in_type = p->in_type,
	                                        .out_type = p->out_type,
	                                        .has_sink = p->attn_sink != NULL,
	                                        .has_lse = p->lse != NULL,
	                                        .empty_lse = p->empty_lse};
	return c;
}

struct pk_call pk_append_call(const struct append_problem *p)
{
	struct pk_call c = {.kernel = PK_APPEND,
	                    .groups = p->n < APPEND_GROUPS ? p->n : APPEND_GROUPS,
	                    .num_buffers = 4,
	                    .buffer = {p->latent, p->rope, p->slots, p->kv},
	                    .shape_size = sizeof(c.shape.append)};
	c.shape.append = (struct pk_append_shape){.at_latent = p->at.latent,
	                                          .at_rope = p->at.rope,
	                                          .at_slots = p->at.slots,
	                                          .at_kv = p->at.kv,
	                                          .latent_n = p->latent_n,
	                                          .latent_h = p->latent_h,
	                                          .rope_n = p->rope_n,
	                                          .rope_h = p->rope_h,
	                                          .kv_page = p->kv_page,
	                                          .kv_token = p->kv_token,
	                                          .kv_head = p->kv_head,
	                                          .slots_stride = p->slots_stride,
	                                          .n = p->n,
	                                          .num_slots = p->num_pages * p->page,
	                                          .h_kv = (int32_t)p->h_kv,
	                                          .d_latent = (int32_t)p->d_latent,
	                                          .d_rope = (int32_t)p->d_rope,
	                                          .page = (int32_t)p->page,
	                                          .slots_64 = p->slots_64};
	return c;
}

fmla_status pk_pages_answer(struct fmla_ctx *ctx, const struct problem *p, const int32_t answer[3])
{
	if (answer[0] < 0)
		return FMLA_OK;
	return fmla_fail(ctx, FMLA_ERR_PAGE, "block_table[%d, %d] is %d, kv_cache has %lld pages", answer[0], answer[1],
	                 answer[2], (long long)p->num_pages);
}
