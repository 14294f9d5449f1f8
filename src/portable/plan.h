/* SPDX-License-Identifier: MIT
 *
 * plan.h - stage 2 on the device: the plan kernel, by the algorithm of plan_core.h. */
#ifndef FMLA_PORTABLE_PLAN_H
#define FMLA_PORTABLE_PLAN_H

#include "schedule.h"

#define PK_MAX_PARTS 1024 /* cuts that are kept in shared memory */

/* One group writes the whole plan.  Work-item t has `run` consecutive requests: it sums their blocks and counts their
 * pieces.  It has borders t, t + PK_ITEMS, ... as well: it looks for the request that each falls into.  Once all borders
 * are known it writes rows t, t + PK_ITEMS, ...
 * `splits_`: [b + 1] sums of pieces; with own_plan, the list of split requests. */
PK_KERNEL fmla_pk_plan(const PK_GLOBAL char *PK_RESTRICT lens_, const PK_GLOBAL char *PK_RESTRICT cu_,
                       PK_GLOBAL char *PK_RESTRICT parts, PK_GLOBAL char *PK_RESTRICT splits_, const struct pk_shape p)
{
	PK_SHARED int64_t blocks[PK_ITEMS];
	PK_SHARED int64_t longest[PK_ITEMS];
	PK_SHARED int64_t starts[PK_ITEMS]; /* of the first request of each work-item, on the axis */
	PK_SHARED int64_t pieces[PK_ITEMS]; /* and split requests << 32 */
	PK_SHARED int64_t sums[PK_ITEMS / 16];
	PK_SHARED int64_t tops[PK_ITEMS / 16];
	PK_SHARED int cut_req[PK_MAX_PARTS + 1];
	PK_SHARED int cut_block[PK_MAX_PARTS + 1];
	PK_SHARED int cut_split[PK_MAX_PARTS + 1]; /* borders of cut_req up to this one */
	const PK_GLOBAL int32_t *lens = PK_IN(int32_t, lens_, p.at_lens), *cu = PK_IN(int32_t, cu_, p.at_cu);
	PK_GLOBAL struct part *rows = PK_AT(struct part, parts, p.at_parts);
	PK_GLOBAL int32_t *splits = PK_AT(int32_t, splits_, p.at_splits);
	PK_GLOBAL struct pk_split *list = (PK_GLOBAL struct pk_split *)(splits + 1);
	const int t = PK_ITEM(), run = (p.b + PK_ITEMS - 1) / PK_ITEMS;
	const int first = t * run < p.b ? t * run : p.b, end = first + run < p.b ? first + run : p.b;

	int64_t mine = 0, top = 0;
	for (int i = first; i < end; i++) {
		const struct blocks r = pk_blocks(&p, lens, cu, i);
		mine += r.end - r.begin;
		top = r.end - r.begin > top ? r.end - r.begin : top;
	}
	blocks[t] = mine;
	longest[t] = top;
	PK_SYNC();
	if (t < PK_ITEMS / 16) {
		sums[t] = pk_sum_of_16(blocks + 16 * t);
		tops[t] = pk_top_of_16(longest + 16 * t);
	}
	PK_SYNC();
	top = pk_top_of_16(tops);
	const int64_t before = pk_sum_before(blocks, sums, t), total = pk_sum_of_16(sums); /* PK_ITEMS is 16 * 16 */
	const struct plan_axis axis = plan_axis(total, top, 0, p.b, p.num_parts, p.costs);
	const int64_t my_start = axis.pieces ? first : before + (int64_t)first * axis.overhead;

	int64_t my_pieces = 0, at = my_start;
	for (int i = first; i < end; i++) {
		const struct blocks r = pk_blocks(&p, lens, cu, i);
		const struct pk_pieces n = pk_count_pieces(axis, at, r);
		my_pieces += n.count + ((int64_t)(n.count > 1) << 32);
		at += plan_cost(axis, r);
	}
	starts[t] = my_start;
	pieces[t] = my_pieces;
	PK_SYNC(); /* nobody reads the sums of blocks any more */
	if (t < PK_ITEMS / 16)
		sums[t] = pk_sum_of_16(pieces + 16 * t);

	for (int64_t j = t; j <= axis.active; j += PK_ITEMS) {
		struct border to = {j > 0 ? p.b : 0, 0}; /* the first and the last one */
		int split = 0;
		if (j > 0 && j < axis.active) {
			const int64_t position = plan_position(axis, j);
			int owner = 0;
			for (int step = PK_ITEMS / 2; step > 0; step /= 2)
				owner += starts[owner + step] <= position ? step : 0;
			int req = owner * run;
			int64_t start = starts[owner];
			struct blocks r = pk_blocks(&p, lens, cu, req);
			while (start + plan_cost(axis, r) <= position) {
				start += plan_cost(axis, r);
				r = pk_blocks(&p, lens, cu, ++req);
			}
			to = plan_cut(axis, position, req, start, r);
			if (to.block > 0 && axis.chunk == 0)
				split = (int)(j - plan_inner_borders(axis, start, r).first) + 1;
		}
		cut_req[j] = (int)to.req;
		cut_block[j] = (int)to.block;
		cut_split[j] = split;
	}
	PK_SYNC(); /* the borders and the sums of pieces are there */

	int64_t split = pk_sum_before(pieces, sums, t);
	at = my_start;
	for (int i = first; i < end; i++) {
		const struct blocks r = pk_blocks(&p, lens, cu, i);
		const struct pk_pieces n = pk_count_pieces(axis, at, r);
		if (!p.own_plan) {
			splits[i] = (int32_t)split;
		} else if (n.count > 1) {
			const struct pk_split s = {i, n.count, n.first};
			list[split >> 32] = s;
		}
		split += n.count + ((int64_t)(n.count > 1) << 32);
		at += plan_cost(axis, r);
	}
	if (t == 0)
		splits[p.own_plan ? 0 : p.b] = (int32_t)(p.own_plan ? pk_sum_of_16(sums) >> 32 : pk_sum_of_16(sums));

	const struct blocks none = {0, 0};
	for (int row = t; row < p.plan_rows; row += PK_ITEMS) {
		struct part part = {PLAN_IDLE, 0, 0, 0, 0, 0, 0, PLAN_TAG};
		if (row < axis.active) {
			const struct border from = {cut_req[row], cut_block[row]}, to = {cut_req[row + 1], cut_block[row + 1]};
			const int64_t last = to.block > 0 ? to.req : to.req - 1;
			part = plan_row(axis, from, from.req < p.b ? pk_blocks(&p, lens, cu, (int)from.req) : none, cut_split[row],
			                to, last >= 0 ? pk_blocks(&p, lens, cu, (int)last) : none);
		}
		rows[row] = part;
	}
}

#endif
