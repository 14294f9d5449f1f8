/* SPDX-License-Identifier: MIT
 *
 * safetensors.h - tensors in and out of .safetensors files (huggingface/safetensors, format of 2022).
 *
 *     u64 little-endian n | n bytes JSON header, "{" first, spaces last | data
 *     "name": { "dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end] }   offsets from the start of data
 *
 * The file is not trusted.  Its header is read into a buffer of at most ST_MAX_HEADER bytes and described in a table of
 * ST_MAX_TENSORS entries; nothing else is allocated before every rule holds: sizes agree with dtype and shape without
 * overflow, names are unique, the tensors tile the data without hole or overlap and end where the file ends. */
#ifndef CLI_SAFETENSORS_H
#define CLI_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
	ST_MAX_HEADER = 1 << 20, /* the format allows 100 MB; a decode problem needs less than 1 kB */
	ST_MAX_TENSORS = 1024,
	ST_MAX_NAME = 128,
	ST_MAX_DIMS = 8
};

struct st_tensor {
	char name[ST_MAX_NAME];
	char dtype[8]; /* "BF16", "F16", "F32", "I32", ... */
	int32_t ndim;
	int64_t shape[ST_MAX_DIMS];
	uint64_t begin, end; /* bytes, from the start of data */
};

struct safetensors {
	struct st_tensor *tensors; /* sorted by begin */
	int count;
	uint64_t data_start; /* offset in the file */
	FILE *file;
	char error[256]; /* the sentence of a failed call */
};

/* Reads and checks the header.  st_close() also after a failure. */
bool st_open(struct safetensors *st, const char *path);
void st_close(struct safetensors *st);

/* The same rules on a file's first `size` bytes in memory, of a file of file_size bytes; does not open anything. */
bool st_parse(struct safetensors *st, const void *bytes, size_t size, uint64_t file_size);

const struct st_tensor *st_find(const struct safetensors *st, const char *name); /* NULL: absent */
bool st_read(struct safetensors *st, const struct st_tensor *tensor, void *data);

/* Writes `count` tensors; begin and end are filled in here.  metadata: key, value, key, value, ..., NULL.  The file
 * appears under its name only when it is complete. */
bool st_write(const char *path, struct st_tensor *tensors, void *const *data, int count, const char *const *metadata,
              char *error, size_t error_size);

/* Bytes per value, 0 for an unknown dtype. */
size_t st_dtype_size(const char *dtype);

#endif
