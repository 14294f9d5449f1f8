/* SPDX-License-Identifier: MIT
 *
 * mma_emulator.cpp - decode_mma.cu compiled as C++: one fiber per thread of a CTA, the instructions of mma.cuh in plain
 * code.  Lanes of a warp meet at every warp-wide instruction, threads at barriers; all else runs in one of three orders.
 *
 * Asynchronous copies land as late as they may (when they are waited for), at once, or at random: a wait that is missing
 * leaves old bytes, a slot that is filled too early loses bytes that are still read. */
#define PK_EMULATE
#include "mma_emulator.h"

#include "portable/dialect.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <ucontext.h>
#include <vector>

namespace
{
enum { LANES = 32, MOST_THREADS = 256, BARRIERS = 16 + MOST_THREADS / LANES, STACK = 256 << 10, SHARED = 99 << 10 };

struct copy {
	uint32_t to;
	const void *from;
	int bytes;
};

struct fiber {
	ucontext_t context;
	int barrier, turn; /* waits until the barrier's turn is another one; barrier -1: runs */
	bool done;
	std::vector<copy> open;               /* copies not yet committed */
	std::deque<std::vector<copy>> groups; /* committed, not yet landed */
};

/* What a lane shows the others of its warp in a warp-wide instruction. */
struct shown {
	uint32_t x[6];
};

struct {
	int self, threads, order;
	fiber *fibers;
	ucontext_t scheduler;
	int arrived[BARRIERS], turn[BARRIERS];
	int any, any_result; /* of __syncthreads_or */
	shown posts[2][MOST_THREADS];
	int post[MOST_THREADS]; /* which of the two is next */
	uint64_t random;
	void (*body)(void);
	const char *error;
} cta;

alignas(128) char shared_memory[SHARED];

unsigned random_below(unsigned n)
{
	cta.random = cta.random * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(cta.random >> 33) % n;
}

void meet(int barrier, int count)
{
	fiber &f = cta.fibers[cta.self];
	if (++cta.arrived[barrier] == count) {
		cta.arrived[barrier] = 0;
		cta.turn[barrier]++;
		return;
	}
	f.barrier = barrier;
	f.turn = cta.turn[barrier];
	swapcontext(&f.context, &cta.scheduler);
}

/* Shows x to the warp and returns what all its lanes show. */
const shown *meet_warp(const shown &x)
{
	const int self = cta.self, warp = self / LANES, which = cta.post[self] ^= 1;
	cta.posts[which][self] = x;
	meet(16 + warp, LANES);
	return cta.posts[which] + warp * LANES;
}

/* 16-byte accesses of shared memory, which the hardware wants aligned. */
const char *sixteen_bytes(uint32_t at)
{
	if (at % 16 != 0 || at + 16 > SHARED)
		cta.error = "a 16-byte access of shared memory is misaligned or outside";
	return shared_memory + (at + 16 > SHARED ? 0 : at / 16 * 16);
}

void land(const copy &c)
{
	if ((uintptr_t)c.from % 16 != 0)
		cta.error = "a 16-byte copy is misaligned";
	sixteen_bytes(c.to);
	memset(shared_memory + c.to, 0, 16);
	memcpy(shared_memory + c.to, c.from, (size_t)c.bytes);
}

struct place {
	unsigned x;
};
place block;
} // namespace

/* ---- what CUDA has ------------------------------------------------------------------------------------------------ */

#define DEV                  static inline
#define COLD                 static
#define DYNAMIC_SHARED(name) char *const name = shared_memory
#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads, ctas)
#define threadIdx (place{(unsigned)cta.self})
#define blockIdx  block

#define __fdividef(a, b) ((a) / (b))

struct float2 {
	float x, y;
};
struct float4 {
	float x, y, z, w;
};
DEV float2 make_float2(float x, float y)
{
	return {x, y};
}
DEV float4 make_float4(float x, float y, float z, float w)
{
	return {x, y, z, w};
}

DEV void __syncthreads(void)
{
	meet(0, cta.threads);
}

DEV int __syncthreads_or(int x)
{
	cta.any |= x;
	if (cta.arrived[0] == cta.threads - 1) {
		cta.any_result = cta.any;
		cta.any = 0;
	}
	meet(0, cta.threads);
	return cta.any_result;
}

DEV float __shfl_xor_sync(unsigned, float x, int distance)
{
	const shown *const all = meet_warp({{bits_from_float(x)}});
	return float_from_bits(all[(cta.self % LANES) ^ distance].x[0]);
}

DEV int warp_sum(int x)
{
	const shown *const all = meet_warp({{(uint32_t)x}});
	int sum = 0;
	for (int i = 0; i < LANES; i++)
		sum += (int)all[i].x[0];
	return sum;
}

DEV int warp_max(int x)
{
	const shown *const all = meet_warp({{(uint32_t)x}});
	int top = x;
	for (int i = 0; i < LANES; i++)
		top = (int)all[i].x[0] > top ? (int)all[i].x[0] : top;
	return top;
}

/* ---- what mma.cuh has --------------------------------------------------------------------------------------------- */

DEV uint32_t shared_address(const void *p)
{
	return (uint32_t)((const char *)p - shared_memory);
}

DEV void copy_async(uint32_t to, const void *from, int bytes)
{
	const copy c = {to, from, bytes};
	if (cta.order == 1 || (cta.order == 2 && random_below(2)))
		land(c);
	else
		cta.fibers[cta.self].open.push_back(c);
}

DEV void copy_commit(void)
{
	fiber &f = cta.fibers[cta.self];
	f.groups.push_back(f.open);
	f.open.clear();
}

template <int LEFT> DEV void copy_wait(void)
{
	fiber &f = cta.fibers[cta.self];
	while (f.groups.size() > LEFT) {
		for (const copy &c : f.groups.front())
			land(c);
		f.groups.pop_front();
	}
}

struct four {
	uint32_t x[4];
};

DEV struct four load_matrices(uint32_t from)
{
	const shown *const all = meet_warp({{from}});
	const int lane = cta.self % LANES;
	struct four m;
	for (int i = 0; i < 4; i++)
		memcpy(&m.x[i], sixteen_bytes(all[8 * i + lane / 4].x[0]) + lane % 4 * 4, 4);
	return m;
}

DEV struct four load_matrices_transposed(uint32_t from)
{
	const shown *const all = meet_warp({{from}});
	const int lane = cta.self % LANES;
	struct four m;
	for (int i = 0; i < 4; i++)
		for (int j = 0; j < 2; j++)
			memcpy((char *)&m.x[i] + 2 * j, sixteen_bytes(all[8 * i + lane % 4 * 2 + j].x[0]) + lane / 4 * 2, 2);
	return m;
}

template <bool FP16> DEV float half_of_word(uint32_t word, int high)
{
	const uint16_t v = (uint16_t)(high ? word >> 16 : word);
	return FP16 ? float_from_fp16(v) : float_from_bf16(v);
}

template <bool FP16> DEV void mma(float (&c)[4], const struct four &a, uint32_t b0, uint32_t b1)
{
	const shown *const all = meet_warp({{a.x[0], a.x[1], a.x[2], a.x[3], b0, b1}});
	const int lane = cta.self % LANES;
	for (int i = 0; i < 4; i++) {
		const int row = lane / 4, column = lane % 4 * 2 + i % 2, lower = i / 2;
		for (int k = 0; k < 16; k++) {
			const shown &x = all[row * 4 + k % 8 / 2], &y = all[column * 4 + k % 8 / 2];
			c[i] = fmaf(half_of_word<FP16>(x.x[k / 8 * 2 + lower], k % 2), half_of_word<FP16>(y.x[4 + k / 8], k % 2),
			            c[i]);
		}
	}
}

template <bool FP16> DEV uint32_t pack(float low, float high)
{
	return FP16 ? fp16_from_float(low) | (uint32_t)fp16_from_float(high) << 16
	            : bf16_from_float(low) | (uint32_t)bf16_from_float(high) << 16;
}

DEV float exp2_approx(float x)
{
	return exp2f(x);
}

DEV void barrier_of(int number, int threads)
{
	meet(number, threads);
}

#include "portable/decode_mma.cu"

/* ---- running ------------------------------------------------------------------------------------------------------ */

namespace
{
const struct pk_shape *shape;
const struct mma_buffers *buffers;

template <class T> void body(void)
{
	if (buffers->plain && shape->fp16)
		decode<T, true, true>(*shape, *buffers);
	else if (buffers->plain)
		decode<T, false, true>(*shape, *buffers);
	else if (shape->fp16)
		decode<T, true, false>(*shape, *buffers);
	else
		decode<T, false, false>(*shape, *buffers);
}

void body_of_combine(void)
{
	combine_kernel *const kernel = shape->fp16 ? combine_of<true>(buffers->combine_team, buffers->combine_wide)
	                                           : combine_of<false>(buffers->combine_team, buffers->combine_wide);
	kernel(*shape, *buffers);
}

void start_fiber(void)
{
	cta.body();
	cta.fibers[cta.self].done = true;
	swapcontext(&cta.fibers[cta.self].context, &cta.scheduler);
}

void prepare(fiber &f, char *stack)
{
	getcontext(&f.context);
	f.context.uc_stack.ss_sp = stack;
	f.context.uc_stack.ss_size = STACK;
	f.context.uc_link = NULL;
	f.barrier = -1;
	makecontext(&f.context, start_fiber, 0);
}

const char *run_cta(std::vector<fiber> &fibers, char *stacks)
{
	for (int i = 0; i < cta.threads; i++)
		prepare(fibers[(size_t)i], stacks + (size_t)i * STACK);
	memset(shared_memory, 0xff, sizeof(shared_memory));
	memset(cta.arrived, 0, sizeof(cta.arrived));
	for (int done = 0; done < cta.threads;) {
		bool ran = false;
		done = 0;
		const int first = cta.order == 2 ? (int)random_below((unsigned)cta.threads) : 0;
		for (int k = 0; k < cta.threads; k++) {
			const int i = cta.order == 1 ? cta.threads - 1 - k : (first + k) % cta.threads;
			fiber &f = fibers[(size_t)i];
			done += f.done;
			if (f.done || (f.barrier >= 0 && cta.turn[f.barrier] == f.turn))
				continue;
			f.barrier = -1;
			cta.self = i;
			ran = true;
			swapcontext(&cta.scheduler, &f.context);
		}
		if (!ran && done < cta.threads)
			return "threads wait for each other at different barriers";
	}
	return cta.error;
}

const char *run(void (*body)(void), int threads, int64_t ctas)
{
	std::vector<fiber> fibers;
	char *const stacks = (char *)malloc((size_t)threads * STACK);
	const char *error = NULL;
	cta.threads = threads;
	cta.body = body;
	for (int64_t i = 0; i < ctas && !error; i++) {
		fibers.assign((size_t)threads, fiber());
		cta.fibers = fibers.data();
		block.x = (unsigned)i;
		error = run_cta(fibers, stacks);
	}
	free(stacks);
	return error;
}

template <class T> const char *run_decode(int64_t ctas)
{
	return run(body<T>, T::THREADS, ctas);
}

void begin(const struct pk_shape *p, const struct mma_buffers *g, int order)
{
	shape = p;
	buffers = g;
	cta.order = order;
	cta.random = 1;
	cta.error = NULL;
}
} // namespace

extern "C" const char *mma_emulate(const struct pk_shape *p, const struct mma_buffers *g, int64_t ctas, int order)
{
	begin(p, g, order);
	return p->tile_rows == 16   ? run_decode<tile_16>(ctas)
	       : p->tile_rows == 32 ? run_decode<tile_32>(ctas)
	                            : run_decode<tile_64>(ctas);
}

extern "C" const char *mma_emulate_combine(const struct pk_shape *p, const struct mma_buffers *g, int order)
{
	begin(p, g, order);
	return run(body_of_combine, 32 * COMBINE_WARPS, g->combine_ctas);
}
