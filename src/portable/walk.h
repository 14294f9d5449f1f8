/* SPDX-License-Identifier: MIT
 *
 * walk.h - requests, the pieces of a part, what a row sees, and where its results go. */
#ifndef FMLA_PORTABLE_WALK_H
#define FMLA_PORTABLE_WALK_H

#include "dialect.h"

#include "shape.h"

/* ---- requests ---------------------------------------------------------------------------------------------------- */

PK_FN int pk_clamp(int x, int low, int high)
{
	return x < low ? low : x > high ? high : x;
}

/* Query tokens of a request. */
PK_FN int pk_tokens(const struct pk_shape *p, const PK_GLOBAL int32_t *cu, int req)
{
	return p->has_cu ? pk_clamp(cu[req + 1] - cu[req], 0, p->s_q) : p->s_q;
}

PK_FN int pk_length(const struct pk_shape *p, const PK_GLOBAL int32_t *lens, int req)
{
	return pk_clamp(lens[req], 0, p->max_len);
}

PK_FN struct blocks pk_blocks(const struct pk_shape *p, const PK_GLOBAL int32_t *lens, const PK_GLOBAL int32_t *cu,
                              int req)
{
	return plan_blocks(pk_length(p, lens, req), pk_tokens(p, cu, req), p->window);
}

/* ---- pieces ------------------------------------------------------------------------------------------------------ */

/* Consecutive blocks of one request that one group turns into one result. */
struct pk_piece {
	int req, begin, end; /* absolute blocks; begin == end: an empty request      */
	int length, tokens;  /* keys and query tokens of the request                 */
	int slot;            /* -1: the whole request, straight to out                */
};

/* The next piece of part number `number`; start with req -1.  0: there is none. */
PK_FN int pk_next_piece(const struct pk_shape *p, const PK_GLOBAL int32_t *lens, const PK_GLOBAL int32_t *cu,
                        const struct part *part, int number, struct pk_piece *piece)
{
	if (part->begin_req == PLAN_IDLE)
		return 0;
	int req = piece->req, begin = piece->end;
	struct blocks r = {0, 0};
	if (req < 0) {
		req = part->begin_req;
		begin = part->begin_block;
		r = pk_blocks(p, lens, cu, req);
	} else {
		r = pk_blocks(p, lens, cu, req);
		if (begin >= (req == part->end_req ? part->end_block : (int)r.end)) {
			if (++req > part->end_req)
				return 0;
			r = pk_blocks(p, lens, cu, req);
			begin = (int)r.begin;
		}
	}
	int end = req == part->end_req ? part->end_block : (int)r.end;
	piece->slot = -1;
	if (p->costs.chunk > 0) { /* one piece a chunk, whoever computes it */
		const int chunk = begin / p->costs.chunk, border = (chunk + 1) * p->costs.chunk;
		end = end < border ? end : border;
		if (plan_chunks(p->costs.chunk, r) > 1)
			piece->slot = req * p->max_chunks + chunk;
	} else if (begin != (int)r.begin || end != (int)r.end) {
		piece->slot = 2 * number + (begin == (int)r.begin);
	}
	piece->req = req;
	piece->begin = begin;
	piece->end = end;
	piece->length = pk_length(p, lens, req);
	piece->tokens = pk_tokens(p, cu, req);
	return 1;
}

/* The keys low .. high - 1 that query token s of the piece's request sees. */
struct pk_keys {
	int low, high;
};

PK_FN struct pk_keys pk_row_keys(const struct pk_shape *p, const struct pk_piece *piece, int s)
{
	const int64_t self = (int64_t)piece->length - piece->tokens + s;
	struct pk_keys k;
	k.low = p->window > 0 && self + 1 > p->window ? (int)(self + 1 - p->window) : 0;
	k.high = p->causal && self + 1 < piece->length ? (int)(self + 1 > 0 ? self + 1 : 0) : piece->length;
	return k;
}

/* ---- where a row's data lies ------------------------------------------------------------------------------------- */

/* Row r of KV head `head` of a request: query token r / group, query head head * group + r % group.  Query token s has
 * this place on the tensors' axis of tokens: */
PK_FN int64_t pk_token_at(const struct pk_shape *p, const PK_GLOBAL int32_t *cu, int req, int s)
{
	return p->has_cu ? cu[req] + (int64_t)s : (int64_t)s;
}

/* The query token and the query head of row r. */
PK_FN int pk_row_token(const struct pk_shape *p, int r)
{
	return p->s_q == 1 ? 0 : r / p->group;
}

PK_FN int pk_row_head(const struct pk_shape *p, int head, int r)
{
	return head * p->group + r - pk_row_token(p, r) * p->group;
}

PK_FN int64_t pk_q_at(const struct pk_shape *p, const PK_GLOBAL int32_t *cu, int req, int head, int r)
{
	return (int64_t)req * p->q_b + pk_token_at(p, cu, req, pk_row_token(p, r)) * p->q_s +
	       pk_row_head(p, head, r) * p->q_h;
}

PK_FN int64_t pk_out_at(const struct pk_shape *p, const PK_GLOBAL int32_t *cu, int req, int head, int r)
{
	return (int64_t)req * p->out_b + pk_token_at(p, cu, req, pk_row_token(p, r)) * p->out_s +
	       pk_row_head(p, head, r) * p->out_h;
}

PK_FN int64_t pk_lse_at(const struct pk_shape *p, const PK_GLOBAL int32_t *cu, int req, int head, int r)
{
	return (int64_t)req * p->lse_b + pk_row_head(p, head, r) * p->lse_h +
	       pk_token_at(p, cu, req, pk_row_token(p, r)) * p->lse_s;
}

/* Row `row` of a row tile among the partial results. */
PK_FN int64_t pk_partial_row(const struct pk_shape *p, int slot, int head, int tile, int row)
{
	return (((int64_t)slot * p->h_kv + head) * p->row_tiles + tile) * p->tile_rows + row;
}

/* ---- the end of a row ---------------------------------------------------------------------------------------------- */

/* What the attention sink leaves of a row: 1 / (1 + 2^(sink - lse)), both in base 2. */
PK_FN float pk_sink_factor(const struct pk_shape *p, const PK_GLOBAL float *sink, int head, int r, float lse_log2)
{
	if (!p->has_sink)
		return 1.0f;
	return 1.0f / (1.0f + PK_EXP2(sink[pk_row_head(p, head, r)] * PK_LOG2E - lse_log2));
}

/* Where the rows of a group's row tile end. */
struct pk_ends {
	const PK_GLOBAL int32_t *cu;
	const PK_GLOBAL float *sink;
	PK_GLOBAL float *lse, *partial_lse;
	int head, tile;
};

/* Row `row` of the tile has seen keys of maximum `top` and sum `sum`, or (wild) a page out of range: writes its lse and
 * returns what its O is to be scaled with.  No barrier in here: PoCL does not survive one in a function called from a
 * loop. */
PK_FN float pk_settle_row(const struct pk_shape *p, const struct pk_ends *e, const struct pk_piece *piece, int row,
                          float top, float sum, int wild)
{
	const float lse = wild ? PK_NAN : sum == 0.0f ? -PK_INFINITY : top + PK_LOG2(sum);
	const float factor = wild ? PK_NAN : sum == 0.0f ? 0.0f : 1.0f / sum;
	const int r = e->tile * p->tile_rows + row;
	if (piece->slot >= 0) { /* combine applies the sink */
		e->partial_lse[pk_partial_row(p, piece->slot, e->head, e->tile, row)] = lse;
		return factor;
	}
	if (p->has_lse)
		e->lse[pk_lse_at(p, e->cu, piece->req, e->head, r)] = sum == 0.0f && !wild ? p->empty_lse : lse * PK_LN2;
	return sum == 0.0f ? factor : factor * pk_sink_factor(p, e->sink, e->head, r, lse);
}

#endif
