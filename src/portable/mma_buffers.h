/* SPDX-License-Identifier: MIT
 *
 * mma_buffers.h - what decode_mma.cu reads and writes beside the shape; the pointers point to the tensors' first
 * elements. */
#ifndef FMLA_PORTABLE_MMA_BUFFERS_H
#define FMLA_PORTABLE_MMA_BUFFERS_H

#include "shape.h"

enum { MMA_COMBINE_WARPS = 8 }; /* of a CTA */

struct mma_buffers {
	const uint16_t *q, *kv;
	const int32_t *table, *lens, *cu;
	const float *sink;
	uint16_t *out;
	float *lse;
	const struct part *parts; /* of the plan kernel                                      */
	int32_t *splits;          /* for combine, see struct pk_split                          */
	float *partial_lse, *partial_out;
	int plans_itself;       /* 1: parts and splits are not there yet, each CTA finds its own */
	int page_shift;         /* log2 of the page's tokens, -1: not a power of two         */
	int plain;              /* 1: as mma_plain() in decode_mma.cu says                   */
	int q_pairs, out_pairs; /* two values may be read or written at once                 */
	int most_splits;        /* that the list has room for                                */
	int guess_each;         /* whole requests of a part, should all be equal; or 0 and   */
	float guess_runs;       /* runs of a request                                        */
	int combine_ctas;       /* and how they share the rows: mma_combine.cuh              */
	int combine_team, combine_wide;
};

#endif
