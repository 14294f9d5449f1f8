/* SPDX-License-Identifier: MIT
 *
 * The cpu backend: workspace, walks, threads.
 *
 * A worker is one thread.  Two ways to share the batch, chosen from shapes alone:
 *   by parts  worker i walks plan part i over (request, blocks of 64 keys); requests cut by a border leave partial
 * rows. Never cut by heads: each cut would read the same keys again. by rows   with very many rows a request (long
 * prompts), whose keys are read once per ROW_TILE rows anyway: workers draw (request, KV head, row tile) one after the
 * other, and nothing is split. */
#include "cpu.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum {
	ALIGN = 256,
	BY_ROWS = 2048 /* query rows of a request, all KV heads: eight row tiles */
};

struct worker {
	struct walk walk;
	float o[D_V] __attribute__((aligned(LINE)));
};

/* What folding a row tile's chunks takes: by rows, in batch-invariant mode. */
struct tile_sums {
	float m[ROW_TILE], l[ROW_TILE];
	float o[ROW_TILE][D_V] __attribute__((aligned(LINE)));
};

/* ---- workspace ----------------------------------------------------------------------------------------------- */

/* In blocks of 64 keys.  Starting a request packs Q and writes O, about the time of one block; a split writes and reads
 * a partial O of 2 KiB a row, the memory traffic of two keys a row. */
struct plan_costs cpu_costs(const struct problem *p)
{
	return (struct plan_costs){
	    .overhead = 1, .min_blocks = 2, .max_snap = 1, .chunk = p->batch_invariant ? PLAN_CHUNK : 0};
}

const struct cpu_kernel *cpu_kernel_of(const struct fmla_ctx *ctx)
{
	const char *reason;
	return cpu_choose((enum cpu_variant)ctx->cpu_variant, &reason);
}

static size_t take(size_t *size, size_t bytes)
{
	const size_t at = *size;
	*size = (at + bytes + ALIGN - 1) / ALIGN * ALIGN;
	return at;
}

struct cpu_workspace cpu_layout(const struct fmla_ctx *ctx, const struct problem *p, const struct cpu_kernel *kernel)
{
	const uintptr_t base = (uintptr_t)p->workspace;
	struct cpu_workspace w = {.by_rows = p->s_q * p->h_q >= BY_ROWS};
	w.num_parts = w.by_rows ? 1 : ctx->num_threads;
	const size_t rows = w.by_rows ? 0 : (size_t)plan_partial_rows(p, cpu_costs(p).chunk, w.num_parts);
	size_t own = 0, size = 0;
	take(&own, sizeof(struct worker));
	take(&own, kernel->scratch_size(p));
	take(&own, w.by_rows && p->batch_invariant ? sizeof(struct tile_sums) : 0);
	w.worker_size = own;
	w.parts = (struct part *)(base + take(&size, (size_t)w.num_parts * sizeof(*w.parts)));
	w.splits = (int32_t *)(base + take(&size, (size_t)(p->b + 1) * sizeof(*w.splits)));
	w.m = (float *)(base + take(&size, rows * sizeof(*w.m)));
	w.l = (float *)(base + take(&size, rows * sizeof(*w.l)));
	w.o = (float *)(base + take(&size, rows * D_V * sizeof(*w.o)));
	w.workers = (unsigned char *)(base + take(&size, (size_t)ctx->num_threads * own));
	w.size = size;
	return w;
}

static size_t cpu_workspace_size(struct fmla_ctx *ctx, const struct problem *p)
{
	struct problem sizes_only = *p;
	sizes_only.workspace = NULL;
	return cpu_layout(ctx, &sizes_only, cpu_kernel_of(ctx)).size;
}

static struct worker *worker_number(const struct cpu_workspace *w, int i)
{
	struct worker *worker = (struct worker *)(w->workers + (size_t)i * w->worker_size);
	worker->walk.scratch = (unsigned char *)worker + (sizeof(*worker) + ALIGN - 1) / ALIGN * ALIGN;
	return worker;
}

/* ---- one walk ------------------------------------------------------------------------------------------------ */

/* Rows first .. of one KV head of a request, against its blocks begin .. end; false when no row sees a key there. */
static bool start_walk(struct walk *w, const struct problem *p, const struct piece *piece, int64_t kv_head,
                       int64_t first, int rows)
{
	const int64_t token = p->cu_seqlens_q ? p->cu_seqlens_q[piece->req] : 0;
	w->p = p;
	w->req = piece->req;
	w->kv_head = kv_head;
	w->rows = rows;
	w->low = INT64_MAX;
	w->high = 0;
	for (int r = 0; r < rows; r++) {
		const int64_t s = (first + r) / p->group, h = kv_head * p->group + (first + r) % p->group;
		const struct keys k = row_keys(p, piece->req, s);
		w->q[r] = (const uint16_t *)p->q + (piece->req * p->q_b + (token + s) * p->q_s + h * p->q_h);
		w->lo[r] = (int32_t)k.begin;
		w->hi[r] = (int32_t)k.end;
		if (k.begin < k.end) {
			w->low = k.begin < w->low ? k.begin : w->low;
			w->high = k.end > w->high ? k.end : w->high;
		}
	}
	w->begin = piece->begin * BLOCK;
	w->end = piece->end * BLOCK < w->high ? piece->end * BLOCK : w->high;
	if (w->end > w->low && w->low / BLOCK * BLOCK > w->begin)
		w->begin = w->low / BLOCK * BLOCK;
	return w->begin < w->end && w->low < w->end;
}

static void walk_rows(const struct cpu_kernel *kernel, struct walk *w, const struct problem *p,
                      const struct piece *piece, int64_t kv_head, int64_t first, int rows)
{
	if (start_walk(w, p, piece, kv_head, first, rows)) {
		kernel->walk(w);
		return;
	}
	for (int r = 0; r < rows; r++) {
		w->m[r] = -INFINITY;
		w->l[r] = 0;
	}
}

/* ---- by parts ------------------------------------------------------------------------------------------------ */

static void decode_piece(const struct cpu_kernel *kernel, struct worker *me, const struct problem *p,
                         const struct cpu_workspace *ws, const struct piece *piece)
{
	struct walk *w = &me->walk;
	const int64_t rows = request_s_q(p, piece->req) * p->group;
	for (int64_t kv_head = 0; kv_head < p->h_kv; kv_head++)
		for (int64_t first = 0; first < rows; first += kernel->most_rows) {
			const int n = (int)(rows - first < kernel->most_rows ? rows - first : kernel->most_rows);
			walk_rows(kernel, w, p, piece, kv_head, first, n);
			for (int r = 0; r < n; r++) {
				const int64_t s = (first + r) / p->group, h = kv_head * p->group + (first + r) % p->group;
				const int64_t at = piece->row + s * p->h_q + h;
				float *o = piece->row < 0 ? me->o : ws->o + at * D_V;
				if (w->l[r] != 0)
					kernel->row(w, r, 1, o);
				if (piece->row < 0) {
					cpu_finish(kernel, p, piece->req, s, h, w->m[r], w->l[r], o);
				} else {
					ws->m[at] = w->m[r];
					ws->l[at] = w->l[r];
				}
			}
		}
}

static void decode_part(const struct cpu_kernel *kernel, const struct problem *p, const struct cpu_workspace *ws,
                        int part)
{
	struct worker *me = worker_number(ws, part);
	struct piece piece = {.req = -1};
	while (plan_next_piece(p, cpu_costs(p).chunk, &ws->parts[part], part, &piece))
		decode_piece(kernel, me, p, ws, &piece);
}

/* ---- by rows ------------------------------------------------------------------------------------------------- */

static void decode_tile(const struct cpu_kernel *kernel, struct worker *me, struct tile_sums *sums,
                        const struct problem *p, int64_t req, int64_t kv_head, int64_t first, int rows)
{
	struct walk *w = &me->walk;
	const struct blocks all = request_blocks(p, req);
	const int64_t chunk = cpu_costs(p).chunk;
	const int folds = chunk > 0 && all.end > (all.begin / chunk + 1) * chunk;
	struct piece piece = {.req = req, .begin = all.begin, .end = all.end, .row = -1};
	for (int r = 0; r < rows && folds; r++)
		sums->l[r] = 0;
	do {
		if (folds) {
			const int64_t border = (piece.begin / chunk + 1) * chunk;
			piece.end = border < all.end ? border : all.end;
		}
		walk_rows(kernel, w, p, &piece, kv_head, first, rows);
		for (int r = 0; r < rows && folds; r++) {
			struct merging sum = {sums->m[r], sums->l[r], sums->o[r]};
			if (w->l[r] != 0)
				kernel->row(w, r, 1, me->o);
			cpu_fold(kernel, &sum, w->m[r], w->l[r], me->o);
			sums->m[r] = sum.m;
			sums->l[r] = sum.l;
		}
		piece.begin = piece.end;
	} while (piece.end < all.end);
	for (int r = 0; r < rows; r++) {
		const int64_t s = (first + r) / p->group, h = kv_head * p->group + (first + r) % p->group;
		if (folds) {
			cpu_finish(kernel, p, req, s, h, sums->m[r], sums->l[r], sums->o[r]);
			continue;
		}
		if (w->l[r] != 0)
			kernel->row(w, r, 1, me->o);
		cpu_finish(kernel, p, req, s, h, w->m[r], w->l[r], me->o);
	}
}

/* Draws tiles until none is left; the last tiles of a request see the most keys and are drawn first. */
static void decode_tiles(const struct cpu_kernel *kernel, const struct problem *p, const struct cpu_workspace *ws,
                         int number, atomic_llong *next)
{
	struct worker *me = worker_number(ws, number);
	struct tile_sums *sums = (struct tile_sums *)((unsigned char *)me + ws->worker_size - sizeof(struct tile_sums));
	const int64_t tiles = (p->rows + kernel->most_rows - 1) / kernel->most_rows;
	for (;;) {
		const int64_t item = atomic_fetch_add(next, 1);
		const int64_t req = item / (tiles * p->h_kv), kv_head = item / tiles % p->h_kv;
		if (req >= p->b)
			return;
		const int64_t first = (tiles - 1 - item % tiles) * kernel->most_rows, rows = request_s_q(p, req) * p->group;
		if (first >= rows)
			continue;
		const int n = (int)(rows - first < kernel->most_rows ? rows - first : kernel->most_rows);
		decode_tile(kernel, me, sums, p, req, kv_head, first, n);
	}
}

/* ---- the table ----------------------------------------------------------------------------------------------- */

static fmla_status cpu_decode(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct cpu_kernel *kernel = cpu_kernel_of(ctx);
	const struct cpu_workspace ws = cpu_layout(ctx, p, kernel);
	atomic_llong next = 0;
	plan_ready(p, cpu_costs(p), ws.num_parts, ws.parts, ws.splits);

#pragma omp parallel for num_threads(ctx->num_threads) schedule(static, 1)
	for (int worker = 0; worker < ctx->num_threads; worker++) {
		if (ws.by_rows)
			decode_tiles(kernel, p, &ws, worker, &next);
		else
			decode_part(kernel, p, &ws, worker);
	}
	return FMLA_OK;
}

static int64_t cpu_num_parts(struct fmla_ctx *ctx, const struct problem *p)
{
	return p->s_q * p->h_q >= BY_ROWS ? 1 : ctx->num_threads;
}

static fmla_status cpu_plan(struct fmla_ctx *ctx, const struct problem *p)
{
	plan_build(p, cpu_costs(p), cpu_num_parts(ctx, p), p->plan_parts, p->num_parts, p->plan_splits);
	return FMLA_OK;
}

static fmla_status cpu_check(struct fmla_ctx *ctx, const struct problem *p)
{
	(void)p;
	if (ctx->cpu_variant == CPU_REF)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "FMLA_CPU=ref leaves only the ref backend");
	return FMLA_OK;
}

/* The name that the processor gives itself. */
static void device_name(char *name, size_t size)
{
	snprintf(name, size, "CPU");
	FILE *f = fopen("/proc/cpuinfo", "r");
	char line[256];
	while (f && fgets(line, sizeof(line), f)) {
		const char *colon = strchr(line, ':');
		if (strncmp(line, "model name", 10) == 0 && colon) {
			snprintf(name, size, "%s", colon + 1 + (colon[1] == ' '));
			name[strcspn(name, "\n")] = 0;
			break;
		}
	}
	if (f)
		fclose(f);
}

static fmla_status cpu_probe(struct fmla_ctx *ctx, struct fmla_backend_info *info)
{
	struct info_text *text = &ctx->info_text[INFO_CPU];
	const char *reason;
	info->available = ctx->cpu_variant != CPU_REF;
	info->variant = cpu_choose((enum cpu_variant)ctx->cpu_variant, &reason)->name;
	if (!info->available)
		info->variant = "";
	device_name(text->device_name, sizeof(text->device_name));
	info->device_name = info->available ? text->device_name : "";
	info->reason = reason;
	info->num_workers = ctx->num_threads;
	return FMLA_OK;
}

const struct fmla_backend fmla_backend_cpu = {.name = "cpu",
                                              .device_type = FMLA_DEVICE_CPU,
                                              .probe = cpu_probe,
                                              .check = cpu_check,
                                              .num_parts = cpu_num_parts,
                                              .workspace_size = cpu_workspace_size,
                                              .plan = cpu_plan,
                                              .decode = cpu_decode,
                                              .combine = cpu_combine,
                                              .merge = cpu_merge,
                                              .kv_append = cpu_kv_append};
