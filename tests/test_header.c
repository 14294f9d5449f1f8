/* SPDX-License-Identifier: MIT
 *
 * The public header alone: the layouts that other languages and DLPack rely on.  tests/header.sh compiles this file as
 * C11, C17, C23, C++11 and C++20 with every warning an error, so it must be all of them. */
#include "flash_mla.h"

#include <stdio.h>

#ifdef __cplusplus
#define CHECK(condition) static_assert(condition, #condition)
#else
#define CHECK(condition) _Static_assert(condition, #condition)
#endif

/* DLTensor of dlpack.h on a 64-bit machine. */
CHECK(sizeof(struct fmla_device) == 8 && sizeof(struct fmla_dtype) == 4 && sizeof(struct fmla_tensor) == 48);
CHECK(offsetof(struct fmla_tensor, data) == 0);
CHECK(offsetof(struct fmla_tensor, device) == 8);
CHECK(offsetof(struct fmla_tensor, ndim) == 16);
CHECK(offsetof(struct fmla_tensor, dtype) == 20);
CHECK(offsetof(struct fmla_tensor, shape) == 24);
CHECK(offsetof(struct fmla_tensor, strides) == 32);
CHECK(offsetof(struct fmla_tensor, byte_offset) == 40);

/* Structs grow at the end only: the offsets of version 0.1. */
CHECK(offsetof(struct fmla_decode_args, struct_size) == 0 && offsetof(struct fmla_merge_args, struct_size) == 0);
CHECK(offsetof(struct fmla_kv_append_args, struct_size) == 0 && offsetof(struct fmla_ctx_options, struct_size) == 0);
CHECK(offsetof(struct fmla_decode_args, q) == 8 && offsetof(struct fmla_decode_args, lse) == 64);
CHECK(offsetof(struct fmla_decode_args, softmax_scale) == 72 && offsetof(struct fmla_decode_args, window) == 88);
CHECK(offsetof(struct fmla_decode_args, plan_parts) == 104 && offsetof(struct fmla_decode_args, stream) == 136);

int main(void)
{
	const struct fmla_dtype types[] = {FMLA_BF16, FMLA_FP16, FMLA_FP32, FMLA_INT32, FMLA_INT64};
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (types[i].lanes != 1)
			return 1;
#ifndef __cplusplus
	float values[2 * 3];
	const struct fmla_tensor *t = FMLA_TENSOR(values, FMLA_FP32, FMLA_DEVICE_CPU, 2, 3);
	if (t->data != values || t->ndim != 2 || t->shape[1] != 3 || t->dtype.bits != 32 || t->strides || t->byte_offset)
		return 1;
#endif
	if (fmla_version() != FMLA_VERSION_MAJOR * 10000 + FMLA_VERSION_MINOR * 100 + FMLA_VERSION_PATCH)
		return 1;
	printf("header of version %s\n", fmla_version_string());
	return 0;
}
