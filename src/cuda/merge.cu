/* SPDX-License-Identifier: MIT
 *
 * merge.cu - fmla_merge on the GPU: n partial results of a row into one.
 *
 * What      m = max lse_j, w_j = exp(lse_j - m), out = sum w_j out_j / sum w_j; an infinite lse_j marks an empty partial
 * Work      a thread owns eight values of an output row; the threads of a row (d_v / 8) are threadIdx.x, so a warp
 *           reads 512 bytes of one partial at a time.  CTAs stay and step through the rows
 * Loop      a turn is BATCH vectors: four partials of one row, or with n <= 2 two partials of two rows.  The next turn
 *           is requested before this one is added up.  One pass and a fixed order: every byte is read once, and results
 *           never vary
 * Bound by  DRAM; a CTA per group of rows instead of CTAs that stay was bound by latency (77 % of a copy's rate at 84 MB)
 */
#include "kernels.h"
#include "launch.cuh"
#include "vector.cuh"

#include <math.h>
#include <string.h>

/* CTAs per SM: as many as the registers allow. */
enum { BATCH = 4, MERGE_THREADS = 128, CTAS_16 = 7, CTAS_16_FEW = 5, CTAS_32 = 4 };

struct merge_params {
	struct merge_problem m;
	uint32_t rows;
	uint32_t eights;    /* d_v / 8                                                           */
	uint32_t row_tasks; /* blockDim.x eights each, for a row                                 */
	uint32_t tasks;     /* of all groups; a group is one row, or two with n <= 2             */
	int out_aligned;
};

/* Where a thread is: the partials from j on of the rows of one group. */
struct place {
	uint32_t task;
	int64_t j;
};

struct turn {
	uint4 v[BATCH][2];
	float lse[BATCH];
};

DEV void split_row(const struct merge_problem &m, uint32_t row, uint32_t &b, uint32_t &s, uint32_t &h)
{
	const uint32_t h_q = (uint32_t)m.h_q, s_q = (uint32_t)m.s_q, bs = row / h_q;
	h = row - bs * h_q;
	b = bs / s_q;
	s = bs - b * s_q;
}

DEV uint32_t first_row(const struct merge_params &p, uint32_t task, int rows)
{
	return (p.row_tasks == 1 ? task : task / p.row_tasks) * rows;
}

DEV uint32_t eight_of(const struct merge_params &p, uint32_t task)
{
	return (p.row_tasks == 1 ? 0 : task % p.row_tasks * blockDim.x) + threadIdx.x;
}

/* `wide`: fp32 values, two vectors for eight; `rows`: of a group.  Both are constants at every call. */
DEV void load_turn(const struct merge_params &p, const struct place &at, struct turn &t, int wide, int rows)
{
	const struct merge_problem &m = p.m;
	const int each = BATCH / rows, value_bytes = wide ? 4 : 2;
	const uint32_t first = first_row(p, at.task, rows), eight = eight_of(p, at.task);
#pragma unroll
	for (int r = 0; r < rows; r++) {
		uint32_t b, s, h;
		split_row(m, first + r, b, s, h);
		const uint8_t *in = (const uint8_t *)m.in +
		                    (at.j * m.in_n + b * m.in_b + s * m.in_s + h * m.in_h + eight * 8) * value_bytes;
		const float *lse = m.in_lse + at.j * m.in_lse_n + b * m.in_lse_b + h * m.in_lse_h + s * m.in_lse_s;
#pragma unroll
		for (int k = r * each; k < (r + 1) * each; k++) {
			t.lse[k] = -INFINITY;
			t.v[k][0] = t.v[k][1] = make_uint4(0, 0, 0, 0);
			if (at.j + k % each < m.n && first + r < p.rows && eight < p.eights) {
				t.lse[k] = *lse;
				t.v[k][0] = load_once(in);
				if (wide)
					t.v[k][1] = load_once(in + 16);
			}
			lse += m.in_lse_n;
			in += m.in_n * value_bytes;
		}
	}
}

/* The running result of one row. */
struct sum {
	float value[8], top, weight;
};

DEV void add_vector(struct sum &sum, float w, const uint4 *v, int wide, int fp16)
{
	const uint32_t bits[8] = {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
#pragma unroll
	for (int i = 0; i < 4; i++) {
		const float2 two =
		    wide ? make_float2(__uint_as_float(bits[2 * i]), __uint_as_float(bits[2 * i + 1])) : two_of(bits[i], fp16);
		sum.value[2 * i] += w * two.x;
		sum.value[2 * i + 1] += w * two.y;
	}
}

DEV void add_turn(struct sum &sum, const struct turn &t, int from, int to, int wide, int fp16)
{
	float raised = sum.top;
#pragma unroll
	for (int k = from; k < to; k++)
		raised = isinf(t.lse[k]) ? raised : fmaxf(raised, t.lse[k]);
	const float scale = sum.top == raised ? 1.0f : expf(sum.top - raised);
	sum.top = raised;
	sum.weight *= scale;
#pragma unroll
	for (int i = 0; i < 8; i++)
		sum.value[i] *= scale;
#pragma unroll
	for (int k = from; k < to; k++) {
		const float w = isinf(t.lse[k]) ? 0.0f : expf(t.lse[k] - raised); /* NaN stays NaN */
		sum.weight += w;
		if (w != 0) /* an empty partial may hold NaN */
			add_vector(sum, w, t.v[k], wide, fp16);
	}
}

DEV void finish_row(const struct merge_params &p, struct sum &sum, uint32_t row, uint32_t eight)
{
	const struct merge_problem &m = p.m;
	uint32_t b, s, h;
	if (row >= p.rows || eight >= p.eights)
		return;
	split_row(m, row, b, s, h);
	float norm = sum.weight == 0 ? 0.0f : 1.0f / sum.weight;
	const float lse = sum.weight == 0 ? m.empty_lse : sum.top + logf(sum.weight);
	if (m.attn_sink && sum.weight != 0)
		norm *= 1.0f / (1.0f + expf(m.attn_sink[h] - lse));
#pragma unroll
	for (int i = 0; i < 8; i++)
		sum.value[i] *= norm;
	store_eight(m.out, b * m.out_b + s * m.out_s + h * m.out_h + eight * 8, sum.value, m.out_type, p.out_aligned);
	if (m.lse && eight == 0)
		m.lse[b * m.lse_b + h * m.lse_h + s * m.lse_s] = lse;
}

DEV void merge_rows(const struct merge_params &p, int wide, int rows)
{
	const int each = BATCH / rows;
	const struct sum empty = {{0, 0, 0, 0, 0, 0, 0, 0}, -INFINITY, 0};
	struct sum sum[2] = {empty, empty};
	struct place at = {blockIdx.x * blockDim.y + threadIdx.y, 0};
	struct turn now, next;
	grid_launch_dependents();
	grid_wait();
	if (at.task < p.tasks)
		load_turn(p, at, now, wide, rows);
	while (at.task < p.tasks) {
		const bool last = at.j + each >= p.m.n;
		const struct place then = {last ? at.task + gridDim.x * blockDim.y : at.task, last ? 0 : at.j + each};
		if (then.task < p.tasks)
			load_turn(p, then, next, wide, rows);
#pragma unroll
		for (int r = 0; r < rows; r++)
			add_turn(sum[r], now, r * each, (r + 1) * each, wide, p.m.in_type == TYPE_FP16);
		if (last) {
#pragma unroll
			for (int r = 0; r < rows; r++) {
				finish_row(p, sum[r], first_row(p, at.task, rows) + r, eight_of(p, at.task));
				sum[r] = empty;
			}
		}
		now = next;
		at = then;
	}
}

#define MERGE_KERNEL(name, wide, rows, ctas)                           \
	extern "C" __global__ void __launch_bounds__(MERGE_THREADS, ctas) \
	    name(const __grid_constant__ struct merge_params p)            \
	{                                                                  \
		merge_rows(p, wide, rows);                                     \
	}

MERGE_KERNEL(fmla_merge_16, 0, 1, CTAS_16)
MERGE_KERNEL(fmla_merge_16_few, 0, 2, CTAS_16_FEW)
MERGE_KERNEL(fmla_merge_32, 1, 1, CTAS_32)
MERGE_KERNEL(fmla_merge_32_few, 1, 2, CTAS_32)

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
	static void (*const kernels[2][2])(const struct merge_params) = {{fmla_merge_16, fmla_merge_16_few},
	                                                                 {fmla_merge_32, fmla_merge_32_few}};
	struct merge_params p;
	memset(&p, 0, sizeof(p));
	p.m = *m;
	const uint64_t rows = (uint64_t)(m->b * m->s_q * m->h_q);
	if (rows == 0)
		return cudaSuccess;
	const int few = m->n <= 2, wide = m->in_type == TYPE_FP32;
	p.rows = (uint32_t)rows;
	p.eights = (uint32_t)(m->d_v / 8);
	const uint32_t x = p.eights < MERGE_THREADS ? p.eights : MERGE_THREADS, y = MERGE_THREADS / x;
	p.row_tasks = (p.eights + x - 1) / x;
	const uint64_t tasks = (few ? (rows + 1) / 2 : rows) * p.row_tasks;
	if (tasks > INT32_MAX)
		return cudaErrorInvalidValue;
	p.tasks = (uint32_t)tasks;
	p.out_aligned = aligned16(m->out, m->out_b, m->out_s, m->out_h, m->out_type == TYPE_FP32 ? 4 : 2);
	const uint32_t wanted = (p.tasks + y - 1) / y, most = (uint32_t)(num_sms * (wide ? CTAS_32 : few ? CTAS_16_FEW : CTAS_16));
	return launch((const void *)kernels[wide][few], wanted < most ? wanted : most, dim3(x, y), 0, stream, &p);
}
