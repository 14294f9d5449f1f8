/* SPDX-License-Identifier: MIT
 *
 * append.cu - fmla_kv_append on the GPU: rows of new tokens into the paged cache.
 *
 * What      cache row slot / page, slot % page = latent ++ rope, per KV head; slots out of range are skipped
 * Work      a thread owns one chunk (16 bytes; a single value where something is not aligned) of TOKENS rows:
 *           threadIdx.x is the chunk, so that rows are read and written contiguously; 72 chunks x 4 = 288 threads
 * Loop      the chunks and slots of the next TOKENS rows are requested before those of the last are stored; CTAs stay
 * Bound by  DRAM, read + write */
#include "kernels.h"
#include "launch.cuh"
#include "vector.cuh"

#include <string.h>

enum { TOKENS = 4, APPEND_THREADS = 288, APPEND_CTAS = 3 };

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

/* Where a thread is: one chunk of head `head` of TOKENS rows from `first` on. */
struct place {
	int64_t first;
	uint32_t head, chunk;
};

struct rows {
	uint4 v[TOKENS];
	int64_t slot[TOKENS];
};

/* `wide` is a constant at every call. */
DEV void load_rows(const struct append_params &p, const struct place &at, struct rows &r, int wide)
{
	const struct append_problem &a = p.a;
	const int values = wide ? 8 : 1;
	const bool rope = at.chunk >= p.latent_chunks;
	const uint16_t *src = rope
	                          ? (const uint16_t *)a.rope + at.head * a.rope_h + (at.chunk - p.latent_chunks) * values
	                          : (const uint16_t *)a.latent + at.head * a.latent_h + at.chunk * values;
	const int64_t stride = rope ? a.rope_n : a.latent_n;
#pragma unroll
	for (int k = 0; k < TOKENS; k++) {
		const int64_t n = at.first + k * (int)blockDim.y;
		r.slot[k] = -1;
		r.v[k] = make_uint4(0, 0, 0, 0);
		if (n < a.n) {
			r.slot[k] = a.slots_64 ? ((const int64_t *)a.slots)[n * a.slots_stride]
			                       : ((const int32_t *)a.slots)[n * a.slots_stride];
			if (wide)
				r.v[k] = load_once(src + n * stride);
			else
				r.v[k].x = src[n * stride];
		}
	}
}

DEV void store_rows(const struct append_params &p, const struct place &at, const struct rows &r, int wide)
{
	uint16_t *const dst = (uint16_t *)p.a.kv + at.chunk * (wide ? 8 : 1);
#pragma unroll
	for (int k = 0; k < TOKENS; k++) {
		const int64_t offset = find_slot(p, r.slot[k], at.head);
		if (offset < 0)
			continue;
		if (wide)
			*(uint4 *)(dst + offset) = r.v[k];
		else
			dst[offset] = (uint16_t)r.v[k].x;
	}
}

/* The chunks of a row, then its heads, then the CTA's next rows. */
DEV struct place step(const struct append_params &p, struct place at)
{
	at.chunk += blockDim.x;
	if (at.chunk >= p.chunks) {
		at.chunk = threadIdx.x;
		if (++at.head == (uint32_t)p.a.h_kv) {
			at.head = 0;
			at.first += (int64_t)gridDim.x * blockDim.y * TOKENS;
		}
	}
	return at;
}

DEV void append_rows(const struct append_params &p, int wide)
{
	struct place at = {(int64_t)blockIdx.x * blockDim.y * TOKENS + threadIdx.y, 0, threadIdx.x};
	struct rows now, next;
	grid_launch_dependents();
	grid_wait();
	if (at.first < p.a.n)
		load_rows(p, at, now, wide);
	while (at.first < p.a.n) {
		const struct place then = step(p, at);
		if (then.first < p.a.n)
			load_rows(p, then, next, wide);
		store_rows(p, at, now, wide);
		now = next;
		at = then;
	}
}

extern "C" __global__ void __launch_bounds__(APPEND_THREADS, APPEND_CTAS)
    fmla_append_wide(const __grid_constant__ struct append_params p)
{
	append_rows(p, 1);
}

extern "C" __global__ void __launch_bounds__(APPEND_THREADS, APPEND_CTAS)
    fmla_append_narrow(const __grid_constant__ struct append_params p)
{
	append_rows(p, 0);
}

extern "C" cudaError_t fmla_launch_append(const struct append_problem *a, int num_sms, cudaStream_t stream)
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
	const int64_t wanted = (a->n + y * TOKENS - 1) / (y * TOKENS), most = (int64_t)num_sms * APPEND_CTAS;
	return launch((const void *)(wide ? fmla_append_wide : fmla_append_narrow),
	              (unsigned)(wanted < most ? wanted : most), dim3(x, y), 0, stream, &p);
}
