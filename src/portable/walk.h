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

/* Query tokens before request `req`, and of it. */
PK_FN int64_t pk_q_begin(const struct pk_shape *p, const PK_GLOBAL int32_t *cu, int req)
{
	return p->has_cu ? (int64_t)cu[req] : (int64_t)req * p->s_q;
}

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

/* ---- where a row's results go ------------------------------------------------------------------------------------- */

/* Row r of KV head `head` of a request: query token r / group, query head head * group + r % group. */
PK_FN int64_t pk_out_at(const struct pk_shape *p, const PK_GLOBAL int32_t *cu, int req, int head, int r)
{
	const int s = r / p->group, h = head * p->group + r % p->group;
	return (int64_t)req * p->out_b + (p->has_cu ? cu[req] + (int64_t)s : (int64_t)s) * p->out_s + h * p->out_h;
}

PK_FN int64_t pk_lse_at(const struct pk_shape *p, const PK_GLOBAL int32_t *cu, int req, int head, int r)
{
	const int s = r / p->group, h = head * p->group + r % p->group;
	return (int64_t)req * p->lse_b + h * p->lse_h + (p->has_cu ? cu[req] + (int64_t)s : (int64_t)s) * p->lse_s;
}

/* What the attention sink leaves of a row: 1 / (1 + 2^(sink - lse)), both in base 2. */
PK_FN float pk_sink_factor(const struct pk_shape *p, const PK_GLOBAL float *sink, int head, int r, float lse_log2)
{
	if (!p->has_sink)
		return 1.0f;
	return 1.0f / (1.0f + PK_EXP2(sink[head * p->group + r % p->group] * PK_LOG2E - lse_log2));
}

#endif
