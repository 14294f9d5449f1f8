/* SPDX-License-Identifier: MIT
 *
 * Device copies of the shared test data, and decode cases on both sides. */
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 256, GUARD_BYTE = 0x5a };

/* ---- a tensor on the device ---- */

bool gpu_upload(struct gpu_tensor *g, const struct data_tensor *from)
{
	if (!from->host)
		return true;
	if (!g->memory) {
		g->bytes = from->bytes;
		EXPECT_CUDA(cudaMalloc((void **)&g->memory, g->bytes + (size_t)2 * GUARD));
		EXPECT_CUDA(cudaMemset(g->memory, GUARD_BYTE, g->bytes + (size_t)2 * GUARD));
	}
	g->t = from->t;
	g->t.data = g->memory + GUARD;
	g->t.device.type = FMLA_DEVICE_CUDA;
	EXPECT_CUDA(cudaMemcpy(g->t.data, from->host, g->bytes, cudaMemcpyHostToDevice));
	EXPECT_CUDA(cudaDeviceSynchronize()); /* other streams do not wait for such a copy */
	return true;
}

bool gpu_download(const struct gpu_tensor *g, struct data_tensor *to)
{
	if (!g->memory)
		return true;
	unsigned char guards[2][GUARD];
	EXPECT_CUDA(cudaDeviceSynchronize());
	EXPECT_CUDA(cudaMemcpy(to->host, g->memory + GUARD, g->bytes, cudaMemcpyDeviceToHost));
	EXPECT_CUDA(cudaMemcpy(guards[0], g->memory, GUARD, cudaMemcpyDeviceToHost));
	EXPECT_CUDA(cudaMemcpy(guards[1], g->memory + GUARD + g->bytes, GUARD, cudaMemcpyDeviceToHost));
	for (int side = 0; side < 2; side++)
		for (int i = 0; i < GUARD; i++)
			EXPECT(guards[side][i] == GUARD_BYTE, "memory %s a tensor was written", side ? "behind" : "before");
	return true;
}

void gpu_free(struct gpu_tensor *g)
{
	cudaFree(g->memory);
	*g = (struct gpu_tensor){0};
}

bool gpu_same(const struct gpu_tensor *got, const struct data_tensor *want, struct limits limits, const char *what)
{
	const int64_t count = (int64_t)(want->bytes / (want->t.dtype.bits / 8u));
	struct data_tensor copy = *want;
	copy.host = malloc(want->bytes + 1);
	float *x = malloc((size_t)count * sizeof(*x) + 1), *y = malloc((size_t)count * sizeof(*y) + 1);
	bool ok = copy.host && x && y && gpu_download(got, &copy);
	for (int64_t i = 0; ok && i < count; i++) {
		x[i] = value_get(want->t.dtype, copy.host, i);
		y[i] = value_get(want->t.dtype, want->host, i);
	}
	if (ok) {
		const struct closeness c = close_values(x, y, count, limits);
		if (!c.close)
			ok = fail("%s: element %lld of the buffer is %.9g, want %.9g; 1 - cosine %.3g", what, (long long)c.worst,
			          x[c.worst], y[c.worst], c.cosine);
	}
	free(copy.host);
	free(x);
	free(y);
	return ok;
}

/* ---- a decode case ---- */

/* Rows times keys: what `ref` spends about a microsecond each on. */
static double cost(const struct test_case *c)
{
	return (double)c->b * (double)c->s_q * (double)c->h_q * (double)c->s_k * (c->varlen ? 0.6 : 1.0);
}

bool job_reference(struct job *job)
{
	/* ref where that is a matter of seconds, else the CPU backend, which the CPU tests compare with ref. */
	const struct fmla_ctx_options ref = {.struct_size = sizeof(ref), .backend = "ref", .num_threads = 1};
	const struct fmla_ctx_options cpu = {.struct_size = sizeof(cpu), .backend = "cpu", .num_threads = 4};
	fmla_ctx *ctx = NULL;
	if (cost(&job->data.c) < 4e6 || fmla_ctx_create(&ctx, &cpu) != FMLA_OK) {
		fmla_ctx_destroy(ctx);
		EXPECT(fmla_ctx_create(&ctx, &ref) == FMLA_OK, "no context for ref");
	}
	result_free(&job->want);
	const bool ok = data_decode(&job->data, ctx, &job->want, NULL) == FMLA_OK;
	if (!ok)
		fail("reference: %s", fmla_last_error(ctx));
	fmla_ctx_destroy(ctx);
	return ok;
}

bool job_make(struct job *job, const char *line)
{
	char why[200];
	struct test_case c;
	*job = (struct job){0};
	EXPECT(case_parse(line, &c, why, sizeof(why)), "%s", why);
	data_make(&job->data, &c);
	return job_reference(job);
}

bool job_upload_tensor(struct job *job, enum data_name name)
{
	return gpu_upload(&job->tensors[name], &job->data.tensors[name]);
}

bool job_poison(struct job *job)
{
	data_poison_outputs(&job->data);
	return job_upload_tensor(job, DATA_OUT) && job_upload_tensor(job, DATA_LSE);
}

bool job_upload(struct job *job, fmla_ctx *gpu)
{
	for (int i = 0; i < DATA_TENSORS; i++)
		if (!job_upload_tensor(job, (enum data_name)i))
			return false;
	if (!job_poison(job))
		return false;
#define ON_GPU(field, name) job->args.field = job->data.args.field ? &job->tensors[name].t : NULL
	job->args = job->data.args;
	ON_GPU(q, DATA_Q);
	ON_GPU(kv_cache, DATA_KV);
	ON_GPU(block_table, DATA_TABLE);
	ON_GPU(cache_seqlens, DATA_LENS);
	ON_GPU(cu_seqlens_q, DATA_CU);
	ON_GPU(attn_sink, DATA_SINK);
	ON_GPU(out, DATA_OUT);
	ON_GPU(lse, DATA_LSE);
#undef ON_GPU
	size_t size = 0;
	EXPECT_OK(gpu, fmla_workspace_size(gpu, &job->args, &size));
	if (size > job->workspace_size) {
		EXPECT_CUDA(cudaFree(job->workspace));
		EXPECT_CUDA(cudaMalloc(&job->workspace, size));
		job->workspace_size = size;
	}
	if (size > 0)
		EXPECT_CUDA(cudaMemset(job->workspace, 0xff, size));
	EXPECT_CUDA(cudaDeviceSynchronize());
	job->args.workspace = job->workspace;
	job->args.workspace_size = size;
	return true;
}

bool job_compare(struct job *job, const char *what)
{
	struct result got = {0};
	char why[256];
	struct data *d = &job->data;
	if (!gpu_download(&job->tensors[DATA_OUT], &d->tensors[DATA_OUT]) ||
	    !gpu_download(&job->tensors[DATA_LSE], &d->tensors[DATA_LSE]))
		return fail("%s", what);
	const bool gaps = data_result(d, &got);
	const bool close = close_results(&got, &job->want, why, sizeof(why));
	result_free(&got);
	EXPECT(close, "%s: %s", what, why);
	EXPECT(gaps, "%s: a gap between rows of an output was written", what);
	return true;
}

bool job_run(struct job *job, fmla_ctx *gpu)
{
	if (!job_upload(job, gpu))
		return false;
	EXPECT_OK(gpu, fmla_decode(gpu, &job->args));
	return job_compare(job, "decode");
}

void job_free(struct job *job)
{
	result_free(&job->want);
	data_free(&job->data);
	for (int i = 0; i < DATA_TENSORS; i++)
		gpu_free(&job->tensors[i]);
	cudaFree(job->workspace);
	*job = (struct job){0};
}

char *job_snapshot(struct job *job)
{
	struct data_tensor *out = &job->data.tensors[DATA_OUT], *lse = &job->data.tensors[DATA_LSE];
	char *all = malloc(out->bytes + lse->bytes + 1);
	if (!all || !gpu_download(&job->tensors[DATA_OUT], out) || !gpu_download(&job->tensors[DATA_LSE], lse)) {
		free(all);
		return NULL;
	}
	memcpy(all, out->host, out->bytes);
	memcpy(all + out->bytes, lse->host, lse->bytes);
	return all;
}

bool job_unchanged(struct job *job, const char *snapshot, const char *what)
{
	const size_t bytes = job->data.tensors[DATA_OUT].bytes + job->data.tensors[DATA_LSE].bytes;
	char *now = job_snapshot(job);
	const bool same = now && memcmp(now, snapshot, bytes) == 0;
	free(now);
	EXPECT(same, "%s: not bit for bit the same", what);
	return true;
}
