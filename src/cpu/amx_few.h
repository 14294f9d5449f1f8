/* SPDX-License-Identifier: MIT
 *
 * amx_few.h - the walk of fp16 with one tile of rows: not the products, but splitting K and V is the work.
 *
 * QK   passes of 64 keys.  While the three products of 16 keys run, the next step's 16 keys are split.
 * PV   while the six products of 32 keys and 32 dims run, the strip of V that comes three later is packed.
 * Code all splitting is inline and its constants stay in registers; so each loop exists once, and a step of QK takes
 *      one slice of the softmax through a call.  A tile load waits for the stores before it: tiles are loaded before
 *      the splitting that their products hide.
 * L1   K's tiles and V's take turns in one buffer of 16 KiB.
 * Last C of a panel is stored, and C of the next but one loaded, in the next pass, when its products are through. */
#ifndef FMLA_AMX_FEW_H
#define FMLA_AMX_FEW_H

#include "amx_pv.h"
#include "amx_qk.h"

/* ---- S^T = K Q^T --------------------------------------------------------------------------------------------- */

/* Slice 0 .. 13 of the softmax of 64 keys.  Its registers lie in memory between the calls, so hi and lo are transposed
 * in one go each. */
enum { FEW_SLICES = 7 };

AMX_FN __attribute__((noinline)) void few_soft(struct amx *a, struct soft_registers *r, int slice)
{
	const struct soft *f = &a->soft[slice / FEW_SLICES];
	switch (slice % FEW_SLICES) {
	case 0:
		soft_begin(a, f, r);
		return;
	case 5:
		soft_end(a, f, r);
		if (!r->done)
			soft_tile(a->p[0] + f->p, r->hi);
		return;
	case 6:
		if (!r->done)
			soft_tile(a->p[1] + f->p, r->lo);
		return;
	default:
		soft_exp8(f, r, (slice % FEW_SLICES - 1) * 8, 1);
	}
}

/* Line `step` of 16 keys of the pass. */
AMX_INLINE void few_split(const struct pass *p, unsigned char *tiles, int step, int group)
{
	struct block *b = p->b;
	const unsigned char *row = b->k[p->group + group] + step * 64;
	unsigned char *to = tiles + (step % 2 * 4 + group) * 2 * TILE;
	if (__builtin_expect(split_rows(row, b->stride, to) != 0, 0)) {
		b->special[p->group + group] |= 1u << step;
		split_rows_special(row, b->stride, to);
	}
}

#define FEW_QK(c)                                                        \
	do {                                                                 \
		const unsigned char *k = a->v + (step % 2 * 4 + (c)) * 2 * TILE; \
		TLOAD(4, k, 64);                                                 \
		TLOAD(5, k + TILE, 64);                                          \
		if (step + 1 < a->steps)                                         \
			few_split(&now, a->v, step + 1, c);                          \
		if (step == 0) {                                                 \
			STORE_C(c);                                                  \
			TZERO(c);                                                    \
		}                                                                \
		TDP(c, 4, 6);                                                    \
		TDP(c, 4, 7);                                                    \
		TDP(c, 5, 6);                                                    \
		prefetch_now(a);                                                 \
	} while (0)

AMX_INLINE void few_pass(struct amx *a, struct pass now)
{
	struct soft_registers r;
	int slice = a->last.state == PASS_NONE ? 2 * FEW_SLICES : 0;
	for (int group = 0; group < 4; group++)
		few_split(&now, a->v, 0, group);
	for (int step = 0; step < a->steps; step++) {
		TLOAD(6, a->q[0] + step * TILE, 64);
		TLOAD(7, a->q[1] + step * TILE, 64);
		FEW_QK(0);
		FEW_QK(1);
		FEW_QK(2);
		FEW_QK(3);
		if (slice == 2 * FEW_SLICES)
			continue;
		if (step == 0)
			queue_last(a);
		else
			few_soft(a, &r, slice++);
	}
	while (slice < 2 * FEW_SLICES)
		few_soft(a, &r, slice++);
	a->last = now;
}

/* ---- O += P V ------------------------------------------------------------------------------------------------ */

/* V passes through a ring of four strips of one panel; a strip is packed three ahead of its products. */
struct few_v {
	unsigned char *ring;
	int panel, strip, strips; /* to pack next */
	int slot;
};
enum { RING = 4, AHEAD = 3, UPPER = RING * TILE };

/* 16 keys of it. */
AMX_INLINE void few_pack(const struct block *b, const struct few_v *v, int half)
{
	unsigned char *to = v->ring + v->slot * TILE;
	if (v->panel == PANELS)
		return;
	if (__builtin_expect(all_normal(b, v->panel, v->strip, half), 1)) {
		split_pairs(b->k[v->strip * 2 + half] + v->panel * 64, b->stride, 8, to + half * 512, UPPER);
		return;
	}
	pack_special(b, v->panel, v->strip, half * 2, to, UPPER);
	pack_special(b, v->panel, v->strip, half * 2 + 1, to, UPPER);
}

AMX_INLINE void few_next(struct few_v *v)
{
	v->slot = (v->slot + 1) % RING;
	if (++v->strip < v->strips)
		return;
	v->strip = 0;
	v->panel++;
}

/* One panel with C in c0 and c1; C of the panel before leaves d0 and d1, and that of the next one enters them. */
#define FEW_PV(c0, c1, d0, d1)                                                         \
	do {                                                                               \
		const unsigned char *p = a->p[0];                                              \
		for (int k = 0; k < v.strips; k++, p += TILE) {                                \
			const unsigned char *now = v.ring + (v.slot + RING - AHEAD) % RING * TILE; \
			TLOAD(4, p, 64);                                                           \
			TLOAD(5, p + (a->p[1] - a->p[0]), 64);                                     \
			TLOAD(6, now, 64);                                                         \
			TLOAD(7, now + UPPER, 64);                                                 \
			few_pack(b, &v, 0);                                                        \
			TDP(c0, 4, 6);                                                             \
			TDP(c0, 5, 6);                                                             \
			TDP(c1, 4, 7);                                                             \
			TDP(c1, 5, 7);                                                             \
			prefetch_now(a);                                                           \
			if (k == turn && panel > 0) {                                              \
				TSTORE(d0, o - 2 * TILE);                                              \
				TSTORE(d1, o - TILE);                                                  \
			}                                                                          \
			if (k == turn && panel + 1 < PANELS) {                                     \
				START_C(d0, o + 2 * TILE);                                             \
				START_C(d1, o + 3 * TILE);                                             \
			}                                                                          \
			TLOAD(6, now + 2 * UPPER, 64);                                             \
			TLOAD(7, now + 3 * UPPER, 64);                                             \
			few_pack(b, &v, 1);                                                        \
			TDP(c0, 4, 6);                                                             \
			TDP(c1, 4, 7);                                                             \
			prefetch_now(a);                                                           \
			few_next(&v);                                                              \
		}                                                                              \
	} while (0)

AMX_FN void few_pv(struct amx *a, const struct block *b)
{
	struct few_v v = {.ring = a->v, .strips = (b->keys + 31) / 32};
	const int turn = v.strips > 1;
	unsigned char *o = a->o;
	for (; v.slot < AHEAD; few_next(&v)) {
		few_pack(b, &v, 0);
		few_pack(b, &v, 1);
	}
	START_C(0, o);
	START_C(1, o + TILE);
	for (int panel = 0; panel < PANELS; panel++, o += 2 * TILE) {
		if (panel % 2 == 0)
			FEW_PV(0, 1, 2, 3);
		else
			FEW_PV(2, 3, 0, 1);
	}
	TSTORE(2, o - 2 * TILE);
	TSTORE(3, o - TILE);
	a->started = 1;
}

/* ---- the walk ------------------------------------------------------------------------------------------------ */

AMX_FN void walk_few(struct amx *a)
{
	struct walk *w = a->w;
	int side = 0, turn = 0;
	a->ahead.far = 1;
	for (int64_t start = w->begin; start < w->end; start += a->keys, side ^= 1) {
		struct block *b = &a->blocks[side];
		find_block(a, b, side, start);
		prefetch_from(a, start + a->keys);
		for (int group = 0; group * 16 < b->keys; group += 4, turn ^= 1) {
			few_pass(
			    a, (struct pass){.b = b, .group = group, .width = 1, .s = a->s + turn * PASS, .state = PASS_IN_TILES});
			if (group == 0 && start > w->begin) { /* P of the block before is complete */
				finish_stores(a);
				few_pv(a, &a->blocks[side ^ 1]);
			}
		}
	}
	finish_last(a, 1);
	few_pv(a, &a->blocks[side ^ 1]);
}

#endif
