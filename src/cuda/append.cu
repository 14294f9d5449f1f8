/* SPDX-License-Identifier: MIT
 *
 * append.cu - fmla_kv_append on the GPU: rows of new tokens into the paged cache.
 *
 * What      cache row slot / page, slot % page = latent ++ rope, per KV head; slots out of range are skipped
 * Work      one warp is a CTA and owns up to ROWS rows.  The copy engine brings them into shared memory, latent and rope
 *           side by side, and takes them out again as whole rows; threads only work out addresses.  Where something is
 *           not 16-byte aligned or a row is too long, threads copy value by value instead
 * Budget    18,432 bytes of shared memory for 16 rows of 576: twelve CTAs an SM keep 220 KB in flight
 * Bound by  DRAM, read + write */
#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

#include <string.h>

enum { ROWS = 16, ROWS_BYTES = 47 * 1024, NARROW_THREADS = 256 };

struct append_params {
	struct append_problem a;
	int64_t num_slots; /* num_pages * page                          */
	int32_t rows;      /* of a CTA                                   */
	uint32_t latent_bytes, rope_bytes;
};

/* Where the row of new token n starts in the cache; -1: nowhere. */
DEV int64_t find_row(const struct append_params &p, int64_t n, int64_t head)
{
	const struct append_problem &a = p.a;
	const int64_t slot =
	    a.slots_64 ? ((const int64_t *)a.slots)[n * a.slots_stride] : ((const int32_t *)a.slots)[n * a.slots_stride];
	if (slot < 0 || slot >= p.num_slots)
		return -1;
	const int64_t page = slot / a.page;
	return page * a.kv_page + (slot - page * a.page) * a.kv_token + head * a.kv_head;
}

/* Lanes 0 .. ROWS - 1 fetch the latent part of a row each, the others the rope part. */
extern "C" __global__ void __launch_bounds__(32) fmla_append_rows(const __grid_constant__ struct append_params p)
{
	extern __shared__ __align__(128) uint8_t rows[];
	__shared__ __align__(8) uint64_t full;
	const struct append_problem &a = p.a;
	const int row = threadIdx.x % ROWS, rope = threadIdx.x / ROWS;
	const int64_t first = (int64_t)blockIdx.x * p.rows, n = first + row;
	const bool mine = row < p.rows && n < a.n;
	const uint32_t row_bytes = p.latent_bytes + p.rope_bytes, bytes = rope ? p.rope_bytes : p.latent_bytes;
	const uint32_t bar = smem_addr(&full), at = smem_addr(rows) + row * row_bytes;
	if (threadIdx.x == 0) {
		mbar_init(bar, 1);
		mbar_init_fence();
	}
	__syncwarp();
	grid_launch_dependents();
	grid_wait();
	for (int64_t head = 0; head < a.h_kv; head++) {
		if (threadIdx.x == 0)
			mbar_expect_tx(bar, row_bytes * (uint32_t)(a.n - first < p.rows ? a.n - first : p.rows));
		__syncwarp();
		const uint16_t *src = rope ? (const uint16_t *)a.rope + n * a.rope_n + head * a.rope_h
		                           : (const uint16_t *)a.latent + n * a.latent_n + head * a.latent_h;
		if (mine && bytes > 0)
			bulk_load(at + (rope ? p.latent_bytes : 0), src, bytes, bar);
		const int64_t to = mine && !rope ? find_row(p, n, head) : -1;
		mbar_wait(bar, (uint32_t)head & 1);
		if (to >= 0)
			bulk_store((uint16_t *)a.kv + to, at, row_bytes);
		bulk_store_wait(); /* the rows may be overwritten, or be gone with the CTA */
		__syncwarp();
	}
}

/* Any alignment: a CTA per row and head, a value a thread. */
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    fmla_append_values(const __grid_constant__ struct append_params p)
{
	const struct append_problem &a = p.a;
	grid_launch_dependents();
	grid_wait();
	const int64_t n = blockIdx.x;
	for (int64_t head = 0; head < a.h_kv; head++) {
		const int64_t to = find_row(p, n, head);
		const uint16_t *latent = (const uint16_t *)a.latent + n * a.latent_n + head * a.latent_h;
		const uint16_t *rope = (const uint16_t *)a.rope + n * a.rope_n + head * a.rope_h;
		for (int64_t i = threadIdx.x; to >= 0 && i < a.d_latent + a.d_rope; i += NARROW_THREADS)
			((uint16_t *)a.kv)[to + i] = i < a.d_latent ? latent[i] : rope[i - a.d_latent];
	}
}

extern "C" cudaError_t fmla_launch_append(const struct append_problem *a, cudaStream_t stream)
{
	struct append_params p;
	memset(&p, 0, sizeof(p));
	p.a = *a;
	p.num_slots = a->num_pages * a->page;
	const int64_t row_bytes = 2 * (a->d_latent + a->d_rope);
	if (a->n == 0 || p.num_slots == 0 || row_bytes == 0)
		return cudaSuccess;
	if (a->n > INT32_MAX)
		return cudaErrorInvalidValue;
	const uint64_t addresses = (uintptr_t)a->latent | (uintptr_t)a->rope | (uintptr_t)a->kv;
	const uint64_t lengths = (uint64_t)(a->d_latent | a->d_rope | a->latent_n | a->latent_h | a->rope_n | a->rope_h |
	                                    a->kv_page | a->kv_token | a->kv_head);
	if (addresses % 16 != 0 || lengths % 8 != 0 || row_bytes > ROWS_BYTES)
		return launch((const void *)fmla_append_values, (unsigned)a->n, NARROW_THREADS, 0, stream, &p);
	p.rows = (int32_t)(row_bytes * ROWS > ROWS_BYTES ? ROWS_BYTES / row_bytes : ROWS);
	p.latent_bytes = (uint32_t)(2 * a->d_latent);
	p.rope_bytes = (uint32_t)(2 * a->d_rope);
	return launch((const void *)fmla_append_rows, (unsigned)((a->n + p.rows - 1) / p.rows), 32, p.rows * (int)row_bytes,
	              stream, &p);
}
