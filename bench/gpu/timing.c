/* SPDX-License-Identifier: MIT
 *
 * Timing of a sequence of layers, captured once in a CUDA graph and replayed: no host time between layers, and with
 * distinct caches of several hundred megabytes nothing of one replay is left in the L2 for the next. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_REPLAYS = 400, MIN_REPLAYS = 12 };
static const double burst_ms = 25, warm_s = 1.5, chunk_ms = 25;

double wall_seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void must(bool ok, const char *what, const char *why)
{
	if (ok)
		return;
	fflush(stdout);
	fprintf(stderr, "bench_gpu: %s: %s\n", what, why);
	exit(1);
}

static int by_value(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

static double median(double *x, int n)
{
	qsort(x, (size_t)n, sizeof(*x), by_value);
	return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

struct sequence {
	cudaStream_t stream;
	cudaGraphExec_t exec;
	cudaEvent_t event[MAX_REPLAYS + 1];
};

static struct sequence capture(layer_fn layer, void *arg, int layers)
{
	struct sequence q;
	cudaGraph_t graph;
	CUDA(cudaStreamCreateWithFlags(&q.stream, cudaStreamNonBlocking));
	CUDA(cudaStreamBeginCapture(q.stream, cudaStreamCaptureModeThreadLocal));
	for (int i = 0; i < layers; i++)
		layer(arg, i, q.stream);
	CUDA(cudaStreamEndCapture(q.stream, &graph));
	CUDA(cudaGraphInstantiate(&q.exec, graph, 0));
	CUDA(cudaGraphUpload(q.exec, q.stream));
	CUDA(cudaGraphDestroy(graph));
	for (int i = 0; i <= MAX_REPLAYS; i++)
		CUDA(cudaEventCreate(&q.event[i]));
	return q;
}

static void release(struct sequence *q)
{
	for (int i = 0; i <= MAX_REPLAYS; i++)
		CUDA(cudaEventDestroy(q->event[i]));
	CUDA(cudaGraphExecDestroy(q->exec));
	CUDA(cudaStreamDestroy(q->stream));
}

static double elapsed_ms(cudaEvent_t from, cudaEvent_t to)
{
	float ms;
	CUDA(cudaEventElapsedTime(&ms, from, to));
	return ms;
}

/* Milliseconds of one replay, after another one. */
static double probe(struct sequence *q)
{
	CUDA(cudaGraphLaunch(q->exec, q->stream));
	CUDA(cudaEventRecord(q->event[0], q->stream));
	CUDA(cudaGraphLaunch(q->exec, q->stream));
	CUDA(cudaEventRecord(q->event[1], q->stream));
	CUDA(cudaEventSynchronize(q->event[1]));
	return elapsed_ms(q->event[0], q->event[1]);
}

struct timing time_burst(layer_fn layer, void *arg, int layers, const struct sensors *s)
{
	struct sequence q = capture(layer, arg, layers);
	double us[MAX_REPLAYS] = {0};
	int n = (int)(burst_ms / probe(&q));
	n = n < MIN_REPLAYS ? MIN_REPLAYS : n > MAX_REPLAYS ? MAX_REPLAYS : n;
	CUDA(cudaEventRecord(q.event[0], q.stream));
	for (int i = 0; i < n; i++) {
		CUDA(cudaGraphLaunch(q.exec, q.stream));
		CUDA(cudaEventRecord(q.event[i + 1], q.stream));
	}
	CUDA(cudaEventSynchronize(q.event[n / 2]));
	struct timing t = {.mhz = sensors_mhz(s), .watts = sensors_watts(s), .replays = n};
	CUDA(cudaStreamSynchronize(q.stream));
	for (int i = 0; i < n; i++)
		us[i] = elapsed_ms(q.event[i], q.event[i + 1]) * 1e3 / layers;
	t.median_us = median(us, n);
	t.min_us = us[0];
	release(&q);
	return t;
}

/* Keeps two chunks of replays enqueued for `seconds`; chunk times go to us[], sensors are read between chunks. */
static int run_for(struct sequence *q, double seconds, int replays, int layers, const struct sensors *s, double *us,
                   struct timing *t)
{
	int chunks = 0, samples = 0;
	const double start = wall_seconds();
	CUDA(cudaEventRecord(q->event[0], q->stream));
	while (chunks < MAX_REPLAYS && (chunks < 4 || wall_seconds() - start < seconds)) {
		for (int i = 0; i < replays; i++)
			CUDA(cudaGraphLaunch(q->exec, q->stream));
		CUDA(cudaEventRecord(q->event[++chunks], q->stream));
		if (chunks >= 2) {
			CUDA(cudaEventSynchronize(q->event[chunks - 1]));
			t->mhz += sensors_mhz(s);
			t->watts += sensors_watts(s);
			samples++;
		}
	}
	CUDA(cudaStreamSynchronize(q->stream));
	t->mhz /= samples;
	t->watts /= samples;
	for (int i = 0; i < chunks; i++)
		us[i] = elapsed_ms(q->event[i], q->event[i + 1]) * 1e3 / replays / layers;
	return chunks;
}

struct timing time_sustained(layer_fn layer, void *arg, int layers, double seconds, const struct sensors *s)
{
	struct sequence q = capture(layer, arg, layers);
	double us[MAX_REPLAYS] = {0};
	const int replays = (int)(chunk_ms / probe(&q)) + 1;
	struct timing ignored = {0}, t = {0};
	run_for(&q, warm_s, replays, layers, s, us, &ignored);
	const double joules = sensors_joules(s);
	const int chunks = run_for(&q, seconds, replays, layers, s, us, &t);
	t.replays = chunks * replays;
	t.joules = joules > 0 ? (sensors_joules(s) - joules) / t.replays / layers : 0;
	t.median_us = median(us, chunks);
	t.min_us = us[0];
	release(&q);
	return t;
}
