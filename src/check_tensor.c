/* SPDX-License-Identifier: MIT
 *
 * Stage 1, check: the rules that hold for any tensor, whatever the call. */
#include "check_tensor.h"

size_t value_bytes(struct fmla_dtype t)
{
	return t.bits / 8u;
}

int is_dtype(struct fmla_dtype t, struct fmla_dtype want)
{
	return t.code == want.code && t.bits == want.bits && t.lanes == want.lanes;
}

fmla_status check_dtype(struct fmla_ctx *ctx, const struct view *v, struct fmla_dtype want, const char *want_name)
{
	REQUIRE(ctx, is_dtype(v->dtype, want), "dtype of %s is {code %d, bits %d, lanes %d}, must be %s", v->name,
	        v->dtype.code, v->dtype.bits, v->dtype.lanes, want_name);
	return FMLA_OK;
}

/* Strides of dimensions of size 1 or 0 carry no meaning and callers leave anything there: they become dense ones, so
 * that everything behind this file may use them. */
static fmla_status read_strides(struct fmla_ctx *ctx, const struct fmla_tensor *t, struct view *v)
{
	int64_t dense = 1, last = 0; /* last: offset of the last element */
	for (int d = v->ndim - 1; d >= 0; d--) {
		const int64_t n = v->n[d];
		v->stride[d] = t->strides && n > 1 ? t->strides[d] : dense;
		REQUIRE(ctx, v->stride[d] >= 0, "stride %d of %s is %lld, must not be negative", d, v->name,
		        (long long)v->stride[d]);
		int64_t span;
		const int overflow = __builtin_mul_overflow(n > 0 ? n - 1 : 0, v->stride[d], &span) ||
		                     __builtin_add_overflow(last, span, &last) || last > INT64_MAX / 16 ||
		                     __builtin_mul_overflow(v->stride[d], n > 0 ? n : 1, &dense);
		REQUIRE(ctx, !overflow, "shape and strides of %s overflow 64-bit addresses at dimension %d", v->name, d);
	}
	return FMLA_OK;
}

fmla_status read_tensor(struct fmla_ctx *ctx, const char *name, const struct fmla_tensor *t, int ndim, int ndim_2,
                        const char *axes, struct view *v)
{
	REQUIRE(ctx, t, "%s is NULL, must be a tensor %s", name, axes);
	REQUIRE(ctx, t->ndim == ndim || (ndim_2 && t->ndim == ndim_2), "%s has %d dimensions, must be %s", name, t->ndim,
	        axes);
	REQUIRE(ctx, t->shape, "shape of %s is NULL", name);
	*v = (struct view){.name = name, .ndim = t->ndim, .device = t->device, .dtype = t->dtype};
	for (int d = 0; d < v->ndim; d++) {
		v->n[d] = t->shape[d];
		REQUIRE(ctx, v->n[d] >= 0 && v->n[d] <= INT32_MAX, "dimension %d of %s is %lld, must be 0 .. 2147483647", d,
		        name, (long long)v->n[d]);
	}
	TRY(read_strides(ctx, t, v));
	REQUIRE(ctx, t->byte_offset <= (uint64_t)INT64_MAX, "byte_offset of %s is %llu", name,
	        (unsigned long long)t->byte_offset);
	if (v->device.type == FMLA_DEVICE_OPENCL) {
		v->data = t->data;
		v->at = (int64_t)t->byte_offset;
	} else {
		v->data = t->data ? (char *)t->data + t->byte_offset : NULL;
	}
	return FMLA_OK;
}

fmla_status check_last_stride(struct fmla_ctx *ctx, const struct view *v)
{
	REQUIRE(ctx, v->stride[v->ndim - 1] == 1, "last stride of %s is %lld, must be 1", v->name,
	        (long long)v->stride[v->ndim - 1]);
	return FMLA_OK;
}

fmla_status check_strides_of_8(struct fmla_ctx *ctx, const struct view *v)
{
	for (int d = 0; d < v->ndim - 1; d++)
		REQUIRE(ctx, v->n[d] <= 1 || v->stride[d] % 8 == 0, "stride %d of %s is %lld, must be a multiple of 8", d,
		        v->name, (long long)v->stride[d]);
	return FMLA_OK;
}

fmla_status check_dim(struct fmla_ctx *ctx, const struct view *v, int d, int64_t want, const char *why)
{
	REQUIRE(ctx, v->n[d] == want, "dimension %d of %s is %lld, must be %lld (%s)", d, v->name, (long long)v->n[d],
	        (long long)want, why);
	return FMLA_OK;
}

fmla_status check_device(struct fmla_ctx *ctx, const struct view *v, const struct view *as)
{
	REQUIRE(ctx, v->device.type == as->device.type && v->device.id == as->device.id,
	        "%s is on device %d:%d, %s on %d:%d; all tensors must be on one device", v->name, v->device.type,
	        v->device.id, as->name, as->device.type, as->device.id);
	return FMLA_OK;
}

static int64_t num_values(const struct view *v)
{
	for (int d = 0; d < v->ndim; d++)
		if (v->n[d] == 0)
			return 0;
	return 1; /* only "none" or "some" is ever asked */
}

fmla_status check_data(struct fmla_ctx *ctx, const struct view *v, size_t align)
{
	REQUIRE(ctx, v->data || num_values(v) == 0, "data of %s is NULL", v->name);
	if (v->device.type == FMLA_DEVICE_OPENCL) {
		REQUIRE(ctx, (size_t)v->at % align == 0, "byte_offset of %s is %lld, must be a multiple of %zu", v->name,
		        (long long)v->at, align);
		return FMLA_OK;
	}
	REQUIRE(ctx, (uintptr_t)v->data % align == 0, "data of %s is %p, must be %zu-byte aligned", v->name,
	        (void *)v->data, align);
	return FMLA_OK;
}

/* Each stride, from the smallest up, must step over all before. */
fmla_status check_no_overlap(struct fmla_ctx *ctx, const struct view *v)
{
	if (num_values(v) == 0)
		return FMLA_OK;
	int order[MAX_DIMS] = {0}; /* dimensions by stride */
	for (int d = 0; d < v->ndim; d++) {
		int at = d;
		for (; at > 0 && v->stride[order[at - 1]] > v->stride[d]; at--)
			order[at] = order[at - 1];
		order[at] = d;
	}
	int64_t covered = 1; /* elements from 0 that the dimensions so far reach */
	for (int i = 0; i < v->ndim; i++) {
		const int d = order[i];
		if (v->n[d] == 1)
			continue;
		REQUIRE(ctx, v->stride[d] >= covered, "stride %d of %s is %lld: elements of an output would share memory", d,
		        v->name, (long long)v->stride[d]);
		covered += (v->n[d] - 1) * v->stride[d];
	}
	return FMLA_OK;
}

fmla_status read_value_type(struct fmla_ctx *ctx, const struct view *v, int fp32_too, enum value_type *type)
{
	if (is_dtype(v->dtype, (struct fmla_dtype)FMLA_BF16))
		*type = TYPE_BF16;
	else if (is_dtype(v->dtype, (struct fmla_dtype)FMLA_FP16))
		*type = TYPE_FP16;
	else if (fp32_too && is_dtype(v->dtype, (struct fmla_dtype)FMLA_FP32))
		*type = TYPE_FP32;
	else
		return fmla_fail(ctx, FMLA_ERR_ARGUMENT, "dtype of %s is {code %d, bits %d, lanes %d}, must be bf16%s", v->name,
		                 v->dtype.code, v->dtype.bits, v->dtype.lanes, fp32_too ? ", fp16 or fp32" : " or fp16");
	return FMLA_OK;
}

fmla_status check_same_dtype(struct fmla_ctx *ctx, const struct view *v, const struct view *as)
{
	REQUIRE(ctx, is_dtype(v->dtype, as->dtype),
	        "dtype of %s is {code %d, bits %d, lanes %d}, must be that of %s: {%d, %d, %d}", v->name, v->dtype.code,
	        v->dtype.bits, v->dtype.lanes, as->name, as->dtype.code, as->dtype.bits, as->dtype.lanes);
	return FMLA_OK;
}

fmla_status read_vector(struct fmla_ctx *ctx, const char *name, const struct fmla_tensor *t, int64_t n, const char *why,
                        struct fmla_dtype dtype, const char *dtype_name, const struct view *as, struct view *v)
{
	TRY(read_tensor(ctx, name, t, 1, 0, why, v));
	TRY(check_dim(ctx, v, 0, n, why));
	TRY(check_dtype(ctx, v, dtype, dtype_name));
	TRY(check_last_stride(ctx, v));
	return check_device(ctx, v, as);
}
