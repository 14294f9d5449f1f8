/* SPDX-License-Identifier: MIT
 *
 * kernels.h - the kernel source: every kernel of the portable backends, in one translation unit of any dialect. */
#include "dialect.h"

#include "merge.h"
#include "plan.h"

#define PK_TILE_ROWS 16
#define PK_TILE_KEYS 16             /* their product is PK_ITEMS */
#define PK_STRIDE    (D_QK / 2 + 1) /* words of a row in shared memory: odd */

#define PK_NAME(x)   x##_bf16
#define PK_LOW(w)    PK_FLOAT((w) << 16)
#define PK_HIGH(w)   PK_FLOAT((w)&0xffff0000u)
#define PK_NARROW(x) pk_to_bf16(x)
#include "decode.h"
#undef PK_NAME
#undef PK_LOW
#undef PK_HIGH
#undef PK_NARROW

#define PK_NAME(x)   x##_fp16
#define PK_LOW(w)    pk_from_fp16((uint16_t)(w))
#define PK_HIGH(w)   pk_from_fp16((uint16_t)((w) >> 16))
#define PK_NARROW(x) pk_to_fp16(x)
#include "decode.h"
#undef PK_NAME
#undef PK_LOW
#undef PK_HIGH
#undef PK_NARROW
