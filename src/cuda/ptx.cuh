/* SPDX-License-Identifier: MIT
 *
 * One function, one PTX instruction (PTX ISA, chapter "Instruction Set").  Shared-memory addresses are the 32-bit
 * addresses of the shared window (smem_addr); sizes in bytes. */
#ifndef FMLA_PTX_CUH
#define FMLA_PTX_CUH

#include <cuda.h>
#include <stdint.h>

#define DEV static __device__ __forceinline__

DEV uint32_t smem_addr(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- mbarrier ---- */

DEV void mbar_init(uint32_t bar, uint32_t arrivals)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals));
}

/* Makes the inits visible to the async proxy. */
DEV void mbar_init_fence(void)
{
	asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEV void mbar_expect_tx(uint32_t bar, uint32_t bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

/* Without arriving. */
DEV void mbar_expect_more(uint32_t bar, uint32_t bytes)
{
	asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

DEV void mbar_arrive(uint32_t bar)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* Arrives on the barrier at the same place in CTA `rank` of the cluster; without a cluster, rank 0 is this CTA. */
DEV void mbar_arrive_cluster(uint32_t bar, uint32_t rank)
{
	asm volatile("{\n"
	             ".reg .b32 there;\n"
	             "mapa.shared::cluster.u32 there, %0, %1;\n"
	             "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
	             "}" ::"r"(bar),
	             "r"(rank)
	             : "memory");
}

/* Waits until the phase with this parity has completed. */
DEV void mbar_wait(uint32_t bar, uint32_t parity)
{
	asm volatile("{\n"
	             ".reg .pred done;\n"
	             "WAIT_%=:\n"
	             "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
	             "@!done bra WAIT_%=;\n"
	             "}" ::"r"(bar),
	             "r"(parity)
	             : "memory");
}

/* ---- bulk tensor copies ---- */

DEV void tma_prefetch_map(const CUtensorMap *map)
{
	asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* A box of a 5-D tensor into shared memory; completes on `bar`. */
DEV void tma_load_5d(uint32_t dst, const CUtensorMap *map, uint32_t bar, int c0, int c1, int c2, int c3, int c4,
                     uint64_t policy)
{
	asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
	             "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(dst),
	             "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy)
	             : "memory");
}

/* A hint: fetch the box into L2. */
DEV void tma_prefetch_5d(const CUtensorMap *map, int c0, int c1, int c2, int c3, int c4)
{
	asm volatile("cp.async.bulk.prefetch.tensor.5d.L2.global.tile [%0, {%1, %2, %3, %4, %5}];" ::"l"(map), "r"(c0),
	             "r"(c1), "r"(c2), "r"(c3), "r"(c4)
	             : "memory");
}

/* The same box into both CTAs of a cluster, at the same address; completes on the barrier `bar` of each. */
DEV void tma_load_5d_pair(uint32_t dst, const CUtensorMap *map, uint32_t bar, int c0, int c1, int c2, int c3, int c4,
                          uint64_t policy)
{
	asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
	             ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %9, %8;" ::"r"(dst),
	             "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy), "h"((uint16_t)3)
	             : "memory");
}

/* Plain bulk copies; addresses and sizes are multiples of 16 bytes.  A load completes on `bar`. */
DEV void bulk_load(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar)
{
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
	             "l"(src), "r"(bytes), "r"(bar)
	             : "memory");
}

DEV void bulk_store(void *dst, uint32_t src, uint32_t bytes)
{
	asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src), "r"(bytes)
	             : "memory");
}

/* Until this thread's stores have read their shared memory. */
DEV void bulk_store_wait(void)
{
	asm volatile("cp.async.bulk.commit_group;\n"
	             "cp.async.bulk.wait_group.read 0;" ::
	                 : "memory");
}

/* L2 policy of data that is not read again. */
DEV uint64_t l2_evict_first(void)
{
	uint64_t policy;
	asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
	return policy;
}

/* 16 bytes from global to shared memory without registers. */
DEV void copy_async_16(uint32_t dst, const void *src)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

DEV void copy_async_wait(void)
{
	asm volatile("cp.async.wait_all;" ::: "memory");
}

/* A hint: fetch the line at `p` into L2. */
DEV void prefetch_l2(const void *p)
{
	asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* A number that another kernel may be writing: from L2, which leaves nothing stale in L1. */
DEV int32_t load_relaxed(const int32_t *p)
{
	int32_t v;
	asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
	return v;
}

/* Fetches the number at p into L1; nobody waits for it. */
DEV void prefetch_l1(const int32_t *p)
{
	asm volatile("{\n"
	             ".reg .b32 unused;\n"
	             "ld.global.s32 unused, [%0];\n"
	             "}" ::"l"(p)
	             : "memory");
}

/* ---- 16-byte words between CTAs, whole or not at all ---- */

struct __align__(16) word128
{
	uint64_t lo, hi;
};

DEV struct word128 load_acquire_128(const struct word128 *p)
{
	struct word128 v;
	asm volatile("{\n"
	             ".reg .b128 v;\n"
	             "ld.acquire.gpu.global.b128 v, [%2];\n"
	             "mov.b128 {%0, %1}, v;\n"
	             "}"
	             : "=l"(v.lo), "=l"(v.hi)
	             : "l"(p)
	             : "memory");
	return v;
}

/* Both return what was there before. */
DEV struct word128 exchange(struct word128 *p, struct word128 x)
{
	struct word128 v;
	asm volatile("{\n"
	             ".reg .b128 v, x;\n"
	             "mov.b128 x, {%3, %4};\n"
	             "atom.exch.relaxed.gpu.global.b128 v, [%2], x;\n"
	             "mov.b128 {%0, %1}, v;\n"
	             "}"
	             : "=l"(v.lo), "=l"(v.hi)
	             : "l"(p), "l"(x.lo), "l"(x.hi)
	             : "memory");
	return v;
}

DEV struct word128 compare_swap(struct word128 *p, struct word128 expected, struct word128 x)
{
	struct word128 v;
	asm volatile("{\n"
	             ".reg .b128 v, e, x;\n"
	             "mov.b128 e, {%3, %4};\n"
	             "mov.b128 x, {%5, %6};\n"
	             "atom.cas.acq_rel.gpu.global.b128 v, [%2], e, x;\n"
	             "mov.b128 {%0, %1}, v;\n"
	             "}"
	             : "=l"(v.lo), "=l"(v.hi)
	             : "l"(p), "l"(expected.lo), "l"(expected.hi), "l"(x.lo), "l"(x.hi)
	             : "memory");
	return v;
}

/* ---- ordering ---- */

/* What this thread did or saw done before, every thread of the card sees before what it does afterwards. */
DEV void fence_gpu(void)
{
	asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

/* Ordinary shared-memory writes before, tensor core or copy engine reads after. */
DEV void fence_async_proxy(void)
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The same for all memory. */
DEV void fence_async_proxy_all(void)
{
	asm volatile("fence.proxy.async.global;\n"
	             "fence.proxy.async.shared::cta;" ::
	                 : "memory");
}

DEV void named_barrier(int id, int threads)
{
	asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

DEV void named_barrier_arrive(int id, int threads)
{
	asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* A named barrier that also tells every thread whether any of them said yes. */
DEV bool barrier_or(int id, int threads, bool yes)
{
	uint32_t any;
	asm volatile("{\n"
	             ".reg .pred mine, all;\n"
	             "setp.ne.u32 mine, %3, 0;\n"
	             "bar.red.or.pred all, %1, %2, mine;\n"
	             "selp.u32 %0, 1, 0, all;\n"
	             "}"
	             : "=r"(any)
	             : "r"(id), "r"(threads), "r"((uint32_t)yes)
	             : "memory");
	return any;
}

/* A barrier of all threads of a cluster, in two halves. */
DEV void cluster_arrive(void)
{
	asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

DEV void cluster_wait(void)
{
	asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Programmatic dependent launch: wait for the grids before us; let the grid behind us start. */
DEV void grid_wait(void)
{
	asm volatile("griddepcontrol.wait;" ::: "memory");
}

DEV void grid_launch_dependents(void)
{
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* ---- registers ---- */

#define SETMAXNREG_DEC(n) asm volatile("setmaxnreg.dec.sync.aligned.u32 " #n ";")
#define SETMAXNREG_INC(n) asm volatile("setmaxnreg.inc.sync.aligned.u32 " #n ";")

DEV float exp2_approx(float x)
{
	float y;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* Transposes an 8x8 matrix of 16-bit values held by the warp, one 32-bit register a lane. */
DEV uint32_t transpose_8x8(uint32_t a)
{
	uint32_t d;
	asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
	return d;
}

/* Four 8x8 matrices to shared memory; lane i gives the address of row i % 8 of matrix i / 8. */
DEV void store_matrix_x4(uint32_t addr, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
	asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(a), "r"(b), "r"(c),
	             "r"(d)
	             : "memory");
}

DEV void store_matrix_x2_trans(uint32_t addr, uint32_t a, uint32_t b)
{
	asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(addr), "r"(a), "r"(b)
	             : "memory");
}

/* ---- wgmma ---- */

DEV void wgmma_fence(void)
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

DEV void wgmma_commit(void)
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

#define WGMMA_WAIT(n) asm volatile("wgmma.wait_group.sync.aligned " #n ";" ::: "memory")

/* Shared-memory matrix descriptors, 128-byte swizzle (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory
 * Layout"). A slice is 64 values (128 bytes) wide; eight rows of it are one 1024-byte swizzle atom. K-major:  rows are
 * M or N, the 64 values are K.       Next 8 rows: 1024 bytes.  Next 16 of K: 32 bytes. MN-major: rows are K, the 64
 * values are M or N.       Next 8 of K: 1024 bytes.  Next 64 of M or N: `slice` bytes. */
DEV uint64_t desc_k_major(uint32_t addr)
{
	return (uint64_t)((addr & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* A byte offset in descriptor units; added to a descriptor it moves the start address. */
#define DESC(bytes) ((uint64_t)(bytes) >> 4)

/* Tells the compiler that a value is the same in all lanes, so that it stays in uniform registers. */
DEV uint64_t uniform(uint64_t x)
{
	return (uint64_t)__shfl_sync(0xffffffff, (uint32_t)(x >> 32), 0) << 32 | __shfl_sync(0xffffffff, (uint32_t)x, 0);
}

DEV uint32_t uniform(uint32_t x)
{
	return __shfl_sync(0xffffffff, x, 0);
}

DEV int uniform(int x)
{
	return __shfl_sync(0xffffffff, x, 0);
}

#endif
