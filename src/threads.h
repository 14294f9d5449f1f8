/* SPDX-License-Identifier: MIT
 *
 * threads.h - how many threads a context has that does not say: one for each core.
 *
 * The two hyper-threads of a core share what decoding needs, tile unit, L1 and L2: two threads there take longer than
 * one.  Who sets OMP_NUM_THREADS or calls omp_set_num_threads() is obeyed. */
#ifndef FMLA_THREADS_H
#define FMLA_THREADS_H

int threads_offered(void);

/* How many cores the CPUs with allowed[cpu] != 0 belong to, cpu < n; `cpus` is /sys/devices/system/cpu.  A CPU about which
 * nothing is known there is a core of its own. */
int threads_cores(const char *cpus, const unsigned char *allowed, int n);

#endif
