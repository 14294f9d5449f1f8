/* SPDX-License-Identifier: MIT
 *
 * append.cu - fmla_kv_append on the GPU: rows of new tokens into the paged cache.
 *
 * What      cache row slot / page, slot % page = latent ++ rope, per KV head; slots out of range are skipped
 * Work      a thread owns one chunk (16 bytes; a single value where something is not aligned) of TOKENS rows:
 *           threadIdx.x is the chunk, so that rows are read and written contiguously; 72 chunks x 4 = 288 threads
 * Loop      all slots and all chunks of the TOKENS rows are requested before the first store
 * Bound by  DRAM, read + write */
#include "kernels.h"
#include "launch.cuh"
#include "vector.cuh"

#include <string.h>

enum { TOKENS = 4, APPEND_THREADS = 288 };

struct append_params {
	struct append_problem a;
	int64_t num_slots;      /* num_pages * page             */
	uint32_t latent_chunks; /* of a row's latent part       */
	uint32_t chunks;        /* of a whole row               */
};

/* Where a slot's row starts in the cache; -1: nowhere. */
DEV int64_t find_slot(const struct append_params &p, int64_t slot, int64_t head)
{
	const struct append_problem &a = p.a;
	if (slot < 0 || slot >= p.num_slots)
		return -1;
	int64_t page, token;
	if (p.num_slots <= UINT32_MAX) { /* a 64-bit division costs as much as the rest of the kernel */
		page = (uint32_t)slot / (uint32_t)a.page;
		token = (uint32_t)slot - (uint32_t)page * (uint32_t)a.page;
	} else {
		page = slot / a.page;
		token = slot - page * a.page;
	}
	return page * a.kv_page + token * a.kv_token + head * a.kv_head;
}

/* Chunk `chunk` of head `head` of the rows first, first + step, ... ; `wide` is a constant at both call sites. */
DEV void append_chunk(const struct append_params &p, int64_t first, int64_t step, int64_t head, uint32_t chunk,
                      int wide)
{
	const struct append_problem &a = p.a;
	const int values = wide ? 8 : 1;
	const bool rope = chunk >= p.latent_chunks;
	const uint16_t *src = rope ? (const uint16_t *)a.rope + head * a.rope_h + (chunk - p.latent_chunks) * values
	                           : (const uint16_t *)a.latent + head * a.latent_h + chunk * values;
	const int64_t stride = rope ? a.rope_n : a.latent_n;
	uint16_t *const dst = (uint16_t *)a.kv + chunk * values;

	int64_t slot[TOKENS];
	uint4 v[TOKENS];
#pragma unroll
	for (int k = 0; k < TOKENS; k++) {
		const int64_t n = first + k * step;
		slot[k] = -1;
		v[k] = make_uint4(0, 0, 0, 0);
		if (n < a.n) {
			slot[k] = a.slots_64 ? ((const int64_t *)a.slots)[n * a.slots_stride]
			                     : ((const int32_t *)a.slots)[n * a.slots_stride];
			if (wide)
				v[k] = load_once(src + n * stride);
			else
				v[k].x = src[n * stride];
		}
	}
#pragma unroll
	for (int k = 0; k < TOKENS; k++) {
		const int64_t at = find_slot(p, slot[k], head);
		if (at < 0)
			continue;
		if (wide)
			*(uint4 *)(dst + at) = v[k];
		else
			dst[at] = (uint16_t)v[k].x;
	}
}

DEV void append_rows(const struct append_params &p, int wide)
{
	grid_launch_dependents();
	grid_wait();
	const int64_t first = (int64_t)blockIdx.x * blockDim.y * TOKENS + threadIdx.y;
	for (int64_t head = 0; head < p.a.h_kv; head++)
		for (uint32_t chunk = threadIdx.x; chunk < p.chunks; chunk += blockDim.x)
			append_chunk(p, first, blockDim.y, head, chunk, wide);
}

extern "C" __global__ void __launch_bounds__(APPEND_THREADS)
    fmla_append_wide(const __grid_constant__ struct append_params p)
{
	append_rows(p, 1);
}

extern "C" __global__ void __launch_bounds__(APPEND_THREADS)
    fmla_append_narrow(const __grid_constant__ struct append_params p)
{
	append_rows(p, 0);
}

extern "C" cudaError_t fmla_launch_append(const struct append_problem *a, cudaStream_t stream)
{
	struct append_params p;
	memset(&p, 0, sizeof(p));
	p.a = *a;
	p.num_slots = a->num_pages * a->page;
	if (a->n == 0 || p.num_slots == 0)
		return cudaSuccess;
	const uint64_t addresses = (uintptr_t)a->latent | (uintptr_t)a->rope | (uintptr_t)a->kv;
	const uint64_t lengths = (uint64_t)(a->d_latent | a->d_rope | a->latent_n | a->latent_h | a->rope_n | a->rope_h |
	                                    a->kv_page | a->kv_token | a->kv_head);
	const int wide = addresses % 16 == 0 && lengths % 8 == 0;
	p.latent_chunks = (uint32_t)(wide ? a->d_latent / 8 : a->d_latent);
	p.chunks = (uint32_t)(wide ? (a->d_latent + a->d_rope) / 8 : a->d_latent + a->d_rope);
	if (p.chunks == 0)
		return cudaSuccess;
	const uint32_t x = p.chunks < APPEND_THREADS ? p.chunks : APPEND_THREADS, y = APPEND_THREADS / x;
	const int64_t ctas = (a->n + y * TOKENS - 1) / (y * TOKENS);
	if (ctas > INT32_MAX)
		return cudaErrorInvalidValue;
	return launch((const void *)(wide ? fmla_append_wide : fmla_append_narrow), (unsigned)ctas, dim3(x, y), 0, stream, &p);
}
