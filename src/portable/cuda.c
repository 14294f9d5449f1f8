/* SPDX-License-Identifier: MIT
 *
 * The portable-cuda backend: the portable kernels as CUDA on NVIDIA GPUs from Turing on, with decode_mma.cu for decode
 * from sm_80 on.  Tried after the cuda backend, so it serves every GPU that is not Hopper; named in a context's options
 * it serves Hopper as well.  Everything is enqueued on the caller's stream; nothing waits but FMLA_CHECK_PAGES. */
#include "cuda_host.h"
#include "host.h"
#include "kernels_cuda.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	MAX_DEVICES = 16,
	TILES = 3,
	FEW_TOKENS = 65536, /* times 128 rows: 32-row tiles from 33 rows on    */
	SHORT_KEYS = 256    /* of a CTA: not worth two CTAs an SM               */
};
static const int tile_rows[TILES] = {16, 32, 64};

struct device {
	int sms, major, minor;
	bool prepared;
	int ctas[TILES]; /* of decode_mma that run on an SM at a time; 0: not yet known */
};

/* What the backend remembers in the context (fmla_ctx.portable_cuda_state). */
struct state {
	int devices;
	struct device device[MAX_DEVICES];
};

/* ---- devices ------------------------------------------------------------------------------------------------------- */

/* NULL only without memory. */
static struct state *state_of(struct fmla_ctx *ctx)
{
	struct state *st = ctx->portable_cuda_state;
	if (st)
		return st;
	st = ctx->portable_cuda_state = calloc(1, sizeof(*st));
	int count = 0;
	if (cudaGetDeviceCount(&count) != cudaSuccess) {
		(void)cudaGetLastError();
		count = 0;
	}
	for (int i = 0; st && i < count && i < MAX_DEVICES; i++) {
		struct device *d = &st->device[st->devices++];
		cudaDeviceGetAttribute(&d->sms, cudaDevAttrMultiProcessorCount, i);
		cudaDeviceGetAttribute(&d->major, cudaDevAttrComputeCapabilityMajor, i);
		cudaDeviceGetAttribute(&d->minor, cudaDevAttrComputeCapabilityMinor, i);
	}
	return st;
}

static bool has_mma(const struct device *d)
{
	return d->major >= 8;
}

static bool is_served(const struct device *d)
{
	return d->major * 10 + d->minor >= 75;
}

static void portable_cuda_release(struct fmla_ctx *ctx)
{
	free(ctx->portable_cuda_state);
	ctx->portable_cuda_state = NULL;
}

static fmla_status portable_cuda_probe(struct fmla_ctx *ctx, struct fmla_backend_info *info)
{
	const struct state *st = state_of(ctx);
	struct info_text *text = &ctx->info_text[INFO_PORTABLE_CUDA];
	info->variant = "sm_80 mma.sync";
	if (!st || st->devices < 1) {
		info->reason = "no CUDA device or driver";
		return FMLA_OK;
	}
	struct cudaDeviceProp prop;
	TRY_CUDA(ctx, cudaGetDeviceProperties(&prop, 0));
	snprintf(text->device_name, sizeof(text->device_name), "%s", prop.name);
	info->device_name = text->device_name;
	info->num_workers = st->device[0].sms;
	info->available = is_served(&st->device[0]);
	if (!info->available) {
		snprintf(text->reason, sizeof(text->reason), "built for sm_75 and newer; device 0 has compute capability %d.%d",
		         st->device[0].major, st->device[0].minor);
		info->reason = text->reason;
	} else if (!has_mma(&st->device[0])) {
		info->variant = "sm_75 scalar";
		info->reason = "tensor tiles need sm_80";
	}
	return FMLA_OK;
}

static fmla_status check_device(struct fmla_ctx *ctx, int id)
{
	const struct state *st = state_of(ctx);
	if (!st || st->devices < 1)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend portable-cuda: no CUDA device or driver");
	REQUIRE(ctx, id >= 0 && id < st->devices, "the tensors are on CUDA device %d, this machine has %d", id,
	        st->devices);
	if (!is_served(&st->device[id]))
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend portable-cuda: device %d has compute capability %d.%d", id,
		                 st->device[id].major, st->device[id].minor);
	return FMLA_OK;
}

/* Makes `id` current and what is behind it ready; `previous` goes back to leave_device. */
static fmla_status enter_device(struct fmla_ctx *ctx, int id, int *previous)
{
	struct device *d = &state_of(ctx)->device[id];
	TRY_CUDA(ctx, cudaGetDevice(previous));
	if (*previous != id)
		TRY_CUDA(ctx, cudaSetDevice(id));
	for (int t = 0; t < TILES && has_mma(d) && !d->prepared; t++)
		TRY_CUDA(ctx, fmla_mma_prepare(tile_rows[t], &d->ctas[t]));
	d->prepared = true;
	return FMLA_OK;
}

/* p NULL: merge and append, which check their device when they run.  Prepares the device: how many groups it runs at a
 * time decides about the plan and the workspace. */
static fmla_status portable_cuda_check(struct fmla_ctx *ctx, const struct problem *p)
{
	int previous;
	TRY(check_device(ctx, p ? p->device.id : 0));
	if (!p || state_of(ctx)->device[p->device.id].prepared)
		return FMLA_OK;
	const fmla_status status = enter_device(ctx, p->device.id, &previous);
	return leave_device(ctx, p->device.id, previous, status);
}

/* SMs to use.  Clusters of SMs (GPCs) share a way to memory, and not all have equally many: on an H200 (132 SMs) 128 or 256
 * CTAs leave the same for each cluster and are up to 9 % faster than 132 or 264. */
static int64_t even_sms(int sms)
{
	const int even = sms / 16 * 16;
	return (sms - even) * 16 <= sms ? even : sms;
}

static struct pk_target target_of(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct device *d = &((const struct state *)ctx->portable_cuda_state)->device[p->device.id];
	if (!has_mma(d))
		return (struct pk_target){2 * (int64_t)d->sms, PK_PORTABLE_ROWS};
	const int64_t keys = p->b * p->max_pages * p->page; /* at most */
	const int t = p->rows <= 16 ? 0 : p->rows <= 32 || keys <= FEW_TOKENS * 128 / p->rows ? 1 : 2;
	const int64_t sms = even_sms(d->sms), tiles = p->h_kv * ((p->rows + tile_rows[t] - 1) / tile_rows[t]);
	const int64_t per_sm = d->ctas[t] < 1 || keys <= sms * SHORT_KEYS / tiles ? 1 : d->ctas[t];
	return (struct pk_target){.workers = sms * per_sm, .tile_rows = tile_rows[t]};
}

static int64_t portable_cuda_num_parts(struct fmla_ctx *ctx, const struct problem *p)
{
	return pk_num_parts(p, target_of(ctx, p));
}

static size_t portable_cuda_workspace_size(struct fmla_ctx *ctx, const struct problem *p)
{
	return pk_workspace_size(p, target_of(ctx, p));
}

/* ---- the stages ---------------------------------------------------------------------------------------------------- */

static fmla_status run_generic(struct fmla_ctx *ctx, int id, void *stream, struct pk_call call)
{
	int previous;
	TRY(enter_device(ctx, id, &previous));
	const cudaError_t error = fmla_generic_launch(&call, stream);
	return leave_device(ctx, id, previous,
	                    error == cudaSuccess ? FMLA_OK : fail_cuda(ctx, error, pk_kernel_name[call.kernel]));
}

/* Stage 3, or (combines) 4, of decode_mma.cu. */
static fmla_status run_mma(struct fmla_ctx *ctx, const struct problem *p, bool combines)
{
	const struct pk_target target = target_of(ctx, p);
	const struct pk_call decode = pk_decode_call(p, target), *const call = &decode;
	const struct mma_buffers g = pk_mma_buffers(p, target, call);
	int previous;
	TRY(enter_device(ctx, p->device.id, &previous));
	const cudaError_t error = combines ? fmla_mma_combine_launch(&call->shape.decode, &g, p->stream)
	                                   : fmla_mma_launch(&call->shape.decode, &g, call->groups, p->stream);
	return leave_device(ctx, p->device.id, previous,
	                    error == cudaSuccess ? FMLA_OK : fail_cuda(ctx, error, combines ? "combine" : "decode_mma"));
}

static fmla_status portable_cuda_plan(struct fmla_ctx *ctx, const struct problem *p)
{
	return run_generic(ctx, p->device.id, p->stream, pk_plan_call(p, target_of(ctx, p)));
}

/* FMLA_CHECK_PAGES: the only call that waits for the device.  The answer passes through the workspace. */
static fmla_status check_pages(struct fmla_ctx *ctx, const struct problem *p)
{
	enum cudaStreamCaptureStatus capturing;
	int32_t answer[3];
	TRY_CUDA(ctx, cudaStreamIsCapturing(p->stream, &capturing));
	REQUIRE(ctx, capturing == cudaStreamCaptureStatusNone, "FMLA_CHECK_PAGES waits for the device: not in a graph");
	TRY(run_generic(ctx, p->device.id, p->stream, pk_pages_call(p, target_of(ctx, p))));
	TRY_CUDA(ctx, cudaMemcpyAsync(answer, p->workspace, sizeof(answer), cudaMemcpyDeviceToHost, p->stream));
	TRY_CUDA(ctx, cudaStreamSynchronize(p->stream));
	return pk_pages_answer(ctx, p, answer);
}

static fmla_status portable_cuda_decode(struct fmla_ctx *ctx, const struct problem *p)
{
	if (p->total_q == 0)
		return FMLA_OK; /* no row to write */
	if (p->check_pages)
		TRY(check_pages(ctx, p));
	const struct pk_target target = target_of(ctx, p);
	const bool mma = has_mma(&state_of(ctx)->device[p->device.id]);
	if (!mma || !pk_mma_plans_itself(p))
		TRY(run_generic(ctx, p->device.id, p->stream, pk_own_plan_call(p, target)));
	if (mma)
		return run_mma(ctx, p, false);
	return run_generic(ctx, p->device.id, p->stream, pk_decode_call(p, target));
}

static fmla_status portable_cuda_combine(struct fmla_ctx *ctx, const struct problem *p)
{
	if (p->total_q == 0 || !pk_splits_requests(p, target_of(ctx, p)))
		return FMLA_OK;
	if (has_mma(&state_of(ctx)->device[p->device.id]))
		return run_mma(ctx, p, true);
	return run_generic(ctx, p->device.id, p->stream, pk_combine_call(p, target_of(ctx, p)));
}

static fmla_status portable_cuda_merge(struct fmla_ctx *ctx, const struct merge_problem *p)
{
	TRY(check_device(ctx, p->device.id));
	return run_generic(ctx, p->device.id, p->stream, pk_merge_call(p));
}

static fmla_status portable_cuda_append(struct fmla_ctx *ctx, const struct append_problem *p)
{
	TRY(check_device(ctx, p->device.id));
	return run_generic(ctx, p->device.id, p->stream, pk_append_call(p));
}

const struct fmla_backend fmla_backend_portable_cuda = {.name = "portable-cuda",
                                                        .device_type = FMLA_DEVICE_CUDA,
                                                        .probe = portable_cuda_probe,
                                                        .check = portable_cuda_check,
                                                        .num_parts = portable_cuda_num_parts,
                                                        .workspace_size = portable_cuda_workspace_size,
                                                        .plan = portable_cuda_plan,
                                                        .decode = portable_cuda_decode,
                                                        .combine = portable_cuda_combine,
                                                        .merge = portable_cuda_merge,
                                                        .kv_append = portable_cuda_append,
                                                        .release = portable_cuda_release};
