/* SPDX-License-Identifier: MIT */
#ifndef FMLA_PORTABLE_OPENCL_SOURCE_H
#define FMLA_PORTABLE_OPENCL_SOURCE_H

extern const char fmla_opencl_source[] __attribute__((visibility("hidden")));

#endif
