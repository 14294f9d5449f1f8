/* SPDX-License-Identifier: MIT
 *
 * Random numbers and memory of the benchmark. */
#include "bench.h"

#include "flash_mla.h"

static uint64_t splitmix(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

double uniform(uint64_t *state)
{
	return ((double)(splitmix(state) >> 11) + 0.5) * 0x1p-53;
}

void shuffle(int32_t *x, int64_t n, uint64_t seed)
{
	for (int64_t i = 0; i < n; i++)
		x[i] = (int32_t)i;
	for (int64_t i = n - 1; i > 0; i--) {
		const int64_t j = (int64_t)(splitmix(&seed) % (uint64_t)(i + 1));
		const int32_t t = x[i];
		x[i] = x[j];
		x[j] = t;
	}
}

void *device_alloc(size_t bytes)
{
	void *p;
	CUDA(cudaMalloc(&p, bytes ? bytes : 1));
	return p;
}

void *upload(const void *host, size_t bytes)
{
	void *p = device_alloc(bytes);
	CUDA(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
	return p;
}

void fmla(fmla_ctx *ctx, fmla_status status, const char *what)
{
	must(status == FMLA_OK, what, fmla_last_error(ctx));
}
