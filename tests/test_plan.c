/* SPDX-License-Identifier: MIT
 *
 * Stage 2.  What plan_core.h promises, over thousands of random and adversarial batches: every block once and in order,
 * no part without work while others share, balance, prefix sums, partial slots; each part finds its own row alone, as a
 * GPU block does.  Then the same through the public API. */
#include "harness.h"

#include "close.h"
#include "plan.h"
#include "subjects.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_B = 20000, MAX_PARTS = 600, ROUNDS = 6000 };

static int32_t lens[MAX_B], cu[MAX_B + 1], splits[MAX_B + 1], splits_2[MAX_B + 1];
static struct part rows[MAX_PARTS + 8], rows_2[MAX_PARTS + 8];
static int64_t starts[MAX_B + 1]; /* of requests on the axis */

static int64_t below(uint64_t seed, uint64_t index, int64_t n)
{
	return (int64_t)(random_bits(seed, index) % (uint64_t)n);
}

/* A random batch: from b = 0 to MAX_B, from all empty to one giant among dwarfs. */
static struct problem random_batch(uint64_t seed, struct plan_costs c)
{
	const int64_t small_b = below(seed, 0, 12), large_b = below(seed, 1, seed % 97 ? 300 : MAX_B);
	struct problem p = {.b = seed % 3 ? small_b : large_b, .h_q = 1 + below(seed, 2, 4), .cache_seqlens = lens};
	p.s_q = 1 + below(seed, 3, 5);
	p.window = below(seed, 4, 3) ? 0 : 1 + below(seed, 5, 3000);
	p.causal = below(seed, 6, 2) != 0;
	p.page = 64;
	const int64_t kind = seed % 4 ? below(seed, 7, 8) : 8, even = below(seed, 9, 20000);
	for (int64_t i = 0; i < p.b; i++) {
		const uint64_t r = random_bits(seed, (uint64_t)(100 + i));
		const int64_t typical[] = {0,
		                           (int64_t)(r % 2),
		                           (int64_t)(r % 130),
		                           64,
		                           (int64_t)(r % 5000),
		                           (int64_t)(r % 200000),
		                           r % 50 ? (int64_t)(r >> 32) % 70 : 1000000,
		                           i == p.b / 2 ? INT32_MAX : (int64_t)(r % 3),
		                           even + (int64_t)(r % 300)};
		lens[i] = (int32_t)typical[kind];
		if (c.chunk > 0 && lens[i] > c.chunk * 5000)
			lens[i] = c.chunk * 5000; /* a walk takes a step for each chunk */
	}
	int64_t longest = 0;
	for (int64_t i = 0; i < p.b; i++)
		longest = lens[i] > longest ? lens[i] : longest;
	p.max_pages = longest / p.page + 1;
	if (below(seed, 8, 3) == 0) {
		for (int64_t i = 0; i < p.b; i++)
			cu[i + 1] = cu[i] + (int32_t)below(seed, (uint64_t)(50000 + i), p.s_q + 1);
		p.cu_seqlens_q = cu;
		p.total_q = cu[p.b];
	} else {
		p.total_q = p.b * p.s_q;
	}
	return p;
}

static struct plan_costs random_costs(uint64_t seed)
{
	static const int32_t chunks[] = {0, 0, 0, 1, 4, PLAN_CHUNK};
	return (struct plan_costs){.overhead = (int32_t)below(seed, 20, 8),
	                           .min_blocks = 1 + (int32_t)below(seed, 21, 2) * (int32_t)below(seed, 22, 5),
	                           .max_snap = (int32_t)below(seed, 23, 6),
	                           .chunk = chunks[below(seed, 24, 6)],
	                           .whole = 3 * (int32_t)below(seed, 25, 3),
	                           .whole_16ths = 2 * (int32_t)below(seed, 26, 2),
	                           .even = (int32_t)below(seed, 27, 2)};
}

static int64_t count(struct blocks r)
{
	return r.end - r.begin;
}

static struct plan_axis axis_of(const struct problem *p, struct plan_costs c, int64_t num_parts)
{
	int64_t total = 0, longest = 0, shortest = INT64_MAX;
	for (int64_t i = 0; i < p->b; i++) {
		const int64_t n = count(request_blocks(p, i));
		total += n;
		longest = n > longest ? n : longest;
		shortest = n < shortest ? n : shortest;
	}
	const struct plan_axis x = plan_axis(total, longest, shortest, p->b, num_parts, c);
	starts[0] = 0;
	for (int64_t i = 0; i < p->b; i++)
		starts[i + 1] = starts[i] + plan_cost(x, request_blocks(p, i));
	return x;
}

/* Most blocks and starts that a part may cost.  Cut anywhere: an equal share of the axis, but for borders that moved by
 * less than snap, or over one start.  Dealt out evenly: the same equal share and c.whole blocks or c.whole_16ths / 16. */
static int64_t cost_limit(const struct problem *p, struct plan_costs c, struct plan_axis x, int64_t num_parts)
{
	if (!x.pieces)
		return (x.total + x.active - 1) / x.active + x.overhead + 2 * x.snap;
	int64_t total = 0, parts;
	for (int64_t i = 0; i < p->b; i++)
		total += count(request_blocks(p, i));
	parts = total / c.min_blocks < num_parts ? total / c.min_blocks : num_parts;
	parts = parts > 1 ? parts : 1;
	const int64_t more = total / parts * c.whole_16ths / 16;
	return (total + p->b * x.overhead) / parts + (more > c.whole ? more : c.whole);
}

/* ---- the walk over all parts ------------------------------------------------------------------------------------ */

static void check_walk(const struct problem *p, struct plan_costs c, struct plan_axis x, int64_t num_parts)
{
	int64_t req = 0, block = 0, split = 0, partials = 0, last_row = -1; /* what must come next */
	const int64_t limit = plan_partial_rows(p, c.chunk, num_parts);
	bool fresh = true; /* request `req` has no piece yet */
	for (int64_t j = 0; j < num_parts; j++) {
		struct piece piece = {.req = -1};
		int64_t cost = 0, pieces = 0;
		if (rows[j].begin_req != PLAN_IDLE) { /* what the header says about the other fields */
			assert_int_equal(rows[j].begin_split, split);
			assert_int_equal(rows[j].first_split, splits[rows[j].begin_req + 1] - splits[rows[j].begin_req] > 1);
			assert_int_equal(rows[j].last_split, splits[rows[j].end_req + 1] - splits[rows[j].end_req] > 1);
			assert_int_equal(rows[j].tag, PLAN_TAG);
		}
		while (plan_next_piece(p, c.chunk, &rows[j], j, &piece)) {
			assert_true(req < p->b);
			const struct blocks r = request_blocks(p, req);
			if (fresh) { /* the blocks are those of the visible keys */
				const struct keys keys = request_keys(p, req);
				assert_int_equal(r.begin, keys.begin / BLOCK);
				assert_int_equal(r.end, (keys.end + BLOCK - 1) / BLOCK);
				block = r.begin;
			}
			assert_int_equal(piece.req, req);
			assert_int_equal(piece.begin, block);
			assert_true(piece.end <= r.end && (piece.end > piece.begin || count(r) == 0));
			assert_int_equal(piece.row < 0, splits[req + 1] - splits[req] == 1);
			if (piece.row >= 0) {
				partials++;
				assert_true(piece.row + request_s_q(p, req) * p->h_q <= limit);
				assert_true(c.chunk > 0 || piece.row > last_row); /* slots of their own */
				last_row = piece.row;
			}
			if (c.chunk > 0 && piece.row >= 0) {
				assert_true(piece.begin / c.chunk == (piece.end - 1) / c.chunk);
				assert_true(piece.begin == r.begin || piece.begin % c.chunk == 0);
			}
			pieces++;
			cost += piece.end - piece.begin + (fresh ? x.overhead : 0);
			split++;
			block = piece.end;
			fresh = piece.end == r.end;
			if (fresh) {
				assert_int_equal(splits[req + 1] - splits[req], split);
				req++;
				split = 0;
			}
		}
		assert_true(pieces > 0 || rows[j].begin_req == PLAN_IDLE);
		if (c.chunk == 0) {
			assert_int_equal(pieces > 0, j < x.active && p->b > 0); /* no part is empty */
			assert_true(cost <= cost_limit(p, c, x, num_parts));
			assert_true(x.pieces != 1 || rows[j].begin_req == PLAN_IDLE ||
			            (!rows[j].first_split && !rows[j].last_split));
			assert_true(x.pieces < 2 || pieces == (j < x.active));
		}
	}
	assert_int_equal(req, p->b);
	if (c.chunk == 0)
		assert_true(partials <= 2 * (num_parts - 1));
}

/* Row j from a prefix sum and a bisection, without its neighbours. */
static struct border border_alone(const struct problem *p, struct plan_axis x, int64_t j)
{
	if (j == 0)
		return (struct border){0, 0};
	if (j == x.active)
		return (struct border){p->b, 0};
	const int64_t at = plan_position(x, j);
	int64_t low = 0, high = p->b - 1; /* the last request that starts at or before `at` */
	while (low < high) {
		const int64_t middle = (low + high + 1) / 2;
		if (starts[middle] <= at)
			low = middle;
		else
			high = middle - 1;
	}
	return plan_cut(x, at, low, starts[low], request_blocks(p, low));
}

static void check_alone(const struct problem *p, struct plan_axis x)
{
	for (int64_t j = 0; j < x.active && p->b > 0; j++) {
		const struct border from = border_alone(p, x, j), to = border_alone(p, x, j + 1);
		const struct blocks none = {0, 0}, r_from = from.req < p->b ? request_blocks(p, from.req) : none;
		const int64_t last = to.block > 0 ? to.req : to.req - 1;
		const struct blocks r_last = last >= 0 ? request_blocks(p, last) : none;
		assert_true(to.req > from.req || (to.req == from.req && to.block >= from.block));
		int64_t split = 0;
		if (from.block > 0 && x.chunk == 0) {
			const struct border_range in = plan_inner_borders(x, starts[from.req], r_from);
			assert_true(in.first <= j && j < in.end);
			split = j - (in.first - 1);
		}
		const struct part row = plan_row(x, from, r_from, split, to, r_last);
		assert_memory_equal(&row, &rows[j], sizeof(row));
	}
	for (int64_t i = 0; i < p->b && x.chunk == 0; i++) {
		const struct border_range in = plan_inner_borders(x, starts[i], request_blocks(p, i));
		assert_int_equal(in.end - in.first + 1, splits[i + 1] - splits[i]);
		for (int64_t j = in.first; j < in.end; j++)
			assert_int_equal(border_alone(p, x, j).req, i);
	}
}

/* combine finds the pieces that decode wrote. */
static void check_pieces(const struct problem *p, struct plan_costs c, int64_t num_parts)
{
	for (int64_t j = 0; j < num_parts; j++) {
		struct pieces started = {0};
		const bool some = c.chunk == 0 && plan_started(p, &rows[j], j, splits, &started);
		struct piece piece = {.req = -1};
		bool found = false;
		while (plan_next_piece(p, c.chunk, &rows[j], j, &piece)) {
			if (c.chunk > 0 && piece.row >= 0) {
				const struct pieces all = plan_chunked(p, c.chunk, piece.req);
				const int64_t s = piece.begin / c.chunk - request_blocks(p, piece.req).begin / c.chunk;
				assert_int_equal(piece.row, s == 0 ? all.first : all.second + (s - 1) * all.step);
				assert_int_equal(all.n, splits[piece.req + 1] - splits[piece.req]);
			}
			if (!some || piece.req != started.req)
				continue;
			found = true;
			assert_int_equal(piece.row, started.first);
			for (int64_t s = 1; s < started.n; s++) {
				struct piece next = {.req = -1};
				assert_true(plan_next_piece(p, c.chunk, &rows[j + s], j + s, &next));
				assert_int_equal(next.req, started.req);
				assert_int_equal(next.row, started.second + (s - 1) * started.step);
			}
		}
		assert_int_equal(found, some);
	}
}

static void test_promises(void **state)
{
	(void)state;
	int whole = 0, evenly = 0;
	for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
		const struct plan_costs c = random_costs(seed);
		const struct problem p = random_batch(seed, c);
		const int64_t num_parts = 1 + below(seed, 30, seed % 5 ? 20 : MAX_PARTS);
		const struct plan_axis x = axis_of(&p, c, num_parts);
		assert_true(x.active >= 1 && x.active <= num_parts);
		assert_true(x.pieces || x.total / x.active >= x.overhead + 2 * x.snap);
		whole += x.pieces == 1;
		evenly += x.pieces > 1;
		plan_build(&p, c, num_parts, rows, num_parts + 3, splits);
		check_walk(&p, c, x, num_parts);
		check_alone(&p, x);
		check_pieces(&p, c, num_parts);
		for (int64_t j = num_parts; j < num_parts + 3; j++)
			assert_int_equal(rows[j].begin_req, PLAN_IDLE);
	}
	print_message("of %d batches %d dealt out whole, %d in equal pieces\n", ROUNDS, whole, evenly);
	assert_true(whole > ROUNDS / 50 && evenly > ROUNDS / 200);
}

/* plan_fits knows its own plans, padded or not, and nothing else. */
static void test_fits(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
		const struct plan_costs c = random_costs(seed);
		const struct problem p = random_batch(seed * 3, c); /* few large ones */
		const int64_t num_parts = 1 + below(seed, 30, 20), padded = num_parts + below(seed, 31, 8);
		plan_build(&p, c, num_parts, rows, padded, splits);
		assert_true(plan_fits(&p, c, num_parts, rows, padded, splits));
		if (p.b == 0)
			continue;
		/* one changed field of a working row, or one changed split count */
		int64_t j = below(seed, 32, num_parts);
		while (rows[j].begin_req == PLAN_IDLE)
			j = (j + 1) % num_parts;
		int32_t *field = (int32_t *)&rows[j] + below(seed, 33, PLAN_FIELDS), keep = *field;
		const int32_t wrong[] = {keep + 1, keep - 1, -1, INT32_MIN, keep ^ 1, (int32_t)p.b};
		*field = wrong[below(seed, 34, 6)];
		assert_int_equal(plan_fits(&p, c, num_parts, rows, padded, splits), *field == keep);
		*field = keep;
		const int64_t i = below(seed, 35, p.b + 1);
		splits[i]++;
		assert_false(plan_fits(&p, c, num_parts, rows, padded, splits));
		splits[i]--;
		/* a row lost; fewer workers than working rows */
		const struct part lost = rows[j];
		rows[j] = (struct part){.begin_req = PLAN_IDLE, .tag = PLAN_TAG};
		assert_false(plan_fits(&p, c, num_parts, rows, padded, splits));
		rows[j] = lost;
		if (j > 0)
			assert_false(plan_fits(&p, c, j, rows, padded, splits));
		/* stale: a length that changes the number of blocks */
		lens[p.b - 1] = lens[p.b - 1] > 64 ? lens[p.b - 1] - 64 : lens[p.b - 1] + 64;
		const bool same_blocks = p.cu_seqlens_q && cu[p.b] == cu[p.b - 1]; /* a request without query tokens has none */
		if (!p.window && !same_blocks)
			assert_false(plan_fits(&p, c, num_parts, rows, padded, splits));
		/* and what decode does about it */
		plan_build(&p, c, num_parts, rows_2, num_parts, splits_2);
		struct problem given = p;
		given.plan_parts = rows;
		given.num_parts = padded;
		given.plan_splits = splits;
		static struct part ready[MAX_PARTS + 8];
		static int32_t ready_splits[MAX_B + 1];
		plan_ready(&given, c, num_parts, ready, ready_splits);
		assert_true(plan_fits(&p, c, num_parts, ready, num_parts, ready_splits));
	}
}

static double now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void test_speed(void **state)
{
	(void)state;
	struct problem p = {
	    .b = 4096, .s_q = 1, .h_q = 128, .total_q = 4096, .page = 64, .max_pages = 2048, .cache_seqlens = lens};
	for (int64_t i = 0; i < p.b; i++)
		lens[i] = (int32_t)below(7, (uint64_t)i, 131072);
	const struct plan_costs c = {.overhead = 2, .min_blocks = 2, .max_snap = 3};
	double best = 1e9;
	for (int i = 0; i < 20; i++) {
		const double start = now_us();
		plan_build(&p, c, 132, rows, 132, splits);
		const double us = now_us() - start;
		best = us < best ? us : best;
	}
	print_message("planning 4096 requests for 132 parts: %.0f us\n", best);
	assert_true(best <= 1000);
}

/* ---- through the public API -------------------------------------------------------------------------------------- */

static struct subject subjects[MAX_SUBJECTS];
static int num_subjects;

/* A plan in a caller's buffers, as views of larger ones. */
struct caller_plan {
	struct data_tensor parts, splits;
};

static void give_plan(struct data *d, fmla_ctx *ctx, int64_t extra, struct caller_plan *plan)
{
	int64_t num_parts;
	assert_ok(ctx, fmla_plan_parts(ctx, &d->args, &num_parts));
	assert_true(num_parts >= 1);
	const int64_t shape[2] = {num_parts + extra, PLAN_FIELDS}, n = d->c.b + 1;
	data_tensor_make(&plan->parts, (struct fmla_dtype)FMLA_INT32, 2, shape, NULL, NULL, 0);
	data_tensor_make(&plan->splits, (struct fmla_dtype)FMLA_INT32, 1, &n, NULL, NULL, 0);
	memset(plan->parts.host, 0x55, plan->parts.bytes);
	memset(plan->splits.host, 0x55, plan->splits.bytes);
	d->args.plan_parts = &plan->parts.t;
	d->args.plan_splits = &plan->splits.t;
}

static void take_plan(struct data *d, struct caller_plan *plan)
{
	d->args.plan_parts = d->args.plan_splits = NULL;
	data_tensor_free(&plan->parts);
	data_tensor_free(&plan->splits);
}

enum spoiling { FRESH, PADDED, GARBAGE, ZEROS, STALE, NUM_SPOILINGS };

static void spoil(struct data *d, fmla_ctx *ctx, enum spoiling how, const struct caller_plan *plan)
{
	int32_t *length = (int32_t *)(void *)d->tensors[DATA_LENS].host;
	if (how == STALE) { /* made when the first request was shorter */
		const int32_t live = length[0];
		length[0] = live / 3;
		assert_ok(ctx, fmla_plan(ctx, &d->args));
		length[0] = live;
		return;
	}
	assert_ok(ctx, fmla_plan(ctx, &d->args));
	if (how == ZEROS) {
		memset(plan->parts.host, 0, plan->parts.bytes);
		memset(plan->splits.host, 0, plan->splits.bytes);
	}
	if (how == GARBAGE)
		for (size_t i = 0; i < plan->parts.bytes / 4; i++)
			((uint32_t *)(void *)plan->parts.host)[i] = (uint32_t)random_bits(9, i);
}

static void test_any_plan_is_safe(void **state)
{
	(void)state;
	static const char *const lines[] = {"b=5 s_k=900 h_q=4", "b=3 varlen=1 s_k=2000 h_q=3 s_q=2", "b=1 s_k=6000 h_q=2",
	                                    "b=2 s_k=9000 h_q=2 invariant=1",
	                                    "b=6 s_k=700 ragged=1 s_q=3 h_q=2 window=300"};
	for (size_t n = 0; n < sizeof(lines) / sizeof(lines[0]); n++) {
		struct test_case c;
		struct data d;
		char why[256];
		assert_true(case_parse(lines[n], &c, why, sizeof(why)));
		data_make(&d, &c);
		for (int s = 0; s < num_subjects; s++) {
			fmla_ctx *ctx = subject_context(&subjects[s]);
			assert_non_null(ctx);
			struct result want;
			assert_ok(ctx, data_decode(&d, ctx, &want, NULL));
			for (enum spoiling how = FRESH; how < NUM_SPOILINGS; how++) {
				struct caller_plan plan;
				struct result got;
				give_plan(&d, ctx, how == FRESH ? 0 : 3, &plan);
				spoil(&d, ctx, how, &plan);
				assert_ok(ctx, data_decode(&d, ctx, &got, NULL));
				if (!close_results(&got, &want, why, sizeof(why)))
					fail_msg("%s on %s, plan %d: %s", lines[n], subjects[s].name, how, why);
				/* the library's own plan or none: the same split, so the same bits */
				const size_t bytes = (size_t)(want.tokens * want.h_q * want.d_v) * sizeof(float);
				if (how != STALE || c.invariant)
					assert_memory_equal(got.out, want.out, bytes);
				result_free(&got);
				take_plan(&d, &plan);
			}
			result_free(&want);
			fmla_ctx_destroy(ctx);
		}
		data_free(&d);
	}
}

/* Rows and splits of fmla_plan are what the header says, and do not depend on lengths in number. */
static void test_public_plan(void **state)
{
	(void)state;
	struct test_case c;
	struct data d;
	char why[128];
	assert_true(case_parse("b=40 varlen=1 s_k=3000 h_q=2", &c, why, sizeof(why)));
	data_make(&d, &c);
	for (int s = 0; s < num_subjects; s++) {
		fmla_ctx *ctx = subject_context(&subjects[s]);
		assert_non_null(ctx);
		struct caller_plan plan;
		give_plan(&d, ctx, 2, &plan);
		assert_ok(ctx, fmla_plan(ctx, &d.args));
		const int32_t(*row)[PLAN_FIELDS] = (void *)plan.parts.host;
		const int32_t *prefix = (void *)plan.splits.host;
		const int32_t *length = (void *)d.tensors[DATA_LENS].host;
		int64_t blocks = 0, want_blocks = 0;
		for (int64_t i = 0; i < c.b; i++) {
			want_blocks += (length[i] + 63) / 64;
			assert_true(prefix[i + 1] > prefix[i]);
		}
		for (int64_t j = 0; j < plan.parts.shape[0]; j++) {
			assert_int_equal(row[j][7], PLAN_TAG);
			for (int64_t i = row[j][0]; row[j][0] != INT32_MAX && i <= row[j][1]; i++) {
				const int64_t begin = i == row[j][0] ? row[j][2] : 0;
				blocks += (i == row[j][1] ? row[j][3] : (length[i] + 63) / 64) - begin;
			}
		}
		assert_int_equal(prefix[0], 0);
		assert_int_equal(blocks, want_blocks);
		take_plan(&d, &plan);
		fmla_ctx_destroy(ctx);
	}
	data_free(&d);
}

int main(void)
{
	char missing[64];
	num_subjects = subjects_here(subjects, missing, sizeof(missing));
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_promises),         cmocka_unit_test(test_fits),        cmocka_unit_test(test_speed),
	    cmocka_unit_test(test_any_plan_is_safe), cmocka_unit_test(test_public_plan),
	};
	return cmocka_run_group_tests_name("plan", tests, NULL, NULL) != 0;
}
