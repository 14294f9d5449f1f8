/* SPDX-License-Identifier: MIT
 *
 * merge.cu - fmla_merge on the GPU: n partial results of a row into one.
 *
 * What      m = max lse_j, w_j = exp(lse_j - m), out = sum w_j out_j / sum w_j; an infinite lse_j marks an empty partial
 * Work      a thread owns eight values of one output row; the threads of a row (d_v / 8) are threadIdx.x, so a warp
 *           reads 512 bytes of one partial at a time
 * Loop      BATCH partials per turn: all their loads are requested before the first is used, then one rescale of the
 *           running sum.  One pass, so every byte is read once; order is fixed, so results never vary
 * Bound by  DRAM: 16 to 32 bytes and one lse (from L1 after the first thread of the row) per partial */
#include "kernels.h"
#include "launch.cuh"
#include "vector.cuh"

#include <math.h>
#include <string.h>

/* CTAS: per SM; more than fit, so that the last ones even out. */
enum { BATCH = 4, MERGE_THREADS = 256, MERGE_CTAS = 32 };

struct merge_params {
	struct merge_problem m;
	uint32_t eights;    /* d_v / 8                                             */
	uint32_t row_tasks; /* a task is blockDim.x eights of a row                */
	uint32_t tasks;     /* of all rows                                         */
	int out_aligned;
};

/* Everything about a row but its values. */
struct merge_row {
	int64_t in, lse, out; /* offsets of partial 0 and of the result */
	uint32_t b, s, h;
};

DEV struct merge_row find_row(const struct merge_problem &m, uint32_t row)
{
	struct merge_row r;
	const uint32_t h_q = (uint32_t)m.h_q, s_q = (uint32_t)m.s_q, bs = row / h_q;
	r.h = row - bs * h_q;
	r.b = bs / s_q;
	r.s = bs - r.b * s_q;
	r.in = r.b * m.in_b + r.s * m.in_s + r.h * m.in_h;
	r.lse = r.b * m.in_lse_b + r.h * m.in_lse_h + r.s * m.in_lse_s;
	r.out = r.b * m.out_b + r.s * m.out_s + r.h * m.out_h;
	return r;
}

/* sum = sum * scale + sum over the batch of w_j v_j; `wide`: values are fp32, two vectors each. */
DEV void add_batch(float *sum, float scale, const float *w, uint4 (*v)[2], int wide, int fp16)
{
#pragma unroll
	for (int i = 0; i < 8; i++)
		sum[i] *= scale;
#pragma unroll
	for (int k = 0; k < BATCH; k++) {
		if (w[k] == 0) /* empty, whose values may be NaN, or too small to count */
			continue;
		const uint32_t bits[8] = {v[k][0].x, v[k][0].y, v[k][0].z, v[k][0].w,
		                          v[k][1].x, v[k][1].y, v[k][1].z, v[k][1].w};
#pragma unroll
		for (int i = 0; i < 4; i++) {
			if (wide) {
				sum[2 * i] += w[k] * __uint_as_float(bits[2 * i]);
				sum[2 * i + 1] += w[k] * __uint_as_float(bits[2 * i + 1]);
			} else {
				const float2 two = two_of(bits[i], fp16);
				sum[2 * i] += w[k] * two.x;
				sum[2 * i + 1] += w[k] * two.y;
			}
		}
	}
}

/* `wide` is a constant at both call sites. */
DEV void merge_eight(const struct merge_params &p, uint32_t row, uint32_t eight, int wide)
{
	const struct merge_problem &m = p.m;
	const struct merge_row r = find_row(m, row);
	const int value_bytes = wide ? 4 : 2;
	const uint8_t *in = (const uint8_t *)m.in + (r.in + eight * 8) * value_bytes;
	const float *in_lse = m.in_lse + r.lse;
	float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, top = -INFINITY, weight = 0;

	for (int64_t j = 0; j < m.n; j += BATCH) {
		float lse[BATCH], w[BATCH];
		uint4 v[BATCH][2];
#pragma unroll
		for (int k = 0; k < BATCH; k++) {
			lse[k] = -INFINITY;
			v[k][0] = v[k][1] = make_uint4(0, 0, 0, 0);
			if (j + k < m.n) {
				lse[k] = in_lse[(j + k) * m.in_lse_n];
				v[k][0] = load_once(in + (j + k) * m.in_n * value_bytes);
				if (wide)
					v[k][1] = load_once(in + (j + k) * m.in_n * value_bytes + 16);
			}
		}
		float raised = top;
#pragma unroll
		for (int k = 0; k < BATCH; k++)
			raised = isinf(lse[k]) ? raised : fmaxf(raised, lse[k]);
		const float scale = top == raised ? 1.0f : expf(top - raised);
		weight *= scale;
#pragma unroll
		for (int k = 0; k < BATCH; k++) {
			w[k] = isinf(lse[k]) ? 0.0f : lse[k] == raised ? 1.0f : expf(lse[k] - raised); /* NaN stays NaN */
			weight += w[k];
		}
		top = raised;
		add_batch(sum, scale, w, v, wide, m.in_type == TYPE_FP16);
	}

	float norm = weight == 0 ? 0.0f : 1.0f / weight;
	const float lse = weight == 0 ? -INFINITY : top + logf(weight);
	if (m.attn_sink && weight != 0)
		norm *= 1.0f / (1.0f + expf(m.attn_sink[r.h] - lse));
#pragma unroll
	for (int i = 0; i < 8; i++)
		sum[i] *= norm;
	store_eight(m.out, r.out + eight * 8, sum, m.out_type, p.out_aligned);
	if (m.lse && eight == 0)
		m.lse[r.b * m.lse_b + r.h * m.lse_h + r.s * m.lse_s] = weight == 0 ? m.empty_lse : lse;
}

DEV void merge_tasks(const struct merge_params &p, int wide)
{
	grid_launch_dependents();
	grid_wait();
	for (uint32_t task = blockIdx.x * blockDim.y + threadIdx.y; task < p.tasks; task += gridDim.x * blockDim.y) {
		const uint32_t row = p.row_tasks == 1 ? task : task / p.row_tasks;
		const uint32_t eight = (task - row * p.row_tasks) * blockDim.x + threadIdx.x;
		if (eight < p.eights)
			merge_eight(p, row, eight, wide);
	}
}

extern "C" __global__ void __launch_bounds__(MERGE_THREADS)
    fmla_merge_16(const __grid_constant__ struct merge_params p)
{
	merge_tasks(p, 0);
}

extern "C" __global__ void __launch_bounds__(MERGE_THREADS)
    fmla_merge_32(const __grid_constant__ struct merge_params p)
{
	merge_tasks(p, 1);
}

static int aligned16(const void *base, int64_t a, int64_t b, int64_t c, int value_bytes)
{
	return ((uintptr_t)base | (uintptr_t)(a * value_bytes) | (uintptr_t)(b * value_bytes) |
	        (uintptr_t)(c * value_bytes)) %
	           16 ==
	       0;
}

/* A batch of more than 2^31 tasks would need d_v past 2,048 and terabytes: check.c bounds the rows by 2^31. */
extern "C" cudaError_t fmla_launch_merge(const struct merge_problem *m, int num_sms, cudaStream_t stream)
{
	struct merge_params p;
	memset(&p, 0, sizeof(p));
	p.m = *m;
	const uint64_t rows = (uint64_t)(m->b * m->s_q * m->h_q);
	p.eights = (uint32_t)(m->d_v / 8);
	if (rows == 0)
		return cudaSuccess;
	const uint32_t x = p.eights < MERGE_THREADS ? p.eights : MERGE_THREADS, y = MERGE_THREADS / x;
	p.row_tasks = (p.eights + x - 1) / x;
	const uint64_t tasks = rows * p.row_tasks;
	if (tasks > INT32_MAX)
		return cudaErrorInvalidValue;
	p.tasks = (uint32_t)tasks;
	p.out_aligned = aligned16(m->out, m->out_b, m->out_s, m->out_h, m->out_type == TYPE_FP32 ? 4 : 2);
	const uint32_t wanted = (p.tasks + y - 1) / y, most = (uint32_t)num_sms * MERGE_CTAS;
	return launch((const void *)(m->in_type == TYPE_FP32 ? fmla_merge_32 : fmla_merge_16),
	              wanted < most ? wanted : most, dim3(x, y), 0, stream, &p);
}
