/* SPDX-License-Identifier: MIT
 *
 * roof.h - the limits of this machine that a decode call runs into: reading the cache, and multiplying.
 *
 * CPU: probed next to every sample (bench/cpu_probe.h), with the backend's threads and instructions, on the KV caches
 * themselves; so a shared machine that slows down for a second slows its limit down as well.
 * CUDA: measured once per card; cards that nobody measured have no limit, and no share is printed. */
#ifndef CLI_ROOF_H
#define CLI_ROOF_H

#include "flash_mla.h"

#include <stddef.h>

struct roof {
	double gbs, tflops; /* 0: not known */
};

/* kv: the caches that the next sample reads. */
struct roof roof_probe(const struct fmla_backend_info *info, const void *kv, size_t bytes);

/* CPU seconds that everybody else on this machine has used so far (user, system, stolen by the host), to 0.01 s; a
 * probe of a fraction of a millisecond cannot see another process that comes and goes. */
double others_cpu_seconds(void);

/* "memory read" and "AMX bf16", for tables and pictures. */
const char *roof_read_name(const struct fmla_backend_info *info);
const char *roof_compute_name(const struct fmla_backend_info *info);

/* Microseconds that no implementation can undercut below this roof; 0: not known. */
double roof_us(struct roof roof, double bytes, double flop);

#endif
