/* SPDX-License-Identifier: MIT
 *
 * stream_shares.cu - Question: what does it cost that SMs get unequal shares of the memory's bandwidth?
 *
 * Every CTA streams its tiles of 64 tokens (three boxes each, as decode_swap.cuh requests them) from random pages and holds
 * each for `hold` clocks.  Equal parts, or all but the last `dealt` tiles of each part, which go to whoever is free.
 * Launches follow each other in a row; `ends` are those of the CTAs of the last one, from its first CTA's start.
 *
 *     nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -o stream_shares bench/micro/stream_shares.cu &&
 *     ./stream_shares
 *
 * Answer: see docs/perf.md, "full batches: how work is dealt out". */
#include "../../src/cuda/ptx.cuh"
#include "micro.cuh"

enum { ROW = 1152, TOKENS = 64, TILE = ROW * TOKENS, PAGES = 60013, MAX_CTAS = 132, MAX_SLOTS = 8, MAX_LAUNCHES = 64 };

struct config {
	int ctas, tiles;   /* tiles: a CTA's equal part */
	int slots, tokens; /* of the ring; of a slot    */
	int hold;          /* clocks a tile             */
	int dealt;
};

/* What the launches share, and what the CTAs of the last one leave. */
struct board {
	int taken[MAX_LAUNCHES]; /* of the dealt tiles */
	unsigned long long begin[MAX_CTAS], end[MAX_CTAS];
};

static __device__ __forceinline__ unsigned long long now(void)
{
	unsigned long long ns;
	asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
	return ns;
}

static __device__ __forceinline__ void box(uint32_t dst, const CUtensorMap *map, uint32_t bar, int token, int slice,
                                           int page, uint64_t policy)
{
	asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
	             "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(dst),
	             "l"(map), "r"(bar), "r"(0), "r"(token), "r"(slice), "r"(page), "l"(policy)
	             : "memory");
}

/* The next tile of the batch for a CTA that has requested n so far, -1: none is left. */
static __device__ __forceinline__ int next_tile(const struct config &c, int n, int *taken)
{
	const int own = c.tiles - c.dealt;
	if (n < own)
		return n * c.ctas + (int)blockIdx.x;
	const int dealt = c.dealt > 0 ? atomicAdd(taken, 1) : c.ctas;
	return dealt < c.dealt * c.ctas ? own * c.ctas + dealt : -1;
}

/* Thread 0 requests, thread 32 holds and frees. */
static __global__ void __launch_bounds__(64, 1)
    stream(const __grid_constant__ CUtensorMap map, const struct config c, struct board *board, int launch)
{
	extern __shared__ __align__(1024) uint8_t smem[];
	__shared__ __align__(8) uint64_t full[MAX_SLOTS], empty[MAX_SLOTS];
	__shared__ volatile bool last[MAX_SLOTS]; /* nothing follows; published by `full` */
	const int bytes = ROW * c.tokens, halves = TOKENS / c.tokens;
	if (threadIdx.x == 0) {
		for (int i = 0; i < c.slots; i++) {
			mbar_init(smem_addr(&full[i]), 1);
			mbar_init(smem_addr(&empty[i]), 1);
		}
		mbar_init_fence();
	}
	__syncthreads();
	grid_wait();
	if (threadIdx.x == 0) {
		const uint64_t policy = l2_evict_first();
		int n = 0, slot = 0;
		board->begin[blockIdx.x] = now();
		for (int tiles = 0, tile; (tile = next_tile(c, tiles, &board->taken[launch])) >= 0; tiles++) {
			const int page = (int)((uint64_t)(tile + launch * 7919) * 2654435761ull % (uint64_t)PAGES);
			for (int h = 0; h < halves; h++, n++) {
				slot = n % c.slots;
				mbar_wait(smem_addr(&empty[slot]), (n / c.slots & 1) ^ 1);
				last[slot] = false;
				mbar_expect_tx(smem_addr(&full[slot]), bytes);
				for (int i = 0; i < 3; i++)
					box(smem_addr(smem) + slot * bytes + i * c.tokens * 384, &map, smem_addr(&full[slot]), h * c.tokens,
					    3 * i, page, policy);
			}
		}
		slot = n % c.slots;
		mbar_wait(smem_addr(&empty[slot]), (n / c.slots & 1) ^ 1);
		last[slot] = true;
		mbar_arrive(smem_addr(&full[slot]));
		grid_launch_dependents();
	} else if (threadIdx.x == 32) {
		for (int n = 0;; n++) {
			const int slot = n % c.slots;
			mbar_wait(smem_addr(&full[slot]), n / c.slots & 1);
			if (last[slot])
				break;
			const long long until = clock64() + c.hold / halves;
			while (clock64() < until)
				;
			mbar_arrive(smem_addr(&empty[slot]));
		}
		board->end[blockIdx.x] = now();
	}
}

static __global__ void fill(uint32_t *x, size_t n)
{
	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
		x[i] = (uint32_t)i * 2654435761u;
}

int main(void)
{
	static const struct config configs[] = {
	    {132, 62, 2, 64, 2200, 0},  {132, 62, 2, 64, 2200, 8},   {128, 64, 2, 64, 2200, 0},  {128, 64, 2, 64, 2200, 8},
	    {132, 248, 2, 64, 2200, 0}, {132, 248, 2, 64, 2200, 16}, {128, 256, 2, 64, 2200, 0}, {128, 256, 2, 64, 2200, 8},
	    {128, 256, 5, 32, 2200, 0}, {128, 256, 3, 32, 2200, 0},  {128, 256, 8, 16, 2200, 0}, {128, 256, 5, 16, 2200, 0},
	    {128, 16, 2, 64, 2200, 0},  {132, 4, 2, 64, 2200, 0},
	};
	uint8_t *kv;
	struct board *board;
	CHECK(cudaMalloc(&kv, (size_t)PAGES * TILE));
	CHECK(cudaMalloc(&board, sizeof(*board)));
	fill<<<1320, 256>>>((uint32_t *)kv, (size_t)PAGES * TILE / 4);
	const PFN_cuTensorMapEncodeTiled_v12000 encode = tensor_map_encoder();
	CHECK(cudaFuncSetAttribute(stream, cudaFuncAttributeMaxDynamicSharedMemorySize, 3 * TILE));
	cudaEvent_t t0, t1;
	CHECK(cudaEventCreate(&t0));
	CHECK(cudaEventCreate(&t1));
	for (const struct config &c : configs) {
		const cuuint64_t dims[4] = {64, TOKENS, 9, PAGES}, strides[3] = {ROW, 128, TILE};
		const cuuint32_t boxes[4] = {64, (cuuint32_t)c.tokens, 3, 1}, ones[4] = {1, 1, 1, 1};
		CUtensorMap map;
		CHECK(encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, kv, dims, strides, boxes, ones,
		             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
		             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
		CHECK(cudaMemset(board, 0, sizeof(*board)));
		cudaLaunchAttribute attr = {};
		attr.id = cudaLaunchAttributeProgrammaticStreamSerialization;
		attr.val.programmaticStreamSerializationAllowed = 1;
		cudaLaunchConfig_t launch = {};
		launch.gridDim = dim3((unsigned)c.ctas);
		launch.blockDim = dim3(64);
		launch.dynamicSmemBytes = (size_t)(c.slots * ROW * c.tokens);
		launch.attrs = &attr;
		launch.numAttrs = 1;
		const int launches = c.tiles >= 200 ? 20 : MAX_LAUNCHES - 1;
		for (int i = 0; i <= launches; i++) {
			if (i == 1)
				CHECK(cudaEventRecord(t0));
			CHECK(cudaLaunchKernelEx(&launch, stream, map, c, board, i));
		}
		CHECK(cudaEventRecord(t1));
		CHECK(cudaDeviceSynchronize());
		float ms;
		CHECK(cudaEventElapsedTime(&ms, t0, t1));
		struct board b;
		CHECK(cudaMemcpy(&b, board, sizeof(b), cudaMemcpyDeviceToHost));
		const unsigned long long first = *std::min_element(b.begin, b.begin + c.ctas);
		std::vector<double> ends;
		for (int i = 0; i < c.ctas; i++)
			ends.push_back((double)(b.end[i] - first) * 1e-3);
		std::sort(ends.begin(), ends.end());
		const double us = ms * 1e3 / launches;
		printf("%d CTAs x %3d tiles, %d slots of %d tokens, %2d dealt: %7.2f us %5.0f GB/s, ends %.1f (median %.1f) "
		       "%.1f\n",
		       c.ctas, c.tiles, c.slots, c.tokens, c.dealt, us, (double)c.ctas * c.tiles * TILE / us / 1e3, ends[0],
		       ends[ends.size() / 2], ends.back());
		fflush(stdout);
	}
	return 0;
}
