/* SPDX-License-Identifier: MIT */
#ifndef FMLA_PORTABLE_HIP_OBJECTS_H
#define FMLA_PORTABLE_HIP_OBJECTS_H

/* Code objects of the portable kernels, best first; ends with a NULL name.  Empty where the library was built without a
 * compiler for them. */
struct hip_object {
	const char *arch; /* "gfx942" */
	const void *image;
};
extern const struct hip_object hip_objects[] __attribute__((visibility("hidden")));

#endif
