/* SPDX-License-Identifier: MIT
 *
 * cpu_probe.h - what this machine can do right now: register-resident products and streaming reads.
 *
 * A shared machine changes by the second, so a kernel is worth its share of a probe taken next to it: probe, sample,
 * probe, sample.  A sample counts as disturbed by its probe (below 0.95 of the machine's usual), never by its outcome.
 * None of the calls prints or keeps state; all run `threads` OpenMP threads (one without OpenMP). */
#ifndef FLASHMLA_CPU_PROBE_H
#define FLASHMLA_CPU_PROBE_H

#include <stddef.h>

/* GFLOP/s of all threads together on the instruction that bounds a variant of the cpu backend, operands in registers:
 *     "amx"     TDPBF16PS, bf16 products with fp32 sums
 *     "avx512"  VFMADD231PS zmm
 *     "avx2"    VFMADD231PS ymm
 *     "c"       multiply and add of 4 fp32 values (SSE2 on x86-64)
 * Takes about 0.2 ms.  0: this machine has no such instruction, or the name is unknown. */
double cpu_probe_peak(const char *variant, int threads);

/* GB/s of reading `bytes` bytes at `data` once, each thread its own consecutive share.  What is measured is where the
 * data lies: give it the >= 1 GiB of the benchmark's own KV cache for DRAM.  Takes bytes / bandwidth. */
double cpu_probe_read(const void *data, size_t bytes, int threads);

#endif
