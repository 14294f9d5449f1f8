/* SPDX-License-Identifier: MIT
 *
 * decode_tmpl.h - a walk in fp32 vectors: the template of decode_avx512.c, decode_avx2.c and decode_c.c.
 *
 * The including file defines
 *     LANES        fp32 values of a vector
 *     COLUMNS      most vectors of query rows in one register block: 4 * COLUMNS accumulators + COLUMNS + 1 registers
 *     FN           attributes of its functions (the target)
 *     NAME(x)      x with the variant's suffix
 *     FMA(a, b, c) a * b + c over vectors
 *     widen32      (type, const void *in, float *out): one line of 32 16-bit values to fp32, in an order of its own
 *     from_order   (type, i): which of the 32 values widen32 puts at place i
 *     widen_row, narrow_row   n values in natural order
 *
 * Layout   lane = query row everywhere: Q^T [d][rows], S^T [key][rows], O^T [dim][rows].  Softmax has no horizontal
 *          step, and both products are the same register block: four rows of A, broadcast, times COLUMNS vectors of B.
 * Loop     per block of KEYS keys: for each line of K: widen 4 keys, S^T += K Q^T; softmax; for each line of V:
 *          widen all keys, O^T += V^T P^T.
 * L1       the widened line (8 KiB), 32 dims of Q^T or P^T of the block (16 or 32 KiB at 128 rows).
 * Bound by fp32 FMA.  Widening costs two instructions for 32 values and is shared by all rows. */
#include "cpu.h"

#include <math.h>
#include <string.h>

enum {
	KEYS = 64,      /* keys per block                                                              */
	DIMS = 32,      /* values of a line                                                            */
	DEPTH = 64,     /* dims of one QK pass                                                         */
	MOST_ROWS = 128 /* query rows walked at a time: P of a block, 32 KiB, stays in L1              */
};

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), may_alias)); /* for sums that wrap */

#define INLINE   FN static inline __attribute__((always_inline))
#define SPLAT(x) ((x) - (vec){0}) /* x - 0 is x for every x, so it costs nothing; 0 + x is not for -0 */

struct NAME(fp32) {
	int rows, columns; /* padded to LANES; vectors of rows */
	float *q, *s, *o;  /* Q^T [d_qk][rows], S^T [KEYS][rows], O^T [D_V][rows] */
	float *wide;       /* [KEYS][DIMS] or [4][DEPTH] */
	const unsigned char *key[KEYS];
	int seen[KEYS];
};

static size_t lay_out(struct NAME(fp32) * a, const struct problem *p, int64_t rows, unsigned char *base)
{
	const size_t padded = (size_t)(rows + LANES - 1) / LANES * LANES;
	size_t at = (sizeof *a + LINE - 1) / LINE * LINE;
	a->rows = (int)padded;
	a->columns = (int)padded / LANES;
#define TAKE(field, count)                          \
	do {                                            \
		a->field = (float *)((uintptr_t)base + at); \
		at += (size_t)(count)*4 + LINE;             \
	} while (0)
	TAKE(q, padded * (size_t)p->d_qk);
	TAKE(s, padded * KEYS);
	TAKE(o, padded * D_V);
	TAKE(wide, KEYS * DIMS);
#undef TAKE
	return (at + 255) / 256 * 256;
}

static size_t scratch_size(const struct problem *p)
{
	struct NAME(fp32) unused;
	return lay_out(&unused, p, p->rows < MOST_ROWS ? p->rows : MOST_ROWS, NULL);
}

/* ---- the register block -------------------------------------------------------------------------------------- */

/* C[4][columns vectors] += sum_k A(m, k) * B[k][columns vectors], with A(m, k) at a[m * a_m + k * a_k]; C and B have
 * `rows` floats per line.  fresh: C is taken as 0. */
INLINE void block4(int columns, int depth, const float *a, int64_t a_m, int64_t a_k, const float *b, float *c,
                   int64_t rows, int fresh)
{
	vec sum[4][COLUMNS];
	for (int m = 0; m < 4; m++)
#pragma GCC unroll 8
		for (int n = 0; n < columns; n++)
			if (fresh)
				sum[m][n] = SPLAT(0.f);
			else
				sum[m][n] = *(const vec *)(c + m * rows + n * LANES);
	for (int k = 0; k < depth; k++, a += a_k, b += rows) {
		vec line[COLUMNS];
#pragma GCC unroll 8
		for (int n = 0; n < columns; n++)
			line[n] = *(const vec *)(b + n * LANES);
#pragma GCC unroll 4
		for (int m = 0; m < 4; m++) {
			const vec x = SPLAT(a[m * a_m]);
#pragma GCC unroll 8
			for (int n = 0; n < columns; n++)
				sum[m][n] = FMA(x, line[n], sum[m][n]);
		}
	}
	for (int m = 0; m < 4; m++)
#pragma GCC unroll 8
		for (int n = 0; n < columns; n++)
			*(vec *)(c + m * rows + n * LANES) = sum[m][n];
}

/* The same over all columns, in register blocks of nearly equal width. */
INLINE void all_columns(const struct NAME(fp32) * f, int depth, const float *a, int64_t a_m, int64_t a_k,
                        const float *b, float *c, int fresh)
{
	int left = f->columns;
	for (int blocks = (left + COLUMNS - 1) / COLUMNS; blocks > 0; blocks--) {
		const int n = (left + blocks - 1) / blocks;
		switch (n) {
		case 1:
			block4(1, depth, a, a_m, a_k, b, c, f->rows, fresh);
			break;
		case 2:
			block4(2, depth, a, a_m, a_k, b, c, f->rows, fresh);
			break;
#if COLUMNS > 2
		case 3:
			block4(3, depth, a, a_m, a_k, b, c, f->rows, fresh);
			break;
#endif
#if COLUMNS > 3
		case 4:
			block4(4, depth, a, a_m, a_k, b, c, f->rows, fresh);
			break;
#endif
		default:
			__builtin_unreachable();
		}
		b += n * LANES;
		c += n * LANES;
		left -= n;
	}
}

/* ---- the two products ---------------------------------------------------------------------------------------- */

INLINE void widen_line(const struct NAME(fp32) * f, enum value_type type, int key, int line, float *out)
{
	if (f->seen[key])
		widen32(type, f->key[key] + line * LINE, out);
	else
		for (int i = 0; i < DIMS; i += LANES)
			*(vec *)(out + i) = SPLAT(0.f);
}

FN static void scores(struct NAME(fp32) * f, const struct problem *p, int keys)
{
	for (int64_t d = 0; d < p->d_qk; d += DEPTH)
		for (int k = 0; k < keys; k += 4) {
			for (int i = 0; i < 4; i++)
				for (int line = 0; line < DEPTH / DIMS; line++)
					widen_line(f, p->type, k + i, (int)d / DIMS + line, f->wide + i * DEPTH + line * DIMS);
			all_columns(f, DEPTH, f->wide, DEPTH, 1, f->q + d * f->rows, f->s + k * f->rows, d == 0);
		}
}

FN static void values(struct NAME(fp32) * f, const struct problem *p, int keys, int fresh)
{
	for (int d = 0; d < D_V; d += DIMS) {
		for (int k = 0; k < keys; k++)
			widen_line(f, p->type, k, d / DIMS, f->wide + k * DIMS);
		for (int i = 0; i < DIMS; i += 4)
			all_columns(f, keys, f->wide + i, 1, DIMS, f->s, f->o + (d + i) * f->rows, fresh);
	}
}

/* ---- softmax ------------------------------------------------------------------------------------------------- */

/* e^x for x <= ~80, relative error 2e-7; 0 below e^-86, so that no denormal is ever made.  2^y = 2^n 2^f with n the
 * nearest integer: adding 1.5 * 2^23 leaves n in the low mantissa bits. */
INLINE vec exp_vec(vec x)
{
	const vec y = x * 1.44269504f, magic = SPLAT(12582912.f);
	const vec shifted = y + magic, f = y - (shifted - magic);
	vec p = SPLAT(1.3264727e-3f);
	p = FMA(p, f, SPLAT(9.6715129e-3f));
	p = FMA(p, f, SPLAT(5.5507337e-2f));
	p = FMA(p, f, SPLAT(2.4022242e-1f));
	p = FMA(p, f, SPLAT(6.9314698e-1f));
	p = FMA(p, f, SPLAT(1.f));
	const uvec scaled = (uvec)p + ((uvec)shifted << 23);
	return (vec)((ivec)scaled & ~(ivec)(y < -125.f));
}

/* S to P for the rows of one vector: masks, moves the maximum, sums.  As on AMX, O is rescaled only when a maximum grew
 * by more than the margin, and rows whose maximum stays keep their values bit for bit. */
FN static void softmax(struct NAME(fp32) * f, struct walk *w, int column, int64_t start, int keys, int fresh)
{
	const int at = column * LANES;
	const vec scale = SPLAT(w->p->scale), minus_inf = SPLAT(-INFINITY), margin = SPLAT(6.f);
	float *s = f->s + at;
	int masked = 0;
	for (int r = at; r < at + LANES && r < w->rows; r++)
		masked |= w->lo[r] > start || w->hi[r] < start + keys;

	vec top = minus_inf;
	ivec lo, hi;
	memcpy(&lo, w->lo + at, sizeof lo);
	memcpy(&hi, w->hi + at, sizeof hi);
	for (int k = 0; k < keys; k++) {
		vec *x = (vec *)(s + k * f->rows), y = *x * scale;
		if (masked) {
			const ivec t = (ivec){0} + (int32_t)(start + k), seen = (ivec)(lo <= t) & (ivec)(t < hi);
			y = (vec)(((ivec)y & seen) | ((ivec)minus_inf & ~seen));
		}
		*x = y;
		const ivec more = (ivec)(y > top);
		top = (vec)(((ivec)y & more) | ((ivec)top & ~more));
	}

	vec m, l;
	memcpy(&m, w->m + at, sizeof m);
	memcpy(&l, w->l + at, sizeof l);
	const ivec grew = (ivec)(top > m + margin);
	int any = 0;
	for (int i = 0; i < LANES; i++)
		any |= grew[i];
	if (any) {
		const vec alpha = (vec)(((ivec)exp_vec(m - top) & grew) | ((ivec)SPLAT(1.f) & ~grew));
		m = (vec)(((ivec)top & grew) | ((ivec)m & ~grew));
		l *= alpha;
		if (!fresh)
			for (int d = 0; d < D_V; d++)
				*(vec *)(f->o + d * f->rows + at) *= alpha;
	}
	const ivec none = (ivec)(m == minus_inf);
	const vec base = (vec)((ivec)m & ~none);
	for (int k = 0; k < keys; k++) {
		vec *x = (vec *)(s + k * f->rows);
		*x = exp_vec(*x - base);
		l += *x;
	}
	memcpy(w->m + at, &m, sizeof m);
	memcpy(w->l + at, &l, sizeof l);
}

/* ---- the walk ------------------------------------------------------------------------------------------------ */

FN static void pack_q(struct NAME(fp32) * f, const struct walk *w)
{
	float line[DIMS] __attribute__((aligned(LINE)));
	for (int r = 0; r < f->rows; r++)
		for (int64_t d = 0; d < w->p->d_qk; d += DIMS) {
			memset(line, 0, sizeof line);
			if (r < w->rows)
				widen32(w->p->type, w->q[r] + d, line);
			for (int i = 0; i < DIMS; i++)
				f->q[(d + i) * f->rows + r] = line[i];
		}
}

FN static void walk_fp32(struct walk *w)
{
	struct NAME(fp32) *f = (struct NAME(fp32) *)w->scratch;
	lay_out(f, w->p, w->rows, w->scratch);
	for (int r = 0; r < f->rows; r++) {
		w->m[r] = -INFINITY;
		w->l[r] = 0;
		if (r >= w->rows) {
			w->lo[r] = 0;
			w->hi[r] = INT32_MAX;
		}
	}
	pack_q(f, w);
	for (int64_t start = w->begin; start < w->end; start += KEYS) {
		const int keys = w->end - start < KEYS ? (int)(w->end - start) : KEYS, padded = (keys + 3) / 4 * 4;
		const int fresh = start == w->begin;
		for (int k = 0; k < padded; k++) {
			f->seen[k] = k < keys && start + k >= w->low;
			if (f->seen[k])
				f->key[k] = cpu_key(w, start + k);
		}
		scores(f, w->p, padded);
		for (int column = 0; column < f->columns; column++)
			softmax(f, w, column, start, keys, fresh);
		values(f, w->p, keys, fresh);
	}
}

FN static void row_fp32(const struct walk *w, int r, float factor, float *out)
{
	const struct NAME(fp32) *f = (const struct NAME(fp32) *)w->scratch;
	for (int d = 0; d < D_V; d++)
		out[d / DIMS * DIMS + from_order(w->p->type, d % DIMS)] = f->o[d * f->rows + r] * factor;
}

FN static void fold_fp32(float *acc, float a, const float *x, float b, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		acc[i] = (a == 0 ? 0 : acc[i] * a) + x[i] * b;
}

const struct cpu_kernel NAME(cpu_kernel) = {.name = VARIANT,
                                            .most_rows = MOST_ROWS,
                                            .scratch_size = scratch_size,
                                            .walk = walk_fp32,
                                            .row = row_fp32,
                                            .fold = fold_fp32,
                                            .narrow = narrow_row,
                                            .widen = widen_row};
