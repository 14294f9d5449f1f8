/* SPDX-License-Identifier: MIT
 *
 * The 16-bit formats in plain C, exact in one direction and rounded to nearest even in the other. */
#ifndef FMLA_VALUE_H
#define FMLA_VALUE_H

#include <stdint.h>
#include <string.h>

static inline float float_from_bits(uint32_t bits)
{
	float f;
	memcpy(&f, &bits, sizeof(f));
	return f;
}

static inline uint32_t bits_from_float(float f)
{
	uint32_t bits;
	memcpy(&bits, &f, sizeof(bits));
	return bits;
}

static inline float float_from_bf16(uint16_t v)
{
	return float_from_bits((uint32_t)v << 16);
}

static inline uint16_t bf16_from_float(float f)
{
	const uint32_t u = bits_from_float(f);
	if ((u & 0x7fffffff) > 0x7f800000) /* NaN: keep it one, whatever the low bits were */
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* fp16 has 5 exponent and 10 mantissa bits.  Shifted into place, a float's exponent is 112 too small, which a product
 * with 2^112 repairs, denormals included; infinity and NaN get the exponent 255. */
static inline float float_from_fp16(uint16_t v)
{
	const uint32_t sign = (uint32_t)(v & 0x8000) << 16, magnitude = (uint32_t)(v & 0x7fff) << 13;
	if (magnitude >= 0x0f800000) /* exponent 31 */
		return float_from_bits(sign | 0x70000000 | magnitude);
	return float_from_bits(sign | bits_from_float(float_from_bits(magnitude) * 0x1p112f));
}

static inline uint16_t fp16_from_float(float f)
{
	const uint32_t u = bits_from_float(f), a = u & 0x7fffffff;
	const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
	if (a > 0x7f800000)
		return sign | 0x7e00;
	if (a >= 0x477ff000) /* 65520 and more round to infinity */
		return sign | 0x7c00;
	if (a < 0x38800000) { /* below 2^-14: a multiple of 2^-24; adding 0.5 lets the FPU round to one */
		const float scaled = float_from_bits(a) + 0.5f;
		return (uint16_t)(sign | (bits_from_float(scaled) - 0x3f000000));
	}
	return (uint16_t)(sign | ((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13));
}

#endif
