/* SPDX-License-Identifier: MIT
 *
 * amx_walk.h - what an AMX walk keeps in its scratch: the blocks of keys, the pass and the softmax under way, the tiles. */
#ifndef FMLA_AMX_WALK_H
#define FMLA_AMX_WALK_H

#include "amx.h"
#include "cpu.h"

enum {
	KEYS = 256,         /* keys of a block, at most */
	GROUPS = KEYS / 16, /* A tiles of K per block */
	STREAMS = 8,        /* groups of 16 keys that the prefetch walks side by side */
	PANELS = D_V / 32,  /* a panel is one line of each V row */
	MAX_TILES = ROW_TILE / 16,
	ROW_BYTES = D_QK * 2, /* pitch of copied K rows */
	PASS = 4 * TILE       /* bytes of S of one pass */
};

struct block {
	const unsigned char *k[GROUPS]; /* 16 keys each, rows at `stride` */
	int64_t stride;
	int64_t start;
	int keys;
	uint32_t special[GROUPS]; /* fp16: bit c, line c of these keys is not for split_normal */
};

/* A pass of QK: 32 keys by the two tiles of a unit, or 64 keys by one. */
struct pass {
	struct block *b;
	int unit, group, width;
	int splits, reads_alone; /* fp16: makes hi and lo of its keys; for itself only */
	unsigned char *s;
	enum { PASS_NONE, PASS_IN_TILES, PASS_STORED } state;
};

/* S^T of 32 keys and 16 rows, about to become P. */
struct soft {
	float *s;  /* [32 keys][16 rows] */
	int64_t p; /* where its A tile goes, from a->p[part] */
	float scale;
	int tile;
};

/* The next block on its way into the caches: one line of each of STREAMS groups of 16 keys at a time. */
struct prefetch {
	const unsigned char *at[KEYS / STREAMS][STREAMS]; /* 16 rows of the first groups, then of the next */
	int row, rows, line;
	int far;        /* to L2 only */
	int due, whole; /* a line of each group is due each `whole` */
};

struct amx {
	struct walk *w;
	int fp16, units, tiles; /* units of rows; 16-row tiles */
	int fp16_arithmetic;    /* the machine has AVX512-FP16 */
	int steps;              /* k steps of QK = lines of a K row */
	int keys, strips;       /* keys of a block; 32 of them are a step of PV */
	int started;            /* O holds something */
	struct pass last;
	struct soft soft[2];                  /* of the pass before, while the next one runs */
	int32_t lo[MAX_TILES], hi[MAX_TILES]; /* all rows of a tile see these keys */
	struct block blocks[2];
	struct prefetch ahead;
	unsigned char *q[2];    /* [hi, lo]: [tile][steps] B tiles */
	unsigned char *s;       /* two passes */
	unsigned char *p[2];    /* [hi, lo]: [tile][strips] A tiles */
	unsigned char *v;       /* a panel: [hi, lo][lower, upper dims][strips] tiles */
	unsigned char *o;       /* [panel][tile][lower, upper dims] C tiles */
	unsigned char *split;   /* fp16: [k step, or turn][16 keys][hi, lo] A tiles of K */
	unsigned char *copy[2]; /* K copied where the page cannot be read in place */
};

static inline int unit_width(const struct amx *a, int unit)
{
	return unit * 2 + 1 < a->tiles ? 2 : 1;
}

/* O lies in the order in which PV walks it: panel by panel, 2 KiB a tile of rows. */
static inline unsigned char *o_tiles(const struct amx *a, int unit, int panel)
{
	return a->o + (panel * a->tiles + unit * 2) * 2 * TILE;
}

/* Where a block's rows of K lie: in the page when 16 keys in a row make an aligned tile of seen keys, else in a copy,
 * with zeros for keys that no row sees. */
AMX_FN void find_block(struct amx *a, struct block *b, int side, int64_t start)
{
	const struct walk *w = a->w;
	const struct problem *p = w->p;
	const int64_t left = w->end - start;
	b->start = start;
	b->keys = left < a->keys ? (int)left : a->keys;
	for (int g = 0; g < GROUPS; g++)
		b->special[g] = a->fp16_arithmetic ? 0 : ~0u;
	const int rows = (b->keys + 31) / 32 * 32;
	const int aligned = (uintptr_t)p->kv % LINE == 0 && (p->kv_page | p->kv_token | p->kv_head) * 2 % LINE == 0;
	if (aligned && p->page % 16 == 0 && start >= w->low) {
		b->stride = p->kv_token * 2;
		for (int g = 0; g < GROUPS; g++)
			b->k[g] = cpu_key(w, start + (g * 16 < b->keys ? g * 16 : (b->keys - 1) / 16 * 16));
		return;
	}
	unsigned char *to = a->copy[side];
	b->stride = ROW_BYTES;
	for (int g = 0; g < GROUPS; g++)
		b->k[g] = to + (g * 16 < rows ? g * 16 : 0) * ROW_BYTES;
	for (int i = 0; i < rows; i++, to += ROW_BYTES) {
		const int seen = i < b->keys && start + i >= w->low;
		const unsigned char *from = seen ? cpu_key(w, start + i) : NULL;
		for (int c = 0; c < a->steps; c++)
			_mm512_store_si512(to + c * 64, seen ? _mm512_loadu_si512(from + c * 64) : _mm512_setzero_si512());
	}
}

#endif
