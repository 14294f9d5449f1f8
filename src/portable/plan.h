/* SPDX-License-Identifier: MIT
 *
 * plan.h - stage 2 on the device: the plan kernel, by the algorithm of plan_core.h. */
#ifndef FMLA_PORTABLE_PLAN_H
#define FMLA_PORTABLE_PLAN_H

#include "walk.h"

#define PK_MAX_PARTS 1024 /* cuts that are kept in shared memory */

/* What work-item t needs of a scan of x over the group, after all have stored x in x[] and met a barrier: the sum of
 * those before it.  In two steps of at most 16: sums of 16 each, then single values. */
PK_FN int64_t pk_sum_before(const PK_LOCAL int64_t *x, const PK_LOCAL int64_t *sums_of_16, int t)
{
	int64_t sum = 0;
	for (int i = 0; i < t / 16; i++)
		sum += sums_of_16[i];
	for (int i = t & ~15; i < t; i++)
		sum += x[i];
	return sum;
}

PK_FN int64_t pk_sum_of_16(const PK_LOCAL int64_t *x)
{
	int64_t sum = 0;
	for (int i = 0; i < 16; i++)
		sum += x[i];
	return sum;
}

PK_FN int64_t pk_top_of_16(const PK_LOCAL int64_t *x)
{
	int64_t top = x[0];
	for (int i = 1; i < 16; i++)
		top = x[i] > top ? x[i] : top;
	return top;
}

/* One group writes the whole plan.  Work-item t has `run` consecutive requests: it sums their blocks, finds the borders
 * that fall among them, and after all borders are known writes rows t, t + PK_ITEMS, ... */
PK_KERNEL fmla_pk_plan(const PK_GLOBAL char *PK_RESTRICT lens_, const PK_GLOBAL char *PK_RESTRICT cu_,
                       PK_GLOBAL char *PK_RESTRICT parts, PK_GLOBAL char *PK_RESTRICT splits_, const struct pk_shape p)
{
	PK_SHARED int64_t blocks[PK_ITEMS];
	PK_SHARED int64_t longest[PK_ITEMS];
	PK_SHARED int64_t pieces[PK_ITEMS];
	PK_SHARED int64_t sums[PK_ITEMS / 16];
	PK_SHARED int64_t tops[PK_ITEMS / 16];
	PK_SHARED int cut_req[PK_MAX_PARTS + 1];
	PK_SHARED int cut_block[PK_MAX_PARTS + 1];
	PK_SHARED int cut_split[PK_MAX_PARTS + 1]; /* borders of cut_req up to this one */
	const PK_GLOBAL int32_t *lens = PK_IN(int32_t, lens_, p.at_lens), *cu = PK_IN(int32_t, cu_, p.at_cu);
	PK_GLOBAL struct part *rows = PK_AT(struct part, parts, p.at_parts);
	PK_GLOBAL int32_t *splits = PK_AT(int32_t, splits_, p.at_splits);
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
	const struct plan_axis axis = plan_axis(total, top, p.b, p.num_parts, p.costs);
	int64_t start = axis.whole ? first : before + (int64_t)first * axis.overhead;

	int64_t my_pieces = 0;
	int64_t j = axis.total > 0 ? plan_border_at_or_after(axis, start) : axis.active;
	for (int i = first; i < end; i++) {
		const struct blocks r = pk_blocks(&p, lens, cu, i);
		const int64_t next = start + plan_cost(axis, r);
		int inside = 0;
		for (; j < axis.active && plan_position(axis, j) < next; j++) {
			if (j == 0)
				continue; /* set below */
			const struct border to = plan_cut(axis, plan_position(axis, j), i, start, r);
			inside += to.block > 0;
			cut_req[j] = (int)to.req;
			cut_block[j] = (int)to.block;
			cut_split[j] = to.block > 0 ? inside : 0;
		}
		splits[i] = (int32_t)(axis.chunk > 0 ? plan_chunks(axis.chunk, r) : inside + 1);
		my_pieces += splits[i];
		start = next;
	}
	if (t == 0) {
		cut_req[0] = cut_block[0] = cut_split[0] = 0;
		cut_req[axis.active] = p.b;
		cut_block[axis.active] = cut_split[axis.active] = 0;
	}
	pieces[t] = my_pieces;
	PK_SYNC(); /* the cuts are there, too; nobody reads the sums of blocks any more */
	if (t < PK_ITEMS / 16)
		sums[t] = pk_sum_of_16(pieces + 16 * t);
	PK_SYNC();
	int64_t split = pk_sum_before(pieces, sums, t);
	for (int i = first; i < end; i++) {
		const int32_t n = splits[i];
		splits[i] = (int32_t)split;
		split += n;
	}
	if (t == 0)
		splits[p.b] = (int32_t)pk_sum_of_16(sums);

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
