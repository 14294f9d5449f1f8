/* SPDX-License-Identifier: MIT
 *
 * tile_arrival.cu - Question: when do the slices of a requested 64-token tile arrive, by way of asking (number of boxes,
 * who issues them), from L2 or from DRAM, and for pairs of CTAs by multicast or each for itself?
 *
 * 66 clusters of two CTAs, one tile under way in each, a new one every `period` clocks.  For each box: clocks from just
 * before the first request until a thread sees its barrier complete, median over tiles and CTAs.
 *
 *     nvcc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -o tile_arrival bench/micro/tile_arrival.cu && ./tile_arrival
 *
 * Answer: see docs/perf.md, "The third day". */
#include "../../src/cuda/ptx.cuh"
#include "micro.cuh"

enum {
	ROW = 1152,
	TOKENS = 64,
	TILE = ROW * TOKENS,
	SLICE = 8192,
	SLICES = 9,
	CTAS = 132,
	REPEATS = 300,
	FIELDS = SLICES + 1
};
enum way { NINE_BY_THREAD, NINE_BY_LANES, THREE_BY_THREAD, THREE_BY_WARPS, FIVE_BY_THREAD, WAYS };
enum pairing { OWN_PAGE, SAME_PAGE, MULTICAST, PAIRINGS };
static const char *const way_name[] = {"9 boxes, thread", "9 boxes, lanes", "4+4+1, thread", "4+4+1, warps",
                                       "2+2+2+2+1, thread"};
static const char *const pairing_name[] = {"own", "same", "multicast"};

static __host__ __device__ int boxes_of(int way)
{
	return way <= NINE_BY_LANES ? 9 : way <= THREE_BY_WARPS ? 3 : 5;
}

struct config {
	int pages, way, pairing, period;
};

/* The cache in boxes of one, two and four slices. */
struct maps {
	CUtensorMap one, two, four;
};

static __device__ __forceinline__ void cluster_barrier(void)
{
	cluster_arrive();
	cluster_wait();
}

static __device__ __forceinline__ void box(uint32_t dst, const CUtensorMap *map, uint32_t bar, int slice, int page,
                                           uint64_t policy, bool multicast)
{
	if (multicast)
		asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
		             ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7, %8;" ::"r"(dst),
		             "l"(map), "r"(bar), "r"(0), "r"(0), "r"(slice), "r"(page), "h"((uint16_t)3), "l"(policy)
		             : "memory");
	else
		asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
		             "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(dst),
		             "l"(map), "r"(bar), "r"(0), "r"(0), "r"(slice), "r"(page), "l"(policy)
		             : "memory");
}

/* Box n of the tile; of a pair with multicast each CTA sends every other box, or half of a large one. */
static __device__ __forceinline__ void request(const struct maps &maps, const struct config &c, int n, int tile,
                                               int rank, uint32_t dst, uint32_t bar, int page, uint64_t policy)
{
	const bool multicast = c.pairing == MULTICAST, large = boxes_of(c.way) == 3 && n < 2;
	const int each = boxes_of(c.way) == 9 ? 1 : boxes_of(c.way) == 3 ? 4 : 2, slice = n * each;
	const int slices = slice + each > SLICES ? 1 : each;
	const CUtensorMap *map = slices == 1 ? &maps.one : slices == 2 ? &maps.two : &maps.four;
	mbar_expect_tx(bar, slices * SLICE);
	if (multicast && large)
		box(dst + (slice + 2 * rank) * SLICE, &maps.two, bar, slice + 2 * rank, page, policy, true);
	else if (!multicast || ((boxes_of(c.way) == 3 ? tile : n) & 1) == rank)
		box(dst + slice * SLICE, map, bar, slice, page, policy, multicast);
}

static __global__ void __launch_bounds__(128, 1)
    probe(const __grid_constant__ struct maps maps, const struct config c, unsigned *out)
{
	extern __shared__ __align__(1024) uint8_t smem[];
	__shared__ __align__(8) uint64_t bar[SLICES];
	const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x & 1;
	if (threadIdx.x == 0) {
		for (int i = 0; i < SLICES; i++)
			mbar_init(smem_addr(&bar[i]), 1);
		mbar_init_fence();
	}
	cluster_barrier();
	const uint64_t policy = l2_evict_first();
	const uint32_t who = c.pairing == OWN_PAGE ? blockIdx.x : blockIdx.x / 2;
	for (int tile = 0; tile < REPEATS; tile++) {
		const int page = (int)((uint64_t)(tile * 1000 + who) * 2654435761ull % (uint64_t)c.pages);
		const unsigned start = clock();
		for (int n = 0; n < boxes_of(c.way); n++) {
			const bool mine = c.way == NINE_BY_LANES    ? threadIdx.x == n
			                  : c.way == THREE_BY_WARPS ? warp == n && lane == 0
			                                            : threadIdx.x == 0;
			if (mine)
				request(maps, c, n, tile, rank, smem_addr(smem), smem_addr(&bar[n]), page, policy);
		}
		__syncwarp();
		const unsigned issued = clock();
		for (int n = 0; n < boxes_of(c.way); n++) {
			mbar_wait(smem_addr(&bar[n]), tile & 1);
			if (threadIdx.x == 0)
				out[(blockIdx.x * REPEATS + tile) * FIELDS + n] = clock() - start;
		}
		if (threadIdx.x == 0)
			out[(blockIdx.x * REPEATS + tile) * FIELDS + SLICES] = issued - start;
		if (c.pairing == MULTICAST) /* the peer writes here, too */
			cluster_barrier();
		else
			__syncthreads();
		while (clock() - start < (unsigned)c.period)
			;
	}
	cluster_barrier();
}

static __global__ void fill(uint32_t *x, size_t n)
{
	for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
		x[i] = (uint32_t)i * 2654435761u;
}

static unsigned median(const std::vector<unsigned> &all, int field)
{
	std::vector<unsigned> v;
	for (int cta = 0; cta < CTAS; cta++)
		for (int tile = 20; tile < REPEATS; tile++) /* the first ones are cold */
			v.push_back(all[(size_t)(cta * REPEATS + tile) * FIELDS + field]);
	std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
	return v[v.size() / 2];
}

static void run(const struct maps &maps, const struct config &c, const char *from, unsigned *out)
{
	cudaLaunchAttribute pair;
	pair.id = cudaLaunchAttributeClusterDimension;
	pair.val.clusterDim.x = 2;
	pair.val.clusterDim.y = pair.val.clusterDim.z = 1;
	cudaLaunchConfig_t launch = {};
	launch.gridDim = CTAS;
	launch.blockDim = 128;
	launch.dynamicSmemBytes = TILE;
	launch.attrs = &pair;
	launch.numAttrs = 1;
	for (int warm_up = 1; warm_up >= 0; warm_up--)
		CHECK(cudaLaunchKernelEx(&launch, probe, maps, c, out));
	std::vector<unsigned> t((size_t)CTAS * REPEATS * FIELDS);
	CHECK(cudaMemcpy(t.data(), out, t.size() * sizeof(t[0]), cudaMemcpyDeviceToHost));
	printf("%-18s %-9s %-4s %6d %7u |", way_name[c.way], pairing_name[c.pairing], from, c.period, median(t, SLICES));
	for (int n = 0; n < boxes_of(c.way); n++)
		printf(" %5u", median(t, n));
	printf("\n");
}

int main(void)
{
	const int pages = 100003; /* 7.4 GB */
	uint8_t *kv;
	unsigned *out;
	CHECK(cudaMalloc(&kv, (size_t)pages * TILE));
	CHECK(cudaMalloc(&out, (size_t)CTAS * REPEATS * FIELDS * sizeof(*out)));
	fill<<<1320, 256>>>((uint32_t *)kv, (size_t)pages * TILE / 4);
	const PFN_cuTensorMapEncodeTiled_v12000 encode = tensor_map_encoder();
	CHECK(cudaFuncSetAttribute(probe, cudaFuncAttributeMaxDynamicSharedMemorySize, TILE));
	struct maps maps;
	for (cuuint32_t n = 1; n <= 4; n *= 2) {
		const cuuint64_t dims[4] = {64, TOKENS, SLICES, (cuuint64_t)pages}, strides[3] = {ROW, 128, TILE};
		const cuuint32_t shape[4] = {64, TOKENS, n, 1}, ones[4] = {1, 1, 1, 1};
		CHECK(encode(n == 1   ? &maps.one
		             : n == 2 ? &maps.two
		                      : &maps.four,
		             CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, kv, dims, strides, shape, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
		             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
		             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
	}
	printf("%-18s %-9s %-4s %6s %7s | clk until each box is there\n", "way", "pages", "from", "period", "issued");
	for (int period = 0; period <= 3000; period += 3000)
		for (int few = 1; few >= 0; few--) /* 300 pages stay in L2 */
			for (int pairing = 0; pairing < PAIRINGS; pairing++)
				for (int way = 0; way < WAYS; way++)
					run(maps, {few ? 300 : pages, way, pairing, period}, few ? "L2" : "DRAM", out);
	return 0;
}
