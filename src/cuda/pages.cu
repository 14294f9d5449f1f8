/* SPDX-License-Identifier: MIT
 *
 * pages.cu - FMLA_CHECK_PAGES: the first used entry of the page table that names no page.
 *
 * A warp looks at the entries of one request that hold a key somebody sees.  *first becomes request << 32 | entry of the
 * first wrong one; the caller sets it to all ones before. */
#include "walk.cuh"

enum { PAGES_THREADS = 256, PAGES_CTAS = 512 };

extern "C" __global__ void __launch_bounds__(PAGES_THREADS)
    fmla_check_pages(const __grid_constant__ struct decode_params p, unsigned long long *first)
{
	const int lane = threadIdx.x & 31, warps = gridDim.x * (PAGES_THREADS / 32);
	for (int req = blockIdx.x * (PAGES_THREADS / 32) + (threadIdx.x >> 5); req < p.b; req += warps) {
		const int64_t len = request_len(p, req), tokens = request_tokens(p, req);
		if (tokens <= 0)
			continue;
		const int64_t hidden = p.window > 0 ? len - tokens + 1 - p.window : 0; /* keys before the first window */
		for (int64_t e = (hidden > 0 ? hidden / p.page : 0) + lane; e * p.page < len; e += 32)
			if ((unsigned)p.block_table[req * p.table_stride + e] >= (unsigned)p.num_pages)
				atomicMin(first, (unsigned long long)req << 32 | (unsigned long long)e);
	}
}

extern "C" cudaError_t fmla_launch_check_pages(const struct decode_params *p, uint64_t *first, cudaStream_t stream)
{
	fmla_check_pages<<<PAGES_CTAS, PAGES_THREADS, 0, stream>>>(*p, (unsigned long long *)first);
	return cudaGetLastError();
}
