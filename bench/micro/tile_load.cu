/* SPDX-License-Identifier: MIT
 *
 * tile_load.cu - Question: which TMA box brings a 64-token tile of the cache (64 rows of 1152 bytes, contiguous) into
 * swizzled shared memory fastest, and is it the number of bytes in flight or the shape of the box that limits?
 *
 * One CTA per SM streams random pages, loads only; a consumer thread holds each tile for `hold` clocks before it frees
 * it, as the math of a decode kernel would.  "boxes of VxTxS": values x tokens x slices.
 *
 *     nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -o tile_load bench/micro/tile_load.cu && ./tile_load
 *
 * Answer: see docs/perf.md, "GPU: how a tile is fetched". */
#include "micro.cuh"

enum { ROW = 1152, TOKENS = 64, TILE = ROW * TOKENS };

struct config {
	const char *name;
	int tokens, slices; /* of a box; tokens 0: linear bulk copies of 8,192 bytes            */
	int slots;          /* tiles in the ring, or thirds of a tile when `thirds`              */
	int thirds;         /* ring of thirds (three slices each) instead of whole tiles         */
	int hold;           /* clocks from the arrival of a tile until its slot is free          */
	int slice_first;    /* the tensor's second dimension is the slice, not the token         */
	int order;          /* pages: 0 random, 1 each CTA in order through its own stretch      */
	int promotion;      /* L2 promotion of the tensor map, bytes                             */
	int evict;          /* L2 policy: 0 evict-normal, 1 evict-first, 2 evict-unchanged       */
	int ahead;          /* tiles ahead of the load that linear L2 prefetches run, 0: none    */
	int chunk;          /* bytes of an L2 prefetch                                           */
	int plain;          /* no swizzle                                                        */
};

static __device__ __forceinline__ uint32_t smem_addr(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void wait(uint32_t bar, uint32_t parity)
{
	asm volatile("{\n.reg .pred done;\nW_%=:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
	             "@!done bra W_%=;\n}" ::"r"(bar),
	             "r"(parity)
	             : "memory");
}

static __device__ __forceinline__ void expect(uint32_t bar, uint32_t bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void box(uint32_t dst, const CUtensorMap *map, uint32_t bar, int c1, int c2, int page,
                                           uint64_t policy)
{
	asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
	             "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(dst),
	             "l"(map), "r"(bar), "r"(0), "r"(c1), "r"(c2), "r"(page), "l"(policy)
	             : "memory");
}

static __device__ __forceinline__ void spin(long long clocks)
{
	const long long until = clock64() + clocks;
	while (clock64() < until)
		;
}

static __device__ __forceinline__ int page_of(const struct config &c, int tile, int pages)
{
	if (c.order)
		return (blockIdx.x * (pages / gridDim.x) + tile) % pages;
	return (int)((uint64_t)(tile * gridDim.x + blockIdx.x) * 2654435761ull % (uint64_t)pages);
}

/* Warp 0 loads, thread 32 consumes. */
static __global__ void __launch_bounds__(64, 1)
    stream(const __grid_constant__ CUtensorMap map, const uint8_t *kv, const struct config c, int tiles, int pages)
{
	extern __shared__ __align__(1024) uint8_t smem[];
	__shared__ __align__(8) uint64_t full[9], empty[9];
	if (threadIdx.x == 0) {
		for (int i = 0; i < c.slots; i++) {
			asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(smem_addr(&full[i])));
			asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(smem_addr(&empty[i])));
		}
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
	}
	__syncthreads();
	const int per_tile = c.thirds ? 3 : 1, bytes = TILE / per_tile;
	if (threadIdx.x < 32) {
		uint64_t policy;
		if (c.evict == 1)
			asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
		else if (c.evict == 2)
			asm volatile("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(policy));
		else
			asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
		for (int n = 0; n < tiles * per_tile; n++) {
			const int tile = n / per_tile, third = n % per_tile, slot = n % c.slots;
			const int page = page_of(c, tile, pages);
			if (c.ahead && third == 0 && threadIdx.x < TILE / c.chunk) {
				const int next = page_of(c, tile + (c.ahead < 0 ? 0 : c.ahead), pages);
				asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(kv + (size_t)next * TILE +
				                                                                threadIdx.x * c.chunk),
				             "r"(c.chunk)
				             : "memory");
			}
			wait(smem_addr(&empty[slot]), (n / c.slots & 1) ^ 1);
			const uint32_t dst = smem_addr(smem) + slot * bytes, bar = smem_addr(&full[slot]);
			if (threadIdx.x == 0)
				expect(bar, bytes);
			__syncwarp();
			if (c.tokens == 0) {
				if (threadIdx.x < 9)
					asm volatile(
					    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
					    "[%1], %2, [%3], %4;" ::"r"(dst + threadIdx.x * 8192),
					    "l"(kv + (size_t)page * TILE + threadIdx.x * 8192), "r"(8192), "r"(bar), "l"(policy)
					    : "memory");
				continue;
			}
			const int along = TOKENS / c.tokens, across = 9 / per_tile / c.slices; /* boxes of this request */
			if (threadIdx.x < along * across) {
				const int t = threadIdx.x / across * c.tokens, s = threadIdx.x % across * c.slices + third * 3;
				const uint32_t at = threadIdx.x * c.tokens * c.slices * 128;
				box(dst + at, &map, bar, c.slice_first ? s : t, c.slice_first ? t : s, page, policy);
			}
		}
	} else if (threadIdx.x == 32) {
		for (int tile = 0; tile < tiles; tile++) {
			for (int i = 0; i < per_tile; i++) {
				const int n = tile * per_tile + i;
				wait(smem_addr(&full[n % c.slots]), n / c.slots & 1);
			}
			for (int i = 0; i < per_tile; i++) { /* thirds become free one by one near the end of the math */
				spin(per_tile == 1 ? c.hold : i == 0 ? c.hold * 7 / 10 : c.hold * 3 / 20);
				const int slot = (tile * per_tile + i) % c.slots;
				asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_addr(&empty[slot])) : "memory");
			}
		}
	}
}

static __global__ void fill(uint32_t *x, size_t n)
{
	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
		x[i] = (uint32_t)i * 2654435761u;
}

int main(void)
{
	const int pages = 100003, sms = 132, tiles = 600;
	uint8_t *kv;
	CHECK(cudaMalloc(&kv, (size_t)pages * TILE));
	fill<<<1320, 256>>>((uint32_t *)kv, (size_t)pages * TILE / 4);
	const PFN_cuTensorMapEncodeTiled_v12000 encode = tensor_map_encoder();
	const struct config configs[] = {
	    {"linear 8 KB copies", 0, 0, 2, 0, 2200, 0, 0, 128, 1},
	    {"boxes of 64x64x3", 64, 3, 2, 0, 2200, 0, 0, 256, 1},
	    {"boxes of 64x64x3", 64, 3, 2, 0, 2200, 0, 0, 128, 1},
	    {"boxes of 64x64x3", 64, 3, 2, 0, 2200, 0, 0, 64, 1},
	    {"boxes of 64x64x3", 64, 3, 2, 0, 2200, 0, 0, 128, 0},
	    {"boxes of 64x64x3", 64, 3, 2, 0, 2200, 0, 0, 128, 2},
	    {"boxes of 64x64x1", 64, 1, 2, 0, 2200, 0, 0, 128, 1},
	    {"boxes of 64x64x9", 64, 9, 2, 0, 2200, 0, 0, 128, 1},
	    {"boxes of 64x16x9", 16, 9, 2, 0, 2200, 0, 0, 128, 1},
	    {"boxes of 64x8x9", 8, 9, 2, 0, 2200, 0, 0, 128, 1},
	    {"boxes of 64x9x64, slice first", 64, 9, 2, 0, 2200, 1, 0, 128, 1},
	    {"boxes of 64x64x3, plain", 64, 3, 2, 0, 2200, 0, 0, 128, 1, 0, 0, 1},
	    {"boxes of 64x64x3", 64, 3, 2, 0, 0, 0, 0, 128, 1},
	    {"boxes of 64x64x3", 64, 3, 2, 0, 2800, 0, 0, 128, 1},
	    {"boxes of 64x64x3", 64, 3, 2, 0, 3500, 0, 0, 128, 1},
	    {"boxes of 64x64x3, 8 thirds", 64, 3, 8, 1, 2200, 0, 0, 128, 1},
	    {"boxes of 64x64x3, 6 thirds", 64, 3, 6, 1, 2800, 0, 0, 128, 1},
	    {"boxes of 64x64x3, in order", 64, 3, 2, 0, 2200, 0, 1, 128, 1},
	    {"boxes of 64x64x3, prefetch", 64, 3, 2, 0, 2200, 0, 0, 128, 0, 1, 8192},
	};
	CHECK(cudaFuncSetAttribute(stream, cudaFuncAttributeMaxDynamicSharedMemorySize, 3 * TILE));
	cudaEvent_t t0, t1;
	CHECK(cudaEventCreate(&t0));
	CHECK(cudaEventCreate(&t1));
	for (const struct config &c : configs) {
		const cuuint64_t dims[4] = {64, c.slice_first ? 9u : 64u, c.slice_first ? 64u : 9u, (cuuint64_t)pages};
		const cuuint64_t strides[3] = {c.slice_first ? 128u : (cuuint64_t)ROW, c.slice_first ? (cuuint64_t)ROW : 128u,
		                               TILE};
		const cuuint32_t tokens = c.tokens ? c.tokens : 8, slices = c.tokens ? c.slices : 9;
		const cuuint32_t boxes[4] = {64, c.slice_first ? slices : tokens, c.slice_first ? tokens : slices, 1};
		const cuuint32_t ones[4] = {1, 1, 1, 1};
		CUtensorMap map;
		CHECK(encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, kv, dims, strides, boxes, ones,
		             CU_TENSOR_MAP_INTERLEAVE_NONE, c.plain ? CU_TENSOR_MAP_SWIZZLE_NONE : CU_TENSOR_MAP_SWIZZLE_128B,
		             c.promotion == 256   ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B
		             : c.promotion == 128 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B
		             : c.promotion == 64  ? CU_TENSOR_MAP_L2_PROMOTION_L2_64B
		                                  : CU_TENSOR_MAP_L2_PROMOTION_NONE,
		             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
		std::vector<float> times;
		const int ring = c.thirds ? c.slots * (TILE / 3) : c.slots * TILE;
		for (int i = 0; i < 7; i++) {
			CHECK(cudaEventRecord(t0));
			stream<<<sms, 64, ring>>>(map, kv, c, tiles, pages);
			CHECK(cudaEventRecord(t1));
			CHECK(cudaDeviceSynchronize());
			float ms;
			CHECK(cudaEventElapsedTime(&ms, t0, t1));
			times.push_back(ms);
		}
		std::sort(times.begin(), times.end());
		printf("%-28s slots %d hold %4d promotion %3d policy %d ahead %2d x %5d: %5.0f GB/s, %.2f us a tile\n", c.name,
		       c.slots, c.hold, c.promotion, c.evict, c.ahead, c.chunk, (double)sms * tiles * TILE / times[3] / 1e6,
		       times[3] * 1e3 / tiles);
		fflush(stdout);
	}
	return 0;
}
