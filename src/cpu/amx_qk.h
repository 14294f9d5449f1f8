/* SPDX-License-Identifier: MIT
 *
 * amx_qk.h - S^T = K Q^T in passes over all of k, each with the softmax of the pass before between its products. */
#ifndef FMLA_AMX_QK_H
#define FMLA_AMX_QK_H

#include "amx_prefetch.h"
#include "amx_softmax.h"
#include "amx_split.h"

/* Stores C number `reg` of the last pass where it still lies in tiles.  In memory: [32 keys of a tile][tile or the next
 * 32 keys]; the wide pass has its tiles in the order keys, rows. */
#define STORE_C(reg)                                                                            \
	do {                                                                                        \
		if (a->last.state == PASS_IN_TILES)                                                     \
			TSTORE(reg, a->last.s + (a->last.width == 2 ? reg % 2 * 2 + reg / 2 : reg) * TILE); \
	} while (0)

AMX_FN void finish_stores(struct amx *a)
{
	STORE_C(0);
	STORE_C(1);
	STORE_C(2);
	STORE_C(3);
	a->last.state = PASS_STORED;
}

/* The softmax of the last pass, whose S is in memory, may start. */
AMX_FN void queue_last(struct amx *a)
{
	const struct pass *l = &a->last;
	const int wide = l->width == 2, key = l->group * 16;
	soft_queue(a, &a->soft[0], l->b, l->unit * 2, key, l->s);
	soft_queue(a, &a->soft[1], l->b, l->unit * 2 + wide, wide ? key : key + 32, l->s + 2 * TILE);
}

/* fp16: hi and lo of one k step of a pass are made while the products of the step before run, by the first pass of a
 * strip.  They stay in L1, two steps of them in turn, when no other pass needs them. */
AMX_INLINE unsigned char *split_tiles(const struct amx *a, const struct pass *p, int step)
{
	return a->split + (p->reads_alone ? step % 2 * 8 : step * 4) * TILE;
}

AMX_INLINE void split_group(struct amx *a, const struct pass *p, int step, int group)
{
	const unsigned char *row = p->b->k[p->group + group] + step * 64;
	unsigned char *to = split_tiles(a, p, step) + group * 2 * TILE;
	uint32_t *special = &p->b->special[p->group + group];
	if (*special >> step & 1 || split_rows_normal(row, p->b->stride, to)) {
		*special |= 1u << step;
		split_rows_special(row, p->b->stride, to);
	}
}

/* A tile of keys: in the page, or hi or lo of it. */
#define LOAD_K(reg, i)                                                                    \
	do {                                                                                  \
		if (products > 1)                                                                 \
			TLOAD(reg, split_tiles(a, now, step) + ((i)*2 + side_a[product]) * TILE, 64); \
		else                                                                              \
			TLOAD(reg, now->b->k[now->group + (i)] + step * 64, now->b->stride);          \
	} while (0)

/* What follows the products of C number `c`. */
AMX_INLINE void qk_between(struct amx *a, const struct pass *now, int step, int width, int product, int products, int c)
{
	prefetch(a, SHARE_QK);
	if (products == 1 || !now->splits || step + 1 >= a->steps)
		return;
	if (width == 2 ? c == 0 && product < 2 : c == 0 || (c == 2 && product == 1))
		split_group(a, now, step + 1, width == 2 ? product : c == 2 ? 3 : product);
}

/* One k step.  `turn`: the first of a pass, where C of the last pass leaves the tiles.  Of the three products of fp16
 * the second keeps B in its tiles. */
#define TURN_C(reg)       \
	do {                  \
		if (turn) {       \
			STORE_C(reg); \
			TZERO(reg);   \
		}                 \
	} while (0)
/* C += A B, tile registers; carries what runs between two products. */
#define QK_PRODUCT(c, k, q)                                    \
	do {                                                       \
		TURN_C(c);                                             \
		TDP(c, k, q);                                          \
		qk_between(a, now, step, width, product, products, c); \
	} while (0)
AMX_INLINE void qk_step(struct amx *a, const struct pass *now, int step, int width, int products, int turn)
{
#pragma GCC unroll 3
	for (int product = 0; product < products; product++, turn = 0) {
		const unsigned char *q = a->q[side_b[product]] + (now->unit * 2 * a->steps + step) * TILE;
		if (width == 2) {
			LOAD_K(4, 0);
			if (product != 1) {
				TLOAD_T1(6, q, 64);
				TLOAD_T1(7, q + a->steps * TILE, 64);
			}
			LOAD_K(5, 1);
			QK_PRODUCT(0, 4, 6);
			QK_PRODUCT(1, 4, 7);
			QK_PRODUCT(2, 5, 6);
			QK_PRODUCT(3, 5, 7);
		} else {
			if (product != 1)
				TLOAD(6, q, 64);
			LOAD_K(4, 0);
			QK_PRODUCT(0, 4, 6);
			LOAD_K(5, 1);
			QK_PRODUCT(1, 5, 6);
			LOAD_K(4, 2);
			QK_PRODUCT(2, 4, 6);
			LOAD_K(5, 3);
			QK_PRODUCT(3, 5, 6);
		}
	}
}

/* One pass over all of k; carries the softmax of the last pass. */
AMX_INLINE void qk_pass(struct amx *a, struct pass now, int width, int products)
{
	int step = 0;
	if (products > 1 && now.splits)
		for (int group = 0; group < 4 / width; group++)
			split_group(a, &now, 0, group);
	qk_step(a, &now, step++, width, products, 1);
	if (a->last.state != PASS_NONE) {
		queue_last(a);
		for (int i = 0; i < 2; i++) {
			struct soft_registers r;
#pragma GCC unroll 8
			for (int slice = 0; slice < SLICES; slice++) {
				if (step < a->steps)
					qk_step(a, &now, step++, width, products, 0);
				soft_slice(a, &a->soft[i], &r, slice, products > 1);
			}
		}
	}
	while (step < a->steps)
		qk_step(a, &now, step++, width, products, 0);
	a->last = now;
}

/* The last softmax, with nothing to hide behind. */
AMX_INLINE void finish_last(struct amx *a, int fp16)
{
	finish_stores(a);
	queue_last(a);
	for (int i = 0; i < 2; i++) {
		struct soft_registers r;
#pragma GCC unroll 8
		for (int slice = 0; slice < SLICES; slice++)
			soft_slice(a, &a->soft[i], &r, slice, fp16);
	}
	a->last.state = PASS_NONE;
}

#endif
