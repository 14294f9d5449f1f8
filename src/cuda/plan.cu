/* SPDX-License-Identifier: MIT
 *
 * plan.cu - stage 2 as a kernel of its own: the rows of fmla_plan, from live lengths, equal to the host planner's.
 *
 * What      plan_core.h's axis and borders written out, as rows and as the prefix sum of splits
 * Work      one CTA; every thread owns a run of consecutive requests, so one scan over the CTA gives each thread its
 *           place on the axis and a second one its place in the splits; shared memory does not depend on b
 * Note      decode does not need it (each of its CTAs finds its own part, walk.cuh); callers use the rows to look at
 *           the schedule and to size their own buffers */
#include "launch.cuh"
#include "walk.cuh"

/* Fewer threads for small batches: a scan costs a round over the warps. */
enum { PLAN_THREADS = 1024, PLAN_THREADS_FEW = 128, FEW_REQUESTS = 512, MAX_PARTS = 1024 };

/* Border j and what row j needs of it: `begin` of request `req`, borders of req up to here. */
struct cut {
	int32_t req, block;
	int32_t split;
};

extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1)
    fmla_plan_rows(const __grid_constant__ struct decode_params p, struct part *rows, int64_t num_rows, int32_t *splits)
{
	__shared__ int64_t warp_sum[PLAN_THREADS / 32];
	__shared__ int32_t warp_max[PLAN_THREADS / 32];
	__shared__ struct cut cuts[MAX_PARTS + 1];
	const int threads = (int)blockDim.x, run = (p.b + threads - 1) / threads;
	const int first = min((int)threadIdx.x * run, p.b), end = min(first + run, p.b);

	/* 1. The axis, and where this thread's requests begin on it. */
	int64_t mine = 0, total, ignored;
	int32_t longest = 0, shortest = INT32_MAX, unused;
	for (int i = first; i < end; i++) {
		const struct blocks r = wide_blocks(p, i);
		mine += r.end - r.begin;
		longest = max(longest, (int)(r.end - r.begin));
		shortest = min(shortest, (int)(r.end - r.begin));
	}
	const int64_t before = block_scan(warp_sum, warp_max, mine, longest, &total, &longest);
	block_scan(warp_sum, warp_max, 0, -shortest, &ignored, &shortest);
	const struct plan_axis axis = plan_axis(total, longest, -shortest, p.b, p.num_parts, p.costs);
	const int active = (int)axis.active;
	int64_t start = axis.pieces ? (int64_t)first * axis.pieces : before + (int64_t)first * axis.overhead;

	/* 2. The borders that lie in this thread's requests, and how many pieces those requests have. */
	int64_t pieces = 0;
	int j = (int)(axis.total > 0 ? plan_border_at_or_after(axis, start) : axis.active);
	for (int i = first; i < end; i++) {
		const struct blocks r = wide_blocks(p, i);
		const int64_t next = start + plan_cost(axis, r);
		int inside = 0;
		for (; j < active && plan_position(axis, j) < next; j++) {
			if (j == 0)
				continue; /* the first border is set below */
			const struct border to = plan_cut(axis, plan_position(axis, j), i, start, r);
			inside += to.block > 0;
			cuts[j] = (struct cut){(int32_t)to.req, (int32_t)to.block, to.block > 0 ? inside : 0};
		}
		splits[i] = (int32_t)(axis.chunk > 0 ? plan_chunks(axis.chunk, r) : inside + 1);
		pieces += splits[i];
		start = next;
	}
	if (threadIdx.x == 0) {
		cuts[0] = (struct cut){0, 0, 0};
		cuts[active] = (struct cut){p.b, 0, 0};
	}
	int64_t split = block_scan(warp_sum, warp_max, pieces, 0, &ignored, &unused); /* its barriers also publish cuts */

	/* 3. Splits: counts become their prefix sum. */
	for (int i = first; i < end; i++) {
		const int32_t n = splits[i];
		splits[i] = (int32_t)split;
		split += n;
	}
	if (end == p.b && (first < end || (p.b == 0 && threadIdx.x == 0)))
		splits[p.b] = (int32_t)split;

	/* 4. Rows: each from its two borders. */
	const struct blocks none = {0, 0};
	for (int64_t row = threadIdx.x; row < num_rows; row += threads) {
		struct part part = {PLAN_IDLE, 0, 0, 0, 0, 0, 0, PLAN_TAG};
		if (row < active) {
			const struct cut a = cuts[row], b = cuts[row + 1];
			const int last = b.block > 0 ? b.req : b.req - 1;
			part = plan_row(axis, (struct border){a.req, a.block}, a.req < p.b ? wide_blocks(p, a.req) : none, a.split,
			                (struct border){b.req, b.block}, last >= 0 ? wide_blocks(p, last) : none);
		}
		rows[row] = part;
	}
}

extern "C" cudaError_t fmla_launch_plan(const struct decode_params *p, struct part *rows, int64_t num_rows,
                                        int32_t *splits, cudaStream_t stream)
{
	if (p->num_parts > MAX_PARTS)
		return cudaErrorInvalidValue;
	fmla_plan_rows<<<1, p->b <= FEW_REQUESTS ? PLAN_THREADS_FEW : PLAN_THREADS, 0, stream>>>(*p, rows, num_rows,
	                                                                                         splits);
	return cudaGetLastError();
}
