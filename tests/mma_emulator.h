/* SPDX-License-Identifier: MIT
 *
 * mma_emulator.h - src/portable/decode_mma.cu on the CPU. */
#ifndef FMLA_TESTS_MMA_EMULATOR_H
#define FMLA_TESTS_MMA_EMULATOR_H

#include "portable/mma_buffers.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs `ctas` CTAs of decode (or of combine); order as enum emulator_order.  NULL, or what went wrong. */
const char *mma_emulate(const struct pk_shape *p, const struct mma_buffers *g, int64_t ctas, int order);
const char *mma_emulate_combine(const struct pk_shape *p, const struct mma_buffers *g, int order);

#ifdef __cplusplus
}
#endif
#endif
