/* SPDX-License-Identifier: MIT
 *
 * decode_c.c - a walk in plain C: vectors of four by the compiler's vector extension, which it maps to whatever the
 * target has. */
#include "cpu.h"
#include "value.h"

#define LANES   4
#define COLUMNS 2
#define NAME(x) x##_c
#define VARIANT "c"
#define FN
#define FMA(a, b, c) ((a) * (b) + (c))

static void widen_row(enum value_type type, const void *in, float *out, int64_t n)
{
	const uint16_t *v = in;
	if (type == TYPE_BF16)
		for (int64_t i = 0; i < n; i++)
			out[i] = float_from_bf16(v[i]);
	else
		for (int64_t i = 0; i < n; i++)
			out[i] = float_from_fp16(v[i]);
}

static void widen32(enum value_type type, const void *in, float *out)
{
	widen_row(type, in, out, 32);
}

static inline int from_order(enum value_type type, int i)
{
	(void)type;
	return i;
}

static void narrow_row(enum value_type type, const float *in, void *out, int64_t n)
{
	uint16_t *v = out;
	for (int64_t i = 0; i < n; i++)
		v[i] = type == TYPE_BF16 ? bf16_from_float(in[i]) : fp16_from_float(in[i]);
}

#include "decode_tmpl.h"
