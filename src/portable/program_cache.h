/* SPDX-License-Identifier: MIT
 *
 * program_cache.h - compiled OpenCL programs on disk, as compiling takes seconds.
 *
 * Where      $FMLA_PROGRAM_CACHE, else $XDG_CACHE_HOME/flash_mla, else $HOME/.cache/flash_mla; FMLA_PROGRAM_CACHE=off
 *            switches it off.  Only folders and files of this user that nobody else may write are used.
 * Name       the hash of the key: source, options, library version, platform, device and driver.  Nothing of a device's
 *            own text becomes part of a path.
 * Trust      the whole key is stored and compared, and a checksum of the program.  A file that does not fit is ignored.
 * Writing    to a new file, then renamed: readers see a whole file or none. */
#ifndef FMLA_PORTABLE_PROGRAM_CACHE_H
#define FMLA_PORTABLE_PROGRAM_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint64_t cache_hash(const void *data, size_t bytes); /* FNV-1a */

bool cache_is_on(void);

/* The program stored for `key`, to be freed, or NULL. */
unsigned char *cache_load(const char *key, size_t *bytes);

/* Keeps a program.  Failing to is no error. */
void cache_store(const char *key, const unsigned char *program, size_t bytes);

#endif
