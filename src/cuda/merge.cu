/* SPDX-License-Identifier: MIT
 *
 * merge.cu - fmla_merge on the GPU: n partial results of a row into one.
 *
 * What      m = max lse_j, w_j = exp(lse_j - m), out = sum w_j out_j / sum w_j; an infinite lse_j marks an empty partial
 * Work      a warp owns 512 values of an output row, a lane two vectors of eight
 * Loop      BATCH partials per turn: all their loads are requested before the first is used, then one rescale of the running
 *           sum.  One pass and a fixed order: every byte is read once, and results never vary
 * Bound by  DRAM, if instructions are few: what belongs to a row (addresses, weights) is worked out once a warp for several
 *           kilobytes.  Half a row a warp, with divisions instead of multiplications, ran at 56 % of a copy's rate for
 *           n = 2, and so did CTAs that stay and request the next row early */
#include "kernels.h"
#include "launch.cuh"
#include "vector.cuh"

#include <math.h>
#include <string.h>

enum { MERGE_THREADS = 128, VECTORS = 2, ROW_VALUES = 32 * 8 * VECTORS };

/* Division by a number known to the launcher, for dividends below 2^31. */
struct fast_divisor {
	uint32_t d, magic, shift;
};

struct merge_params {
	struct merge_problem m;
	struct fast_divisor h_q, s_q, row_tasks; /* row_tasks: warps a row, more than one with d_v > ROW_VALUES */
	uint32_t tasks;
	int out_aligned;
};

static struct fast_divisor divisor_of(int64_t d)
{
	struct fast_divisor v = {(uint32_t)d, 0, 31};
	while ((uint64_t)1 << (v.shift - 31) < (uint64_t)d)
		v.shift++;
	v.magic = (uint32_t)(((uint64_t)1 << v.shift) / (uint64_t)d + 1);
	return v;
}

DEV uint32_t divide(uint32_t n, struct fast_divisor v)
{
	return (uint32_t)((uint64_t)n * v.magic >> v.shift);
}

/* The running result of a lane's values. */
struct sum {
	float value[VECTORS][8], top, weight;
};

DEV void add_vector(float *sum, float w, uint4 a, uint4 b, int wide, int fp16)
{
	const uint32_t bits[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
	for (int i = 0; i < 4; i++) {
		const float2 two =
		    wide ? make_float2(__uint_as_float(bits[2 * i]), __uint_as_float(bits[2 * i + 1])) : two_of(bits[i], fp16);
		sum[2 * i] += w * two.x;
		sum[2 * i + 1] += w * two.y;
	}
}

/* Partials j .. j + batch - 1 of a row; in: the lane's first vector of partial j, which has `stride` bytes to the next.
 * `wide` (fp32 values) and `batch` are constants at both calls. */
DEV void add_batch(const struct merge_problem &m, struct sum &sum, const uint8_t *in, const float *in_lse, int64_t left,
                   bool first, bool second, int wide, int batch)
{
	const int value_bytes = wide ? 4 : 2;
	uint4 v[4][VECTORS][2];
	float lse[4];
#pragma unroll
	for (int k = 0; k < batch; k++) {
		lse[k] = -INFINITY;
		if (k < left)
			lse[k] = in_lse[k * m.in_lse_n];
#pragma unroll
		for (int i = 0; i < VECTORS; i++) {
			v[k][i][0] = v[k][i][1] = make_uint4(0, 0, 0, 0);
			if (k < left && (i == 0 ? first : second)) {
				const uint8_t *at = in + (k * m.in_n + i * 256) * value_bytes;
				v[k][i][0] = load_once(at);
				if (wide)
					v[k][i][1] = load_once(at + 16);
			}
		}
	}
	float raised = sum.top;
#pragma unroll
	for (int k = 0; k < batch; k++)
		raised = isinf(lse[k]) ? raised : fmaxf(raised, lse[k]);
	const float log2e = 1.4426950408889634f;
	const float scale = sum.top == raised ? 1.0f : exp2_approx((sum.top - raised) * log2e);
	sum.top = raised;
	sum.weight *= scale;
#pragma unroll
	for (int i = 0; i < VECTORS * 8; i++)
		sum.value[i / 8][i % 8] *= scale;
#pragma unroll
	for (int k = 0; k < batch; k++) {
		const float w = isinf(lse[k]) ? 0.0f : exp2_approx((lse[k] - raised) * log2e); /* NaN stays NaN */
		sum.weight += w;
		if (w != 0) /* an empty partial may hold NaN */
#pragma unroll
			for (int i = 0; i < VECTORS; i++)
				add_vector(sum.value[i], w, v[k][i][0], v[k][i][1], wide, m.in_type == TYPE_FP16);
	}
}

DEV void merge_row(const struct merge_params &p, int wide)
{
	const struct merge_problem &m = p.m;
	const int batch = wide ? 2 : 4, lane = threadIdx.x & 31;
	const uint32_t task = blockIdx.x * (MERGE_THREADS / 32) + (threadIdx.x >> 5);
	grid_launch_dependents();
	grid_wait();
	if (task >= p.tasks)
		return;
	const uint32_t row = divide(task, p.row_tasks), bs = divide(row, p.h_q), b = divide(bs, p.s_q);
	const uint32_t h = row - bs * p.h_q.d, s = bs - b * p.s_q.d;
	const uint32_t column = (task - row * p.row_tasks.d) * ROW_VALUES + lane * 8;
	const bool first = column < m.d_v, second = column + 256 < m.d_v;
	const uint8_t *in = (const uint8_t *)m.in + (b * m.in_b + s * m.in_s + h * m.in_h + column) * (wide ? 4 : 2);
	const float *in_lse = m.in_lse + b * m.in_lse_b + h * m.in_lse_h + s * m.in_lse_s;
	struct sum sum = {{{0}}, -INFINITY, 0};
	for (int64_t j = 0; j < m.n; j += batch) {
		add_batch(m, sum, in, in_lse, m.n - j, first, second, wide, batch);
		in += batch * m.in_n * (wide ? 4 : 2);
		in_lse += batch * m.in_lse_n;
	}

	float norm = sum.weight == 0 ? 0.0f : 1.0f / sum.weight;
	const float lse = sum.weight == 0 ? m.empty_lse : sum.top + logf(sum.weight);
	if (m.attn_sink && sum.weight != 0)
		norm *= 1.0f / (1.0f + expf(m.attn_sink[h] - lse));
	const int64_t out = b * m.out_b + s * m.out_s + h * m.out_h + column;
#pragma unroll
	for (int i = 0; i < VECTORS; i++) {
#pragma unroll
		for (int k = 0; k < 8; k++)
			sum.value[i][k] *= norm;
		if (i == 0 ? first : second)
			store_eight(m.out, out + i * 256, sum.value[i], m.out_type, p.out_aligned);
	}
	if (m.lse && column == 0)
		m.lse[b * m.lse_b + h * m.lse_h + s * m.lse_s] = lse;
}

extern "C" __global__ void __launch_bounds__(MERGE_THREADS) fmla_merge_16(const __grid_constant__ struct merge_params p)
{
	merge_row(p, 0);
}

extern "C" __global__ void __launch_bounds__(MERGE_THREADS) fmla_merge_32(const __grid_constant__ struct merge_params p)
{
	merge_row(p, 1);
}

static int aligned16(const void *base, int64_t a, int64_t b, int64_t c, int value_bytes)
{
	return ((uintptr_t)base | (uintptr_t)(a * value_bytes) | (uintptr_t)(b * value_bytes) |
	        (uintptr_t)(c * value_bytes)) %
	           16 ==
	       0;
}

/* More than 2^31 warps would need terabytes: check.c bounds the rows by 2^31. */
extern "C" cudaError_t fmla_launch_merge(const struct merge_problem *m, cudaStream_t stream)
{
	struct merge_params p;
	memset(&p, 0, sizeof(p));
	p.m = *m;
	const int64_t rows = m->b * m->s_q * m->h_q, row_tasks = (m->d_v + ROW_VALUES - 1) / ROW_VALUES;
	if (rows == 0)
		return cudaSuccess;
	if (rows > INT32_MAX / row_tasks)
		return cudaErrorInvalidValue;
	p.tasks = (uint32_t)(rows * row_tasks);
	p.h_q = divisor_of(m->h_q);
	p.s_q = divisor_of(m->s_q);
	p.row_tasks = divisor_of(row_tasks);
	p.out_aligned = aligned16(m->out, m->out_b, m->out_s, m->out_h, m->out_type == TYPE_FP32 ? 4 : 2);
	const uint32_t warps = MERGE_THREADS / 32;
	return launch((const void *)(m->in_type == TYPE_FP32 ? fmla_merge_32 : fmla_merge_16),
	              (p.tasks + warps - 1) / warps, MERGE_THREADS, 0, stream, &p);
}
