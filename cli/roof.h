/* SPDX-License-Identifier: MIT
 *
 * roof.h - the limits of this machine that a decode call runs into: reading the cache, and multiplying.
 *
 * CPU: measured here, by bench/cpu_probe, with as many threads as the backend uses.
 * CUDA: measured once per card with bench/; cards that nobody measured have no roof, and no share is printed. */
#ifndef CLI_ROOF_H
#define CLI_ROOF_H

#include "flash_mla.h"

struct roof {
	double gbs, tflops; /* 0: not known */
	const char *gbs_name, *tflops_name;
};

struct roof roof_of(const struct fmla_backend_info *info, struct fmla_dtype dtype);

/* Microseconds that no implementation on this machine can undercut; 0: not known. */
double roof_us(const struct roof *roof, double bytes, double flop);

#endif
