/* SPDX-License-Identifier: MIT
 *
 * bench_gpu - decode on the GPU beside the stored figures of the peers.
 *     bench_gpu [--quick] [--rows TEXT] [--mode burst|sustained|all] [--csv FILE] [--json] [--svg FILE] [--backend NAME]
 *
 * Method (the peers were measured the same way, bench/baselines/README.md)
 *   - A CUDA graph of several layers, each with its own KV cache, at least 600 MB in all (at most 48 layers): cold L2.
 *   - Random normal data in every row; pages in random order; one plan for all layers, made outside of the graph.
 *   - Burst: median (and minimum) over replays within about 25 ms on a cool card.  Sustained: 1.5 s of warm-up at full
 *     load, then 0.5 s timed; SM clock, power and energy from NVML while it runs.
 *   - Lengths of `varlen` rows: normal(s_k, s_k / 2), cut to [1, 4 s_k], from the first seed whose sum is within 0.5 %
 * of the baseline's kv_tokens; what remains of the difference is taken out of the ratio by the floors of both.
 *   - Floor: max(flop / 790 TFLOP/s, bytes / 4.59 TB/s), the measured limits of an H200; the limits of this card and
 *     run are printed above the table. */
#include "bench.h"
#include "flash_mla.h"

#include "../../cli/svg.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef BENCH_COMMIT
#define BENCH_COMMIT "unknown"
#endif

enum { MAX_ROWS = 64, MAX_LAYERS = 48, MIN_LAYERS = 2, SUSTAINED_LAYERS = 4 };
static const double cold_bytes = 600e6, floor_tflops = 790, floor_gbs = 4590;

/* The baselines travel inside of the program. */
#define EMBED(symbol, file)                                                                \
	__asm__(".section .rodata\n" #symbol ":\n.incbin \"" file "\"\n.byte 0\n.previous\n"); \
	extern const char symbol[]
EMBED(burst_csv, "bench/baselines/h200_dense_decode.csv");
EMBED(sustained_csv, "bench/baselines/h200_sustained.csv");

struct row {
	int b, s_q, h_q, s_k, varlen;
	double peer_tokens, flashmla_us, fa3_us, goal_us;
	double flashmla_joules; /* per billion KV tokens, sustained */
};

struct options {
	const char *rows, *csv, *svg, *mode, *backend;
	int64_t page;
	bool quick, json;
};

static struct {
	struct options o;
	fmla_ctx *ctx;
	struct sensors sensors;
	int num_sms;
	char device[256], date[32];
	double read_gbs, copy_gbs;
	struct roof_point points[MAX_ROWS];
	int num_points;
} run;

/* ---- rows of the baselines --------------------------------------------------------------------------------------- */

static const char *next_line(const char *at)
{
	at = strchr(at, '\n');
	return at ? at + 1 : NULL;
}

static int burst_rows(struct row *rows)
{
	int n = 0;
	for (const char *at = next_line(burst_csv); at && n < MAX_ROWS; at = next_line(at)) {
		struct row r = {0};
		if (sscanf(at, "%d,%d,%d,%d,%d,%lf,%lf,%lf,%*f,%*f,%*f,%lf", &r.b, &r.s_q, &r.h_q, &r.s_k, &r.varlen,
		           &r.peer_tokens, &r.flashmla_us, &r.fa3_us, &r.goal_us) == 9)
			rows[n++] = r;
	}
	return n;
}

static int sustained_rows(struct row *rows)
{
	int n = 0;
	for (const char *at = sustained_csv; at && n < MAX_ROWS; at = next_line(at)) {
		struct row r = {0};
		char peer[32];
		double us, watts;
		if (sscanf(at, "%31[a-z0-9],%d,%d,%d,%d,%lf,%*f,%*f,%*f,%lf", peer, &r.b, &r.s_q, &r.h_q, &r.s_k, &us,
		           &watts) != 7)
			continue;
		r.peer_tokens = (double)r.b * r.s_k;
		if (strcmp(peer, "flashmla") == 0) { /* each shape has its two peers one after the other */
			r.flashmla_us = us;
			r.flashmla_joules = us * 1e-6 * watts / r.peer_tokens * 1e9;
			rows[n++] = r;
		} else if (n > 0) {
			rows[n - 1].fa3_us = us;
		}
	}
	return n;
}

static double flop_of(const struct row *r, double tokens)
{
	return 2.0 * tokens * r->s_q * r->h_q * (D_QK + D_V);
}

static double bytes_of(const struct row *r, double tokens)
{
	return 2.0 * (tokens * D_QK + (double)r->b * r->s_q * r->h_q * (D_QK + D_V));
}

static double floor_us(const struct row *r, double tokens)
{
	return fmax(flop_of(r, tokens) / floor_tflops / 1e6, bytes_of(r, tokens) / floor_gbs / 1e3);
}

/* ---- a decode problem on the device ------------------------------------------------------------------------------ */

struct problem {
	struct row row;
	int layers;
	double tokens;
	void *kv, *q, *out, *workspace;
	float *lse;
	int32_t *table, *lengths, *parts, *splits;
	struct fmla_tensor t[8];
	int64_t shapes[8][4];
	struct fmla_decode_args args;
	size_t layer_bytes;
};

static double draw_lengths(const struct row *r, uint64_t seed, int32_t *lengths)
{
	double sum = 0;
	for (int i = 0; i < r->b; i++) {
		lengths[i] = r->s_k;
		if (r->varlen) {
			const double normal = sqrt(-2 * log(uniform(&seed))) * cos(6.283185307179586 * uniform(&seed));
			lengths[i] = (int32_t)fmin(fmax(r->s_k + normal * r->s_k / 2, 1), 4.0 * r->s_k);
		}
		sum += lengths[i];
	}
	return sum;
}

static struct fmla_tensor *tensor(struct problem *p, int slot, void *data, struct fmla_dtype dtype, int ndim, ...)
{
	va_list dims;
	va_start(dims, ndim);
	for (int d = 0; d < ndim; d++)
		p->shapes[slot][d] = va_arg(dims, int64_t);
	va_end(dims);
	p->t[slot] = (struct fmla_tensor){
	    .data = data, .device = {FMLA_DEVICE_CUDA, 0}, .ndim = ndim, .dtype = dtype, .shape = p->shapes[slot]};
	return &p->t[slot];
}

static void make_problem(struct problem *p, const struct row *r, int layers)
{
	static const struct fmla_dtype bf16 = FMLA_BF16, fp32 = FMLA_FP32, int32 = FMLA_INT32;
	*p = (struct problem){.row = *r};
	int32_t *lengths = malloc((size_t)r->b * sizeof(*lengths));
	must(lengths != NULL, "lengths", "out of memory");
	for (uint64_t seed = 1; seed <= 2000; seed++) {
		p->tokens = draw_lengths(r, seed, lengths);
		if (!r->varlen || fabs(p->tokens / r->peer_tokens - 1) <= 0.005)
			break;
	}
	const int64_t page = run.o.page;
	int64_t pages = 0, width = 1;
	for (int i = 0; i < r->b; i++) {
		const int64_t n = (lengths[i] + page - 1) / page;
		pages += n;
		width = n > width ? n : width;
	}
	int32_t *order = malloc((size_t)pages * sizeof(*order)), *table = calloc((size_t)(r->b * width), sizeof(*table));
	must(order && table, "page table", "out of memory");
	shuffle(order, pages, 7);
	for (int64_t i = 0, next = 0; i < r->b; i++)
		for (int64_t e = 0; e * page < lengths[i]; e++)
			table[i * width + e] = order[next++];
	p->layer_bytes = (size_t)(pages * page) * D_QK * 2;
	p->layers = layers ? layers : (int)fmin(fmax(ceil(cold_bytes / (double)p->layer_bytes), MIN_LAYERS), MAX_LAYERS);
	p->kv = device_alloc(p->layer_bytes * (size_t)p->layers);
	CUDA(fill_normal(p->kv, p->layer_bytes / 2 * (size_t)p->layers, 1.0f, 0, 1, NULL));
	const size_t rows = (size_t)r->b * (size_t)r->s_q * (size_t)r->h_q;
	p->q = device_alloc(rows * D_QK * 2);
	CUDA(fill_normal(p->q, rows * D_QK, 1.0f, 0, 2, NULL));
	p->out = device_alloc(rows * D_V * 2);
	p->lse = device_alloc(rows * sizeof(float));
	p->table = upload(table, (size_t)(r->b * width) * sizeof(*table));
	p->lengths = upload(lengths, (size_t)r->b * sizeof(*lengths));
	free(order);
	free(table);
	free(lengths);
	const int64_t b = r->b, s_q = r->s_q, h_q = r->h_q, one = 1, d_qk = D_QK, d_v = D_V, fields = 8;
	p->args = (struct fmla_decode_args){.struct_size = sizeof(p->args),
	                                    .q = tensor(p, 0, p->q, bf16, 4, b, s_q, h_q, d_qk),
	                                    .kv_cache = tensor(p, 1, p->kv, bf16, 4, pages, page, one, d_qk),
	                                    .block_table = tensor(p, 2, p->table, int32, 2, b, width),
	                                    .cache_seqlens = tensor(p, 3, p->lengths, int32, 1, b),
	                                    .out = tensor(p, 4, p->out, bf16, 4, b, s_q, h_q, d_v),
	                                    .lse = tensor(p, 5, p->lse, fp32, 3, b, h_q, s_q),
	                                    .softmax_scale = 1 / sqrt(D_QK),
	                                    .causal = 1};
	int64_t parts;
	fmla(run.ctx, fmla_plan_parts(run.ctx, &p->args, &parts), "fmla_plan_parts");
	p->parts = device_alloc((size_t)parts * 32);
	p->splits = device_alloc((size_t)(b + 1) * 4);
	p->args.plan_parts = tensor(p, 6, p->parts, int32, 2, parts, fields);
	p->args.plan_splits = tensor(p, 7, p->splits, int32, 1, b + 1);
	fmla(run.ctx, fmla_plan(run.ctx, &p->args), "fmla_plan");
	fmla(run.ctx, fmla_workspace_size(run.ctx, &p->args, &p->args.workspace_size), "fmla_workspace_size");
	p->workspace = device_alloc(p->args.workspace_size);
	p->args.workspace = p->workspace;
	CUDA(cudaDeviceSynchronize());
}

static void free_problem(struct problem *p)
{
	void *const all[] = {p->kv, p->q, p->out, p->lse, p->table, p->lengths, p->parts, p->splits, p->workspace};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		CUDA(cudaFree(all[i]));
}

static void decode_layer(void *arg, int layer, cudaStream_t stream)
{
	struct problem *p = arg;
	p->t[1].data = (char *)p->kv + (size_t)layer * p->layer_bytes;
	p->args.stream = stream;
	fmla(run.ctx, fmla_decode(run.ctx, &p->args), "fmla_decode");
}

/* ---- output ------------------------------------------------------------------------------------------------------ */

struct figures {
	const char *mode;
	struct row row;
	double tokens, ratio, floor_share;
	struct timing t;
};

static double best_peer(const struct row *r)
{
	return r->fa3_us > 0 ? fmin(r->flashmla_us, r->fa3_us) : r->flashmla_us;
}

static double joules_per_billion(const struct figures *f)
{
	return f->t.joules / f->tokens * 1e9;
}

static void print_header(const char *mode)
{
	printf("\n%s\n%4s %3s %4s %7s %3s %8s %9s %9s %9s %9s %6s %6s %7s %6s %5s %4s", mode, "b", "s_q", "h_q", "s_k",
	       "var", "tokens", "us", "min", "FlashMLA", "FA3", "ratio", "floor", "TFLOP/s", "TB/s", "MHz", "W");
	printf(strcmp(mode, "sustained") == 0 ? " %7s %7s\n" : "\n", "J/Gtok", "peer's");
}

static void print_figures(const struct figures *f)
{
	const struct row *r = &f->row;
	const double us = f->t.median_us;
	printf("%4d %3d %4d %7d %3d %8.0f %9.2f %9.2f %9.2f %9.2f %6.3f %5.1f%% %7.1f %6.3f %5.0f %4.0f", r->b, r->s_q,
	       r->h_q, r->s_k, r->varlen, f->tokens, us, f->t.min_us, r->flashmla_us, r->fa3_us, f->ratio,
	       100 * f->floor_share, flop_of(r, f->tokens) / us / 1e6, bytes_of(r, f->tokens) / us / 1e6, f->t.mhz,
	       f->t.watts);
	if (strcmp(f->mode, "sustained") == 0)
		printf(" %7.0f %7.0f", joules_per_billion(f), r->flashmla_joules);
	printf("\n");
	fflush(stdout);
	if (run.o.json)
		printf(
		    "{\"backend\": \"%s\", \"mode\": \"%s\", \"b\": %d, \"s_q\": %d, \"h_q\": %d, \"s_k\": %d, \"varlen\": "
		    "%d, "
		    "\"dtype\": \"bf16\", \"us\": %.3f, \"min_us\": %.3f, \"gbs\": %.1f, \"tflops\": %.2f, \"roof_pct\": %.1f, "
		    "\"ratio\": %.3f, \"mhz\": %.0f, \"watts\": %.0f}\n",
		    run.o.backend, f->mode, r->b, r->s_q, r->h_q, r->s_k, r->varlen, us, f->t.min_us,
		    bytes_of(r, f->tokens) / us / 1e3, flop_of(r, f->tokens) / us / 1e6, 100 * f->floor_share, f->ratio,
		    f->t.mhz, f->t.watts);
	if (!run.o.csv)
		return;
	FILE *file = fopen(run.o.csv, "a");
	must(file != NULL, run.o.csv, "cannot be opened");
	if (ftell(file) == 0)
		fprintf(file, "date,commit,device,driver,mode,b,s_q,h_q,s_k,varlen,kv_tokens,us,min_us,tflops,gbs,floor_us,"
		              "flashmla_us,fa3_us,ratio,sm_mhz,watts,joules_per_gtoken\n");
	fprintf(file, "%s,%s,%s,%s,%s,%d,%d,%d,%d,%d,%.0f,%.2f,%.2f,%.1f,%.0f,%.1f,%.2f,%.2f,%.3f,%.0f,%.0f,%.0f\n",
	        run.date, BENCH_COMMIT, run.device, run.sensors.driver, f->mode, r->b, r->s_q, r->h_q, r->s_k, r->varlen,
	        f->tokens, us, f->t.min_us, flop_of(r, f->tokens) / us / 1e6, bytes_of(r, f->tokens) / us / 1e3,
	        floor_us(r, f->tokens), r->flashmla_us, r->fa3_us, f->ratio, f->t.mhz, f->t.watts, joules_per_billion(f));
	fclose(file);
}

static void add_point(const struct figures *f)
{
	if (run.num_points == MAX_ROWS)
		return;
	struct roof_point *point = &run.points[run.num_points++];
	snprintf(point->label, sizeof(point->label), "b=%d s_q=%d h_q=%d %d%s", f->row.b, f->row.s_q, f->row.h_q,
	         f->row.s_k, f->row.varlen ? " varlen" : "");
	point->intensity = flop_of(&f->row, f->tokens) / bytes_of(&f->row, f->tokens);
	point->tflops = flop_of(&f->row, f->tokens) / f->t.median_us / 1e6;
	point->roof_pct = 100 * f->floor_share;
}

/* ---- the tables -------------------------------------------------------------------------------------------------- */

static bool selected(const struct row *r, const char *mode)
{
	char text[128];
	snprintf(text, sizeof(text), "%s b=%d s_q=%d h_q=%d s_k=%d varlen=%d ", mode, r->b, r->s_q, r->h_q, r->s_k,
	         r->varlen);
	return !run.o.rows || strstr(text, run.o.rows);
}

static struct figures measure(const struct row *r, const char *mode)
{
	struct problem p;
	const bool sustained = strcmp(mode, "sustained") == 0;
	make_problem(&p, r, sustained ? SUSTAINED_LAYERS : 0);
	struct figures f = {.mode = mode, .row = *r, .tokens = p.tokens};
	f.t = sustained ? time_sustained(decode_layer, &p, p.layers, 0.5, &run.sensors)
	                : time_burst(decode_layer, &p, p.layers, &run.sensors);
	free_problem(&p);
	f.floor_share = floor_us(r, f.tokens) / f.t.median_us;
	f.ratio = best_peer(r) / f.t.median_us * floor_us(r, f.tokens) / floor_us(r, r->peer_tokens);
	return f;
}

static void table(const char *mode, const struct row *rows, int count)
{
	double all = 0, small = 0, goal = 0;
	int n = 0, n_small = 0, slower = 0;
	print_header(mode);
	for (int i = 0; i < count; i++) {
		if (!selected(&rows[i], mode))
			continue;
		const struct figures f = measure(&rows[i], mode);
		print_figures(&f);
		if (strcmp(mode, "burst") == 0)
			add_point(&f);
		all += log(f.ratio);
		goal += rows[i].goal_us > 0 ? log(best_peer(&rows[i]) / rows[i].goal_us) : 0;
		n++;
		slower += f.ratio < 1;
		if (rows[i].b <= 8) {
			small += log(f.ratio);
			n_small++;
		}
	}
	if (n == 0)
		return;
	printf("geometric mean of (better peer / ours): %.3f over %d rows", exp(all / n), n);
	if (goal > 0)
		printf(" (goal %.3f)", exp(goal / n));
	if (n_small)
		printf("; b <= 8: %.3f over %d rows", exp(small / n_small), n_small);
	printf("; slower than a peer in %d\n", slower);
	fflush(stdout);
}

/* ---- ceilings, host cost, plan cost ------------------------------------------------------------------------------ */

struct copies {
	char *data;
	int32_t *pages;
	int32_t count;
};

static void read_layer(void *arg, int layer, cudaStream_t stream)
{
	struct copies *c = arg;
	(void)layer;
	CUDA(read_pages(c->data, c->pages, c->count, run.num_sms, stream));
}

static void copy_layer(void *arg, int layer, cudaStream_t stream)
{
	struct copies *c = arg;
	const size_t half = (size_t)c->count / 2 * READ_PAGE_BYTES;
	(void)layer;
	CUDA(cudaMemcpyAsync(c->data + half, c->data, half, cudaMemcpyDeviceToDevice, stream));
}

static void ceilings(void)
{
	struct copies c = {.count = 60000}; /* 4.4 GB */
	const size_t bytes = (size_t)c.count * READ_PAGE_BYTES;
	int32_t *order = malloc((size_t)c.count * sizeof(*order));
	must(order != NULL, "ceilings", "out of memory");
	shuffle(order, c.count, 3);
	c.pages = upload(order, (size_t)c.count * sizeof(*order));
	free(order);
	c.data = device_alloc(bytes);
	CUDA(fill_normal(c.data, bytes / 2, 1.0f, 0, 5, NULL));
	const struct timing read = time_burst(read_layer, &c, 1, &run.sensors);
	const struct timing copy = time_burst(copy_layer, &c, 1, &run.sensors);
	run.read_gbs = (double)bytes / read.median_us / 1e3;
	run.copy_gbs = (double)bytes / copy.median_us / 1e3; /* read + write */
	printf("ceilings now: read by bulk copies %.0f GB/s, copy (read + write) %.0f GB/s\n", run.read_gbs, run.copy_gbs);
	CUDA(cudaFree(c.data));
	CUDA(cudaFree(c.pages));
}

static void host_cost(void)
{
	enum { CALLS = 100, ROUNDS = 20 };
	const struct row r = {.b = 1, .s_q = 1, .h_q = 16, .s_k = 4096, .peer_tokens = 4096};
	struct problem p;
	cudaStream_t stream;
	double best = INFINITY;
	make_problem(&p, &r, 1);
	CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
	for (int round = 0; round < ROUNDS; round++) {
		const double start = wall_seconds();
		for (int i = 0; i < CALLS; i++)
			decode_layer(&p, 0, stream);
		best = fmin(best, (wall_seconds() - start) / CALLS);
		CUDA(cudaStreamSynchronize(stream));
	}
	printf("host time of one fmla_decode (b=1, best of %d rounds of %d calls): %.2f us\n", ROUNDS, CALLS, best * 1e6);
	CUDA(cudaStreamDestroy(stream));
	free_problem(&p);
}

static void plan_layer(void *arg, int layer, cudaStream_t stream)
{
	struct problem *p = arg;
	(void)layer;
	p->args.stream = stream;
	fmla(run.ctx, fmla_plan(run.ctx, &p->args), "fmla_plan");
}

static void plan_cost(void)
{
	static const int sizes[] = {1, 128, 4096, 65536};
	printf("\nfmla_plan on the device:");
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		const struct row r = {.b = sizes[i], .s_q = 1, .h_q = 1, .s_k = 64, .peer_tokens = 64.0 * sizes[i]};
		struct problem p;
		make_problem(&p, &r, 1);
		printf(" b=%d %.1f us%s", r.b, time_burst(plan_layer, &p, 20, &run.sensors).median_us, i == 3 ? "\n" : ",");
		free_problem(&p);
	}
}

/* ---- main -------------------------------------------------------------------------------------------------------- */

static void open_device(void)
{
	const struct fmla_ctx_options options = {.struct_size = sizeof(options), .backend = run.o.backend};
	const time_t now = time(NULL);
	struct tm utc;
	struct cudaDeviceProp prop;
	const fmla_status status = fmla_ctx_create(&run.ctx, &options);
	must(status == FMLA_OK, "no GPU backend here", fmla_last_error(run.ctx));
	CUDA(cudaGetDeviceProperties(&prop, 0));
	snprintf(run.device, sizeof(run.device), "%s", prop.name);
	run.num_sms = prop.multiProcessorCount;
	strftime(run.date, sizeof(run.date), "%Y-%m-%dT%H:%MZ", gmtime_r(&now, &utc));
	sensors_open(&run.sensors);
	printf("FlashMLA-C %s (%s), backend %s on %s, driver %s, %s\n", fmla_version_string(), BENCH_COMMIT, run.o.backend,
	       run.device, run.sensors.driver, run.date);
}

static bool parse(int argc, char **argv)
{
	run.o.mode = "all";
	run.o.backend = "cuda";
	run.o.page = 64;
	for (int i = 1; i < argc; i++) {
		const struct {
			const char *name;
			const char **value;
		} texts[] = {{"--rows", &run.o.rows},
		             {"--csv", &run.o.csv},
		             {"--svg", &run.o.svg},
		             {"--mode", &run.o.mode},
		             {"--backend", &run.o.backend}};
		bool known = false;
		for (size_t t = 0; t < sizeof(texts) / sizeof(texts[0]); t++)
			if (strcmp(argv[i], texts[t].name) == 0 && i + 1 < argc) {
				*texts[t].value = argv[++i];
				known = true;
				break;
			}
		if (known)
			continue;
		if (strcmp(argv[i], "--quick") == 0)
			run.o.quick = true;
		else if (strcmp(argv[i], "--page") == 0 && i + 1 < argc)
			run.o.page = strtol(argv[++i], NULL, 10);
		else if (strcmp(argv[i], "--json") == 0)
			run.o.json = true;
		else
			return false;
	}
	return run.o.page > 0 && run.o.page <= 65536 && (run.o.page == 64 || !run.o.csv);
}

static bool mode_is(const char *mode)
{
	return strcmp(run.o.mode, "all") == 0 || strcmp(run.o.mode, mode) == 0;
}

int main(int argc, char **argv)
{
	if (!parse(argc, argv)) {
		fprintf(stderr,
		        "usage: bench_gpu [--quick] [--rows TEXT] [--mode burst|sustained|stream|all] [--csv FILE] [--json] "
		        "[--svg FILE] [--page N] [--backend NAME]\n"
		        "  --rows TEXT  rows whose \"burst b=1 s_q=1 h_q=16 s_k=4096 varlen=0 \" holds TEXT\n"
		        "  --page N     tokens in a page instead of 64; the baselines' are 64, so without --csv\n"
		        "  --quick      burst figures only\n");
		return 2;
	}
	struct row rows[MAX_ROWS];
	open_device();
	ceilings();
	if (mode_is("burst")) {
		host_cost();
		table("burst", rows, burst_rows(rows));
	}
	if (mode_is("stream") && !run.o.quick) {
		streaming_calls(run.ctx, &run.sensors, run.copy_gbs);
		plan_cost();
	}
	if (mode_is("sustained") && !run.o.quick)
		table("sustained", rows, sustained_rows(rows));
	if (run.o.svg) {
		char subtitle[384];
		snprintf(subtitle, sizeof(subtitle), "%s, driver %s, burst, %s, %.10s", run.device, run.sensors.driver,
		         BENCH_COMMIT, run.date);
		const struct roof_chart chart = {.title = "MLA decode, bf16, roofline",
		                                 .subtitle = subtitle,
		                                 .gbs = floor_gbs,
		                                 .tflops = floor_tflops,
		                                 .gbs_name = "DRAM read",
		                                 .tflops_name = "bf16 matrix product",
		                                 .points = run.points,
		                                 .count = run.num_points};
		must(svg_roofline(run.o.svg, &chart), run.o.svg, "cannot be written");
	}
	fmla_ctx_destroy(run.ctx);
	return 0;
}
