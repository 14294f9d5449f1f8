/* SPDX-License-Identifier: MIT
 *
 * The 16-bit formats: every value both ways, and every rounding border, against the formats' definitions. */
#include "harness.h"

#include "value.h"

#include <math.h>

struct format {
	int exponent_bits, mantissa_bits;
	float (*widen)(uint16_t);
	uint16_t (*narrow)(float);
};

static const struct format formats[] = {{8, 7, float_from_bf16, bf16_from_float},
                                        {5, 10, float_from_fp16, fp16_from_float}};

static double defined(const struct format *f, uint16_t v)
{
	const int bias = (1 << (f->exponent_bits - 1)) - 1, most = (1 << f->exponent_bits) - 1;
	const int exponent = v >> f->mantissa_bits & most, mantissa = v & ((1 << f->mantissa_bits) - 1);
	const double sign = v & 0x8000 ? -1 : 1;
	if (exponent == most)
		return mantissa ? NAN : sign * INFINITY;
	if (exponent == 0)
		return sign * ldexp(mantissa, 1 - bias - f->mantissa_bits);
	return sign * ldexp((1 << f->mantissa_bits) + mantissa, exponent - bias - f->mantissa_bits);
}

static void test_every_value(void **state)
{
	const struct format *f = *state;
	for (uint32_t v = 0; v < 65536; v++) {
		const float wide = f->widen((uint16_t)v);
		const double want = defined(f, (uint16_t)v);
		assert_true(isnan(want) ? isnan(wide) : wide == want && !signbit(wide) == !signbit(want));
		if (isnan(want))
			assert_true(isnan(f->widen(f->narrow(wide)))); /* stays a NaN */
		else
			assert_int_equal(f->narrow(wide), v);
	}
}

/* Halfway between neighbours goes to the even one; a hair to either side goes to the nearer one. */
static void test_every_border(void **state)
{
	const struct format *f = *state;
	const uint16_t infinity = (uint16_t)(((1u << f->exponent_bits) - 1) << f->mantissa_bits);
	for (uint16_t v = 0; v < infinity; v++) {
		const double low = defined(f, v),
		             high = v + 1 < infinity ? defined(f, (uint16_t)(v + 1)) : 2 * low - defined(f, (uint16_t)(v - 1));
		const float half = (float)((low + high) / 2); /* exact: a float has bits to spare */
		for (int sign = 0; sign < 2; sign++) {
			const uint16_t s = sign ? 0x8000 : 0, even = (uint16_t)(v + (v & 1));
			const float h = sign ? -half : half;
			assert_int_equal(f->narrow(h), even | s);
			assert_int_equal(f->narrow(nextafterf(h, 0)), v | s);
			assert_int_equal(f->narrow(nextafterf(h, sign ? -INFINITY : INFINITY)), (v + 1) | s);
		}
	}
	assert_int_equal(f->narrow(-INFINITY), infinity | 0x8000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    {"bf16 values", test_every_value, NULL, NULL, (void *)&formats[0]},
	    {"fp16 values", test_every_value, NULL, NULL, (void *)&formats[1]},
	    {"bf16 borders", test_every_border, NULL, NULL, (void *)&formats[0]},
	    {"fp16 borders", test_every_border, NULL, NULL, (void *)&formats[1]},
	};
	return cmocka_run_group_tests_name("value", tests, NULL, NULL) != 0;
}
