/* SPDX-License-Identifier: MIT
 *
 * amx_pv.h - O += P V for one block of keys: panel by panel of 32 dims, unit by unit of 32 rows.
 *
 * L1       48 KiB hold the panel of V (16 KiB) and O on its way, nothing else: P passes by with tileloaddt1, O of the
 *          next pass is prefetched.
 * Packing  bf16: a panel in one go, before its products: between products, its stores hold up the next tile loads.
 *          fp16, where splitting takes longer than that: strip by strip while the last unit leaves the panel before.
 * Turn     no tile load passes a tile store whose data is not there yet, 52 clocks after its product.  Five registers
 *          take turns as C: the first C of a pass is loaded in the pass before, and a C is stored four products after
 *          its last one. */
#ifndef FMLA_AMX_PV_H
#define FMLA_AMX_PV_H

#include "amx_prefetch.h"
#include "amx_split.h"

/* A panel's V in pairs of rows: B tiles of its lower and upper dims (by the order of punpck: the dims of O come out
 * permuted, see row_amx).  This packs 4 of the 16 pairs of a strip; rows past the last key become zeros. */
AMX_INLINE const unsigned char *first_row(const struct block *b, int panel, int strip, int quarter)
{
	return b->k[strip * 2 + quarter / 2] + quarter % 2 * 8 * b->stride + panel * 64;
}

AMX_INLINE __m512i seen_row(const struct block *b, const unsigned char *row, int number)
{
	return number < b->keys ? _mm512_load_si512(row) : _mm512_setzero_si512();
}

AMX_INLINE void pack_pairs(struct amx *a, const struct block *b, int panel, int strip, int quarter)
{
	const unsigned char *row = first_row(b, panel, strip, quarter);
	const int first = strip * 16 + quarter * 4;
	const int64_t upper = a->strips * TILE;
	unsigned char *to = a->v + first * 64;
	if (!a->ahead.far)
		prefetch(a, SHARE_PACK);
	if (__builtin_expect(first * 2 + 8 > b->keys, 0)) {
		for (int r = first; r < first + 4; r++, row += 2 * b->stride, to += 64) {
			const __m512i x = seen_row(b, row, 2 * r), y = seen_row(b, row + b->stride, 2 * r + 1);
			_mm512_store_si512(to, _mm512_unpacklo_epi16(x, y));
			_mm512_store_si512(to + upper, _mm512_unpackhi_epi16(x, y));
		}
		return;
	}
#pragma GCC unroll 4
	for (int r = 0; r < 4; r++, row += 2 * b->stride, to += 64) {
		const __m512i x = _mm512_load_si512(row), y = _mm512_load_si512(row + b->stride);
		_mm512_store_si512(to, _mm512_unpacklo_epi16(x, y));
		_mm512_store_si512(to + upper, _mm512_unpackhi_epi16(x, y));
	}
}

/* Out of line for the size of the unrolled passes, as the next two are. */
AMX_FN __attribute__((noinline)) void pack_bf16(struct amx *a, const struct block *b, int panel)
{
	for (int strip = 0; strip * 32 < b->keys; strip++)
#pragma GCC unroll 4
		for (int quarter = 0; quarter < 4; quarter++)
			pack_pairs(a, b, panel, strip, quarter);
}

/* fp16: to four tiles, lower dims of hi at `to`, upper ones `upper` bytes on, and lo behind both. */
AMX_FN __attribute__((noinline)) void pack_special(const struct block *b, int panel, int strip, int quarter,
                                                   unsigned char *to, int64_t upper)
{
	const unsigned char *row = first_row(b, panel, strip, quarter);
	const int first = strip * 16 + quarter * 4;
	to += quarter * 256;
	for (int r = first; r < first + 4; r++, row += 2 * b->stride, to += 64) {
		const __m512i x = seen_row(b, row, 2 * r), y = seen_row(b, row + b->stride, 2 * r + 1);
		__m512i h, l;
		split_fp16(_mm512_unpacklo_epi16(x, y), 1 / 256.f, &h, &l);
		_mm512_store_si512(to, h);
		_mm512_store_si512(to + 2 * upper, l);
		split_fp16(_mm512_unpackhi_epi16(x, y), 1 / 256.f, &h, &l);
		_mm512_store_si512(to + upper, h);
		_mm512_store_si512(to + 3 * upper, l);
	}
}

AMX_FN __attribute__((noinline)) void pack_normal(const struct block *b, int panel, int strip, int quarter,
                                                  unsigned char *to, int64_t upper)
{
	split_pairs(first_row(b, panel, strip, quarter), b->stride, 4, to + quarter * 256, upper);
}

/* QK has looked at these lines, and knows where a value is special. */
AMX_INLINE int all_normal(const struct block *b, int panel, int strip, int half)
{
	const int group = strip * 2 + half;
	return !(b->special[group] >> panel & 1) && (group + 1) * 16 <= b->keys;
}

AMX_INLINE void pack_fp16(struct amx *a, const struct block *b, int panel, int strip, int quarter)
{
	prefetch(a, SHARE_PACK);
	if (all_normal(b, panel, strip, quarter / 2))
		pack_normal(b, panel, strip, quarter, a->v + strip * TILE, a->strips * TILE);
	else
		pack_special(b, panel, strip, quarter, a->v + strip * TILE, a->strips * TILE);
}

/* A pass: one panel of one unit. */
struct pv_pass {
	const struct block *b;
	unsigned char *from, *to, *next; /* C tiles of the pass before (NULL: none), this and the next one */
	int unit, strips;
	int pack; /* fp16: panel to pack behind this pass, or PANELS */
};

#define START_C(reg, p)        \
	do {                       \
		if (a->started)        \
			TLOAD(reg, p, 64); \
		else                   \
			TZERO(reg);        \
	} while (0)

/* What follows product `q` of a step: a share of the next block, of the next pass's O, of the next panel. */
AMX_INLINE void pv_between(struct amx *a, const struct pv_pass *n, int step, int q, int strip, int fp16)
{
	if (q % 2)
		prefetch(a, SHARE_PV);
	if (step < 8) {
		_mm_prefetch((const char *)n->next + (step * 8 + q * 2) * LINE, _MM_HINT_T0);
		_mm_prefetch((const char *)n->next + (step * 8 + q * 2 + 1) * LINE, _MM_HINT_T0);
	}
	if (fp16 && strip >= 0 && n->pack < PANELS)
		pack_fp16(a, n->b, n->pack, strip, q);
}

/* Two tiles of rows by two of dims.  o0 .. o3: where C of the pass before lies; x: the first C of this pass.  C of this
 * pass lies in x, o2, o0, o1 then, and the first C of the next one in o3. */
#define PV_STORE(reg, number)                     \
	do {                                          \
		if (n->from)                              \
			TSTORE(reg, n->from + (number)*TILE); \
	} while (0)
#define PV_PASS(o0, o1, o2, o3, x)                                                                      \
	do {                                                                                                \
		for (int k = 0, step = 0; k < n->strips; k++)                                                   \
			_Pragma("GCC unroll 3") for (int product = 0; product < products; product++, step++)        \
			{                                                                                           \
				const unsigned char *p0 = a->p[side_a[product]] + (n->unit * 2 * a->strips + k) * TILE; \
				const unsigned char *v0 = a->v + side_b[product] * a->keys * 64 + k * TILE;             \
				const int behind = product == 0 ? k - 1 : -1;                                           \
				TLOAD_T1(4, p0, 64);                                                                    \
				TLOAD(6, v0, 64);                                                                       \
				TLOAD_T1(5, p0 + a->strips * TILE, 64);                                                 \
				TDP(x, 4, 6);                                                                           \
				pv_between(a, n, step, 0, behind, products > 1);                                        \
				if (step == 0) {                                                                        \
					PV_STORE(o0, 0);                                                                    \
					START_C(o0, n->to + 2 * TILE);                                                      \
				}                                                                                       \
				TDP(o0, 5, 6);                                                                          \
				pv_between(a, n, step, 1, behind, products > 1);                                        \
				TLOAD(6, v0 + a->strips * TILE, 64);                                                    \
				if (step == 0) {                                                                        \
					PV_STORE(o2, 2);                                                                    \
					START_C(o2, n->to + TILE);                                                          \
				}                                                                                       \
				TDP(o2, 4, 6);                                                                          \
				pv_between(a, n, step, 2, behind, products > 1);                                        \
				if (step == 0) {                                                                        \
					PV_STORE(o1, 1);                                                                    \
					START_C(o1, n->to + 3 * TILE);                                                      \
				}                                                                                       \
				TDP(o1, 5, 6);                                                                          \
				pv_between(a, n, step, 3, behind, products > 1);                                        \
				if (step == 0) {                                                                        \
					PV_STORE(o3, 3);                                                                    \
					START_C(o3, n->next);                                                               \
				}                                                                                       \
			}                                                                                           \
		for (int q = 0; q < 4; q++)                                                                     \
			pv_between(a, n, 8, q, n->strips - 1, products > 1);                                        \
	} while (0)

/* The registers of the last pass's C go round in five phases. */
AMX_INLINE int pv_wide(struct amx *a, const struct pv_pass *n, int phase, int products)
{
	switch (phase) {
	case 0:
		PV_PASS(0, 1, 2, 3, 7);
		return 1;
	case 1:
		PV_PASS(7, 2, 0, 1, 3);
		return 2;
	case 2:
		PV_PASS(3, 0, 7, 2, 1);
		return 3;
	case 3:
		PV_PASS(1, 7, 3, 0, 2);
		return 4;
	default:
		PV_PASS(2, 3, 1, 7, 0);
		return 0;
	}
}

#define STORE_4(c0, c1, c2, c3, p)  \
	do {                            \
		TSTORE(c0, p);              \
		TSTORE(c1, (p) + TILE);     \
		TSTORE(c2, (p) + 2 * TILE); \
		TSTORE(c3, (p) + 3 * TILE); \
	} while (0)
AMX_INLINE void pv_store_wide(unsigned char *from, int phase)
{
	switch (phase) {
	case 0:
		STORE_4(0, 1, 2, 3, from);
		return;
	case 1:
		STORE_4(7, 2, 0, 1, from);
		return;
	case 2:
		STORE_4(3, 0, 7, 2, from);
		return;
	case 3:
		STORE_4(1, 7, 3, 0, from);
		return;
	default:
		STORE_4(2, 3, 1, 7, from);
	}
}

/* One tile of rows by two of dims: few rows, or the last unit when the number of tiles is odd. */
AMX_INLINE void pv_narrow(struct amx *a, const struct pv_pass *n, int products)
{
	const int packs = products > 1 && n->pack < PANELS;
	START_C(0, n->to);
	START_C(1, n->to + TILE);
	for (int k = 0; k < n->strips; k++)
#pragma GCC unroll 3
		for (int product = 0; product < products; product++) {
			const unsigned char *v0 = a->v + side_b[product] * a->keys * 64 + k * TILE;
			TLOAD(4, a->p[side_a[product]] + (n->unit * 2 * a->strips + k) * TILE, 64);
			TLOAD(6, v0, 64);
			TDP(0, 4, 6);
			TLOAD(7, v0 + a->strips * TILE, 64);
			TDP(1, 4, 7);
			prefetch(a, SHARE_PV);
			for (int quarter = product; quarter < 4 && packs && k > 0; quarter += 3)
				pack_fp16(a, n->b, n->pack, k - 1, quarter);
		}
	TSTORE(0, n->to);
	TSTORE(1, n->to + TILE);
	for (int quarter = 0; quarter < 4 && packs; quarter++)
		pack_fp16(a, n->b, n->pack, n->strips - 1, quarter);
}

AMX_INLINE void pv(struct amx *a, const struct block *b, int products)
{
	struct pv_pass now = {.b = b, .strips = (b->keys + 31) / 32};
	int phase = 0;
	for (int strip = 0; strip < now.strips && products > 1; strip++)
		for (int quarter = 0; quarter < 4; quarter++)
			pack_fp16(a, b, 0, strip, quarter);
	for (int panel = 0; panel < PANELS; panel++) {
		if (products == 1)
			pack_bf16(a, b, panel);
		for (now.unit = 0; now.unit < a->units; now.unit++) {
			const int last = now.unit + 1 == a->units;
			now.to = o_tiles(a, now.unit, panel);
			now.next = !last ? now.to + 4 * TILE : panel + 1 < PANELS ? o_tiles(a, 0, panel + 1) : now.to;
			now.pack = last ? panel + 1 : PANELS;
			if (unit_width(a, now.unit) == 2) {
				if (!now.from)
					START_C(7, now.to);
				phase = pv_wide(a, &now, now.from ? phase : 0, products);
				now.from = now.to;
				continue;
			}
			if (now.from)
				pv_store_wide(now.from, phase);
			now.from = NULL;
			pv_narrow(a, &now, products);
		}
	}
	if (now.from)
		pv_store_wide(now.from, phase);
	a->started = 1;
}

#endif
