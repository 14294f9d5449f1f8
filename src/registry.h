/* SPDX-License-Identifier: MIT
 *
 * Which backends this build has, in the order in which they are tried. */
#ifndef FMLA_REGISTRY_H
#define FMLA_REGISTRY_H

#include "backend.h"

extern const struct fmla_backend *const fmla_backends[]; /* ends with NULL */

const struct fmla_backend *fmla_backend_named(const char *name); /* NULL: none                  */
const char *fmla_backend_names(void);                            /* "cuda, cpu, ref" for messages */

#endif
