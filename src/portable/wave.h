/* SPDX-License-Identifier: MIT
 *
 * wave.h - operands of decode_wave.h: AMD's builtins, or an emulation with exactly their lane maps. */
#ifndef FMLA_PORTABLE_WAVE_H
#define FMLA_PORTABLE_WAVE_H

#define PK_WAVE_KEYS   32
#define PK_WAVE_STEPS  18             /* of 16 dims, of a half of D_QK                                  */
#define PK_WAVE_STRIDE (D_QK / 4 + 1) /* words of a key in shared memory                                */
#define PK_P_STRIDE    (PK_WAVE_KEYS / 4 + 1)

/* Where lane l has value j of D.  Hygon's mmac is the transpose of AMD's MFMA here (and MetaX's is like AMD's), by the
 * vendors' sources; neither was ever run by us. */
#ifdef PK_HYGON
#define PK_D_ROW(l, j)    ((l) % 16)
#define PK_D_COLUMN(l, j) ((l) / 16 + 4 * (j))
#else
#define PK_D_ROW(l, j)    (4 * ((l) / 16) + (j))
#define PK_D_COLUMN(l, j) ((l) % 16)
#endif

#ifdef PK_EMULATE
typedef int16_t pk_four __attribute__((vector_size(8)));
typedef float pk_sums __attribute__((vector_size(16)));
typedef uint64_t __attribute__((may_alias)) pk_long_word;
typedef int16_t __attribute__((may_alias)) pk_short;

/* Through memory that all lanes see; every work-item must get here. */
#define PK_MMA_SHARED                  \
	PK_SHARED pk_four all_a[PK_ITEMS]; \
	PK_SHARED pk_four all_b[PK_ITEMS];
#define PK_MMA(d, a, b)                                                                                       \
	do {                                                                                                      \
		PK_SYNC();                                                                                            \
		all_a[PK_ITEM()] = (a);                                                                               \
		all_b[PK_ITEM()] = (b);                                                                               \
		PK_SYNC();                                                                                            \
		(d) = PK_NAME(pk_mma)((d), all_a + PK_ITEM() / 64 * 64, all_b + PK_ITEM() / 64 * 64, PK_ITEM() % 64); \
	} while (0)

static inline pk_four pk_four_of(uint64_t x)
{
	pk_four v;
	memcpy(&v, &x, sizeof(v));
	return v;
}
#define PK_FOUR(x) pk_four_of(x)
#define PK_UNROLL
#else
typedef short pk_four __attribute__((ext_vector_type(4)));
typedef _Float16 pk_four_fp16 __attribute__((ext_vector_type(4)));
typedef float pk_sums __attribute__((ext_vector_type(4)));
typedef uint64_t pk_long_word;
typedef short pk_short;
#define PK_FOUR(x) __builtin_bit_cast(pk_four, x)
#define PK_UNROLL  _Pragma("clang loop unroll(full)")
#define PK_MMA_SHARED
#endif

#endif
