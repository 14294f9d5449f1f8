/* SPDX-License-Identifier: MIT
 *
 * merge.h - stage 4, combine, its public sister merge, the append of new tokens, and the search for wild pages. */
#ifndef FMLA_PORTABLE_MERGE_H
#define FMLA_PORTABLE_MERGE_H

#include "walk.h"

/* Value i of an array of enum value_type, and back. */
PK_FN float pk_load(const PK_GLOBAL char *base, int type, int64_t i)
{
	const uint16_t v = type == 2 ? (uint16_t)0 : ((const PK_GLOBAL uint16_t *)base)[i];
	return type == 2 ? ((const PK_GLOBAL float *)base)[i] : type == 1 ? pk_from_fp16(v) : pk_from_bf16(v);
}

PK_FN void pk_store(PK_GLOBAL char *base, int type, int64_t i, float x)
{
	if (type == 2)
		((PK_GLOBAL float *)base)[i] = x;
	else
		((PK_GLOBAL uint16_t *)base)[i] = type == 1 ? pk_to_fp16(x) : pk_to_bf16(x);
}

/* ---- combine ----------------------------------------------------------------------------------------------------- */

#define PK_COMBINE_DEPTH  4 /* pieces whose loads are in flight at once */
#define PK_COMBINE_WIDTH  4 /* columns of a work-item                    */
#define PK_COMBINE_LANES  8 /* at most */
#define PK_COMBINE_GROUPS 1024

/* out = sum_j 2^(lse_j - lse) out_j over the pieces j of a split request, which are normalised, lse in base 2.  A NaN
 * lse poisons the row.
 * Unit    a row of a split request, or a quarter of its columns while there are few
 * Lane    128 work-items (quarters: 32).  A team of lanes takes a unit, each lane some of its pieces, and adds the
 *         lanes' sums at last: all eight lanes when units are quarters, else one.  Batch-invariant mode: always both
 *         lanes for a row, or the order of additions would depend on the batch. */
PK_KERNEL fmla_pk_combine(const PK_GLOBAL char *PK_RESTRICT lens_, const PK_GLOBAL char *PK_RESTRICT cu_,
                          const PK_GLOBAL char *PK_RESTRICT sink_, PK_GLOBAL char *PK_RESTRICT out_,
                          PK_GLOBAL char *PK_RESTRICT lse_, const PK_GLOBAL char *PK_RESTRICT ws,
                          const struct pk_shape p)
{
	PK_SHARED float tops[PK_COMBINE_LANES];
	PK_SHARED float sums[PK_COMBINE_LANES];
	PK_SHARED float values[PK_ITEMS * PK_COMBINE_WIDTH]; /* [lane][column] */
	const PK_GLOBAL int32_t *lens = PK_IN(int32_t, lens_, p.at_lens), *cu = PK_IN(int32_t, cu_, p.at_cu);
	const PK_GLOBAL float *sink = PK_IN(float, sink_, p.at_sink), *partial = PK_IN(float, ws, p.ws_out);
	const PK_GLOBAL float *partial_lse = PK_IN(float, ws, p.ws_lse);
	PK_GLOBAL char *out = PK_AT(char, out_, p.at_out);
	PK_GLOBAL float *lse_out = PK_AT(float, lse_, p.at_lse);
	const int count = *PK_IN(int32_t, ws, p.ws_splits);
	const PK_GLOBAL struct pk_split *splits = PK_IN(struct pk_split, ws, p.ws_splits + 4);

	const int most_rows = p.s_q * p.group * p.h_kv;
	const int parts = p.costs.chunk == 0 && (int64_t)count * most_rows * 4 <= PK_COMBINE_GROUPS ? 4 : 1;
	const int width = D_V / parts, items = width / PK_COMBINE_WIDTH, lanes = PK_ITEMS / items;
	const int team = p.costs.chunk == 0 && parts == 1 ? 1 : lanes, teams = lanes / team;
	const int t = PK_ITEM(), lane = t / items, column = t % items, my_team = lane / team, leader = my_team * team;
	const int64_t slot_rows = (int64_t)p.h_kv * p.row_tiles * p.tile_rows, units = (int64_t)count * most_rows * parts;

	for (int64_t u = (int64_t)PK_GROUP() * teams; u < units; u += PK_COMBINE_GROUPS * teams) {
		const int64_t unit = u + my_team < units ? u + my_team : u, whole = parts == 4 ? unit / 4 : unit;
		const int64_t number = whole / most_rows; /* of the request, in the list */
		const int i = (int)(whole - number * most_rows), from = (int)(unit & (parts - 1)) * width;
		const struct pk_split split = splits[number];
		const int rows = pk_tokens(&p, cu, split.req) * p.group, head = i / (p.s_q * p.group),
		          r = i % (p.s_q * p.group);
		const int there = u + my_team < units && r < rows; /* ragged queries: another request may have more rows */
		const int pieces = there ? split.pieces : 0;
		const int chunks = p.costs.chunk > 0;
		const int slot = chunks
		                     ? split.req * p.max_chunks + (int)pk_blocks(&p, lens, cu, split.req).begin / p.costs.chunk
		                     : 2 * split.first + 1; /* of piece 0 */
		const int row = head * p.row_tiles * p.tile_rows + r;
		float top = -PK_INFINITY, sum = 0.0f, x[PK_COMBINE_WIDTH] = {0.0f, 0.0f, 0.0f, 0.0f};
		for (int j0 = lane - leader; j0 < pieces; j0 += PK_COMBINE_DEPTH * team) {
			float lses[PK_COMBINE_DEPTH], xs[PK_COMBINE_DEPTH][PK_COMBINE_WIDTH];
			float higher = top;
			for (int k = 0; k < PK_COMBINE_DEPTH; k++) {
				const int j = j0 + k * team, valid = j < pieces;
				/* piece j > 0 in slot 2 (part + j); chunks one after the other */
				const int64_t at = (slot + j + (chunks || j == 0 ? 0 : j - 1)) * slot_rows + row;
				lses[k] = valid ? partial_lse[at] : -PK_INFINITY;
				for (int n = 0; n < PK_COMBINE_WIDTH; n++)
					xs[k][n] = valid ? partial[at * D_V + from + column + n * items] : 0.0f;
			}
			for (int k = 0; k < PK_COMBINE_DEPTH; k++)
				higher = lses[k] > higher || lses[k] != lses[k] ? lses[k] : higher;
			const float base = higher == -PK_INFINITY ? 0.0f : higher, shrink = PK_EXP2(top - base);
			top = higher;
			sum *= shrink;
			for (int n = 0; n < PK_COMBINE_WIDTH; n++)
				x[n] *= shrink;
			for (int k = 0; k < PK_COMBINE_DEPTH; k++) {
				const float w = PK_EXP2(lses[k] - base);
				sum += w;
				for (int n = 0; n < PK_COMBINE_WIDTH; n++)
					x[n] = PK_FMA(w, xs[k][n], x[n]);
			}
		}
		if (column == 0) {
			tops[lane] = top;
			sums[lane] = sum;
		}
		for (int n = 0; n < PK_COMBINE_WIDTH; n++)
			values[lane * width + column + n * items] = x[n];
		PK_SYNC();
		top = -PK_INFINITY;
		for (int l = leader; l < leader + team; l++)
			top = tops[l] > top || tops[l] != tops[l] ? tops[l] : top;
		const float base = top == -PK_INFINITY ? 0.0f : top;
		sum = 0.0f;
		for (int l = leader; l < leader + team; l++)
			sum = PK_FMA(PK_EXP2(tops[l] - base), sums[l], sum);
		const float lse = sum == 0.0f ? -PK_INFINITY : top + PK_LOG2(sum);
		const float factor = sum == 0.0f ? 0.0f : pk_sink_factor(&p, sink, head, r, lse) / sum;
		const int64_t to = pk_out_at(&p, cu, split.req, head, r) + from;
		for (int c = t - leader * items; there && c < width; c += team * items) {
			float value = 0.0f;
			for (int l = leader; l < leader + team; l++)
				value = PK_FMA(PK_EXP2(tops[l] - base), values[l * width + c], value);
			pk_store(out, p.fp16, to + c, value * factor);
		}
		if (there && p.has_lse && t == leader * items && from == 0)
			lse_out[pk_lse_at(&p, cu, split.req, head, r)] = sum == 0.0f ? p.empty_lse : lse * PK_LN2;
		PK_SYNC(); /* tops, sums and values are free */
	}
}

/* ---- fmla_merge ---------------------------------------------------------------------------------------------------- */

/* One group per output row; an infinite lse (natural logarithm here) marks an empty partial, whose values are not
 * read into the sum. */
PK_KERNEL fmla_pk_merge(const PK_GLOBAL char *PK_RESTRICT in_, const PK_GLOBAL char *PK_RESTRICT in_lse_,
                        const PK_GLOBAL char *PK_RESTRICT sink_, PK_GLOBAL char *PK_RESTRICT out_,
                        PK_GLOBAL char *PK_RESTRICT lse_, const struct pk_merge_shape p)
{
	const int h = PK_GROUP() % p.h_q, s = PK_GROUP() / p.h_q % p.s_q, i = PK_GROUP() / p.h_q / p.s_q;
	const PK_GLOBAL float *in_lse =
	    PK_IN(float, in_lse_, p.at_in_lse) + (i * p.in_lse_b + h * p.in_lse_h + s * p.in_lse_s);
	float top = -PK_INFINITY, sum = 0.0f;
	for (int j = 0; j < p.n; j++) {
		const float x = in_lse[j * p.in_lse_n];
		const int empty = x == PK_INFINITY || x == -PK_INFINITY;
		top = !empty && (x > top || x != x) ? x : top;
	}
	for (int j = 0; j < p.n; j++) {
		const float x = in_lse[j * p.in_lse_n];
		const int empty = x == PK_INFINITY || x == -PK_INFINITY;
		sum += empty ? 0.0f : PK_EXP2((x - top) * PK_LOG2E);
	}
	const float lse = sum == 0.0f ? p.empty_lse : top + PK_LOG2(sum) * PK_LN2;
	float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
	if (p.has_sink && sum != 0.0f)
		factor /= 1.0f + PK_EXP2((PK_IN(float, sink_, p.at_sink)[h] - lse) * PK_LOG2E);
	const PK_GLOBAL char *in = PK_IN(char, in_, p.at_in);
	const int64_t from = i * p.in_b + s * p.in_s + h * p.in_h, to = i * p.out_b + s * p.out_s + h * p.out_h;
	for (int d = PK_ITEM(); d < p.d_v; d += PK_ITEMS) {
		float x = 0.0f;
		for (int j = 0; j < p.n; j++) {
			const float part_lse = in_lse[j * p.in_lse_n];
			if (part_lse != PK_INFINITY && part_lse != -PK_INFINITY)
				x = PK_FMA(PK_EXP2((part_lse - top) * PK_LOG2E), pk_load(in, p.in_type, from + j * p.in_n + d), x);
		}
		pk_store(PK_AT(char, out_, p.at_out), p.out_type, to + d, x * factor);
	}
	if (p.has_lse && PK_ITEM() == 0)
		PK_AT(float, lse_, p.at_lse)[i * p.lse_b + h * p.lse_h + s * p.lse_s] = lse;
}

/* ---- fmla_kv_append ------------------------------------------------------------------------------------------------ */

#define PK_APPEND_GROUPS 4096 /* at most; group g takes tokens g, g + groups, ... */

/* Rows of new tokens into the cache.  Slots outside of it, negative ones too, are skipped. */
PK_KERNEL fmla_pk_append(const PK_GLOBAL char *PK_RESTRICT latent_, const PK_GLOBAL char *PK_RESTRICT rope_,
                         const PK_GLOBAL char *PK_RESTRICT slots_, PK_GLOBAL char *PK_RESTRICT kv_,
                         const struct pk_append_shape p)
{
	const PK_GLOBAL uint16_t *latent = PK_IN(uint16_t, latent_, p.at_latent), *rope = PK_IN(uint16_t, rope_, p.at_rope);
	PK_GLOBAL uint16_t *kv = PK_AT(uint16_t, kv_, p.at_kv);
	for (int64_t n = PK_GROUP(); n < p.n; n += PK_APPEND_GROUPS) {
		const int64_t slot = p.slots_64 ? PK_IN(int64_t, slots_, p.at_slots)[n * p.slots_stride]
		                                : (int64_t)PK_IN(int32_t, slots_, p.at_slots)[n * p.slots_stride];
		if (slot < 0 || slot >= p.num_slots)
			continue;
		for (int h = 0; h < p.h_kv; h++) {
			PK_GLOBAL uint16_t *to = kv + (slot / p.page * p.kv_page + slot % p.page * p.kv_token + h * p.kv_head);
			for (int d = PK_ITEM(); d < p.d_latent + p.d_rope; d += PK_ITEMS)
				to[d] = d < p.d_latent ? latent[n * p.latent_n + h * p.latent_h + d]
				                       : rope[n * p.rope_n + h * p.rope_h + d - p.d_latent];
		}
	}
}

/* ---- FMLA_CHECK_PAGES ---------------------------------------------------------------------------------------------- */

/* The first used table entry that is out of range, by one group: {request, entry, page} into the workspace; request -1:
 * there is none. */
PK_KERNEL fmla_pk_pages(const PK_GLOBAL char *PK_RESTRICT table_, const PK_GLOBAL char *PK_RESTRICT lens_,
                        const PK_GLOBAL char *PK_RESTRICT cu_, PK_GLOBAL char *PK_RESTRICT ws, const struct pk_shape p)
{
	PK_SHARED int found_req[PK_ITEMS];
	PK_SHARED int found_entry[PK_ITEMS];
	const PK_GLOBAL int32_t *table = PK_IN(int32_t, table_, p.at_table), *lens = PK_IN(int32_t, lens_, p.at_lens);
	const PK_GLOBAL int32_t *cu = PK_IN(int32_t, cu_, p.at_cu);
	const int t = PK_ITEM();
	int req = -1, entry = 0;
	for (int i = t; i < p.b && req < 0; i += PK_ITEMS) {
		struct pk_piece piece = {i, 0, 0, 0, 0, 0};
		piece.length = pk_length(&p, lens, i);
		piece.tokens = pk_tokens(&p, cu, i);
		for (int64_t e = pk_row_keys(&p, &piece, 0).low / p.page; piece.tokens > 0 && e * p.page < piece.length; e++) {
			const int page = table[i * p.table_stride + e];
			if (page >= 0 && page < p.num_pages)
				continue;
			req = i;
			entry = (int)e;
			break;
		}
	}
	found_req[t] = req;
	found_entry[t] = entry;
	PK_SYNC();
	if (t == 0) {
		for (int i = 1; i < PK_ITEMS; i++)
			if (found_req[i] >= 0 && (req < 0 || found_req[i] < req)) {
				req = found_req[i];
				entry = found_entry[i];
			}
		PK_GLOBAL int32_t *answer = PK_AT(int32_t, ws, 0);
		answer[0] = req;
		answer[1] = entry;
		answer[2] = req < 0 ? 0 : table[req * p.table_stride + entry];
	}
}

#endif
