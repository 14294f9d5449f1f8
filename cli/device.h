/* SPDX-License-Identifier: MIT
 *
 * device.h - memory of the device that a backend computes on, the only place of the command that knows CUDA and OpenCL.
 *
 * On the CPU device memory is host memory and a copy is a memcpy, so one path (fill on the host, upload, decode,
 * download, compare) serves all.  What device_alloc returns is what struct fmla_tensor calls `data`: an address, or with
 * OpenCL a buffer, so offsets go into byte_offset and never into the pointer. */
#ifndef CLI_DEVICE_H
#define CLI_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "flash_mla.h"

enum { DEVICE_ALIGNMENT = 256 };

/* --device: which one of the GPUs or OpenCL devices; before anything else here. */
void device_select(int ordinal);
/* The name of an OpenCL device, NULL where the library knows it itself. */
const char *device_name(int type);

struct fmla_device device_of(int type);
void *device_stream(int type); /* for the library's calls; NULL: the device's default */

/* `type` is an enum fmla_device_type.  NULL: no such device in this build, or no memory; device_error() says which. */
void *device_alloc(int type, size_t bytes);
void device_free(int type, void *data);

bool device_upload(int type, void *device, size_t offset, const void *host, size_t bytes);
bool device_download(int type, void *host, const void *device, size_t bytes);
bool device_sync(int type); /* false: a kernel failed */

size_t tensor_bytes(const struct fmla_tensor *tensor); /* of a dense tensor */

const char *device_error(int type); /* a sentence about the last failure */

#endif
