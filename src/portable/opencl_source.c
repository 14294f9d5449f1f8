/* SPDX-License-Identifier: MIT
 *
 * The kernel source as OpenCL C, flattened by the preprocessor (Makefile), as a string in the library. */
#include "opencl_source.h"

__asm__(".pushsection .rodata\n"
        ".global fmla_opencl_source\n"
        ".hidden fmla_opencl_source\n"
        ".type fmla_opencl_source, %object\n"
        "fmla_opencl_source:\n"
        ".incbin \"" PK_OPENCL_FILE "\"\n"
        ".byte 0\n"
        ".size fmla_opencl_source, . - fmla_opencl_source\n"
        ".popsection\n");
