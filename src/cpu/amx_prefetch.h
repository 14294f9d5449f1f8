/* SPDX-License-Identifier: MIT
 *
 * amx_prefetch.h - brings the next block of K into the caches, a few lines after each tile product. */
#ifndef FMLA_AMX_PREFETCH_H
#define FMLA_AMX_PREFETCH_H

#include "amx_walk.h"

/* What a tile product of QK, a row of P tiles in PV and four pairs of rows in packing carry of a block's prefetch.  They
 * are spread evenly: a core has 16 buffers for lines on their way to L1, a line from memory holds one for 100 ns and
 * more, and when all are held the loads of the products wait.  Several groups at a time let the L2 prefetcher run ahead
 * in each of them, so that most lines come from L2 already, and the last fifth of a group without being asked for:
 * paced for all of it, two threads with 16 rows are 7 % slower.  With many rows packing bf16 carries none. */
enum { SHARE_QK = 16, SHARE_PV = 16, SHARE_PACK = 5 };

static int prefetch_shares(const struct amx *a, int products)
{
	const int qk = SHARE_QK * a->tiles * a->keys / 16 * a->steps / 2, pv = SHARE_PV * a->tiles * a->strips * PANELS;
	const int pack = a->ahead.far && products == 1 ? 0 : SHARE_PACK * a->keys / 8 * PANELS;
	return (products * (qk + pv) + pack) / 4 * 5;
}

AMX_FN void prefetch_from(struct amx *a, int64_t start)
{
	struct prefetch *f = &a->ahead;
	const struct problem *p = a->w->p;
	const int64_t last = a->w->end - 1;
	f->rows = start <= last ? a->keys / STREAMS : 0;
	f->row = 0;
	f->line = 0;
	f->due = 0;
	for (int row = 0; row < f->rows; row++)
		for (int g = 0; g < STREAMS; g++) {
			const int64_t t = start + (row / 16 * STREAMS + g) * 16 + row % 16;
			if (row % 16 > 0 && p->page % 16 == 0)
				f->at[row][g] = f->at[row - 1][g] + p->kv_token * 2;
			else
				f->at[row][g] = cpu_key(a->w, t < last ? t : last);
		}
}

/* Out of line: its callers are unrolled, and it leaves their vector registers alone. */
AMX_FN __attribute__((noinline)) void prefetch_lines(struct prefetch *f, int steps)
{
#pragma GCC unroll 8
	for (int g = 0; g < STREAMS; g++) {
		const char *at = (const char *)f->at[f->row][g] + f->line * LINE;
		if (f->far)
			_mm_prefetch(at, _MM_HINT_T1);
		else
			_mm_prefetch(at, _MM_HINT_T0);
	}
	if (++f->line == steps) {
		f->line = 0;
		f->row++;
	}
}

AMX_INLINE void prefetch(struct amx *a, int share)
{
	struct prefetch *f = &a->ahead;
	f->due += share * (a->keys / STREAMS) * a->steps;
	if (f->due < f->whole || f->row >= f->rows)
		return;
	f->due -= f->whole;
	prefetch_lines(f, a->steps);
}

/* Without pacing: where the places that call it are as many as a block takes. */
AMX_INLINE void prefetch_now(struct amx *a)
{
	if (a->ahead.row < a->ahead.rows)
		prefetch_lines(&a->ahead, a->steps);
}

#endif
