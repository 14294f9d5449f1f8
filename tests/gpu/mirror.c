/* SPDX-License-Identifier: MIT
 *
 * Tensors in host and device memory, random numbers, comparison. */
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "value.h"

enum { GUARD = 256, POISON = 0x7fff };

static void poison(void *data, size_t bytes)
{
	uint16_t *v = data;
	for (size_t i = 0; i < bytes / 2; i++)
		v[i] = POISON;
}

static size_t dtype_bytes(struct fmla_dtype t)
{
	return t.bits / 8;
}

bool mirror_make(struct mirror *m, struct fmla_dtype dtype, int ndim, const int64_t *shape, const int64_t *strides)
{
	*m = (struct mirror){.used = true};
	int64_t extent = 1, dense = 1;
	for (int d = ndim - 1; d >= 0; d--) {
		m->shape[d] = shape[d];
		m->strides[d] = strides ? strides[d] : dense;
		dense *= shape[d];
		extent += (shape[d] - 1) * m->strides[d];
	}
	m->bytes = ((dense > 0 ? (size_t)extent : 0) * dtype_bytes(dtype) + 255) / 256 * 256;
	void *data = malloc(m->bytes + 1);
	EXPECT(data, "out of host memory");
	poison(data, m->bytes);
	m->on_host = (struct fmla_tensor){.data = data,
	                                  .device = {FMLA_DEVICE_CPU, 0},
	                                  .ndim = ndim,
	                                  .dtype = dtype,
	                                  .shape = m->shape,
	                                  .strides = m->strides};
	m->on_device = m->on_host;
	m->on_device.device.type = FMLA_DEVICE_CUDA;
	m->on_device.data = NULL;
	return true;
}

static bool allocate(struct mirror *m)
{
	if (m->on_device.data)
		return true;
	void *data;
	EXPECT_CUDA(cudaMalloc(&data, m->bytes + (size_t)2 * GUARD));
	m->on_device.data = (uint8_t *)data + GUARD;
	return true;
}

bool mirror_upload(struct mirror *m, cudaStream_t stream)
{
	if (!m->used)
		return true;
	if (!mirror_poison(m))
		return false;
	EXPECT_CUDA(cudaMemcpyAsync(m->on_device.data, m->on_host.data, m->bytes, cudaMemcpyHostToDevice, stream));
	return true;
}

bool mirror_poison(struct mirror *m)
{
	if (!m->used)
		return true;
	if (!allocate(m))
		return false;
	const size_t all = m->bytes + (size_t)2 * GUARD;
	void *pattern = malloc(all);
	EXPECT(pattern, "out of host memory");
	poison(pattern, all);
	const cudaError_t error = cudaMemcpy((uint8_t *)m->on_device.data - GUARD, pattern, all, cudaMemcpyHostToDevice);
	free(pattern);
	EXPECT_CUDA(error);
	return true;
}

bool mirror_download(const struct mirror *m, void *to)
{
	uint16_t guards[2][GUARD / 2];
	EXPECT_CUDA(cudaDeviceSynchronize());
	EXPECT_CUDA(cudaMemcpy(to, m->on_device.data, m->bytes, cudaMemcpyDeviceToHost));
	EXPECT_CUDA(cudaMemcpy(guards[0], (uint8_t *)m->on_device.data - GUARD, GUARD, cudaMemcpyDeviceToHost));
	EXPECT_CUDA(cudaMemcpy(guards[1], (uint8_t *)m->on_device.data + m->bytes, GUARD, cudaMemcpyDeviceToHost));
	for (int side = 0; side < 2; side++)
		for (int i = 0; i < GUARD / 2; i++)
			EXPECT(guards[side][i] == POISON, "wrote %s the tensor", side ? "behind" : "in front of");
	return true;
}

void mirror_free(struct mirror *m)
{
	free(m->on_host.data);
	if (m->on_device.data)
		cudaFree((uint8_t *)m->on_device.data - GUARD);
	*m = (struct mirror){0};
}

/* ---- random numbers ---- */

uint64_t random_next(uint64_t *state) /* splitmix64 */
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* The sum of eight 8-bit uniforms: normal enough for inputs, and fast. */
double random_normal(uint64_t *state)
{
	const uint64_t bits = random_next(state);
	int sum = 0;
	for (int i = 0; i < 8; i++)
		sum += (int)(bits >> 8 * i & 255);
	return (sum - 1020) / 209.0;
}

uint16_t value_from(float x, bool fp16)
{
	return fp16 ? fp16_from_float(x) : bf16_from_float(x);
}

float value_to(uint16_t v, bool fp16)
{
	return fp16 ? float_from_fp16(v) : float_from_bf16(v);
}

/* ---- comparison ---- */

/* Upstream's tolerances for out.  lse: a score is a sum of 576 products in fp32, so its error is a few 1e-6 of the
 * products' size, whatever the size of the sum: absolute 1e-5. */
const struct tolerance out_tolerance = {8e-4, 2.01 / 128, 5e-6};
const struct tolerance lse_tolerance = {1e-5, 8.01 / 65536, 1e-9};

static double element(const void *data, int64_t i, struct fmla_dtype dtype)
{
	if (dtype.bits == 32)
		return ((const float *)data)[i];
	return value_to(((const uint16_t *)data)[i], dtype.code == 2);
}

bool values_close(const void *got, const void *want, int64_t count, struct fmla_dtype dtype, struct tolerance t,
                  const char *what)
{
	double dot = 0, squares = 0, worst = 0;
	int64_t bad = 0, at = -1;
	for (int64_t i = 0; i < count; i++) {
		const double x = element(got, i, dtype), y = element(want, i, dtype);
		if (isfinite(x) && isfinite(y)) {
			const double excess = fabs(x - y) / fmax(t.abs, t.rel * fabs(y));
			dot += x * y;
			squares += x * x + y * y;
			if (excess <= 1)
				continue;
			if (excess > worst) {
				worst = excess;
				at = i;
			}
			bad++;
		} else if (!(isnan(x) && isnan(y)) && x != y) {
			if (worst < INFINITY) {
				worst = INFINITY;
				at = i;
			}
			bad++;
		}
	}
	EXPECT(bad == 0, "%s: %lld of %lld values differ; worst at %lld: %.9g, must be %.9g", what, (long long)bad,
	       (long long)count, (long long)at, element(got, at, dtype), element(want, at, dtype));
	EXPECT(squares == 0 || 1 - 2 * dot / squares <= t.cosine, "%s: cosine distance %.3g", what, 1 - 2 * dot / squares);
	return true;
}
