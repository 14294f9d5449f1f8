/* SPDX-License-Identifier: MIT
 *
 * The CUDA backend on the host: picks tiles, lays out the workspace, encodes the tensor map, launches.  Everything that
 * depends on lengths happens on the device; nothing here waits for it or allocates. */
#include "backend.h"
#include "cuda_host.h"
#include "kernels.h"

#include <cudaTypedefs.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum {
	MAX_DEVICES = 16,
	ALIGN = 256,         /* of the parts of the workspace                                       */
	CHUNK_BLOCKS = 32,   /* batch-invariant mode: a split every 2048 tokens                     */
	OVERHEAD_BLOCKS = 2, /* price of starting a request; docs/perf.md                          */
	MAX_SNAP_BLOCKS = 2,
	PAIRED_TILES = 16, /* fewer tiles of rows than this: starting clusters costs more than they save */
	WHOLE_BLOCKS = 4   /* what a batch without splits may cost more                           */
};

/* What the backend remembers in the context. */
struct cuda_state {
	PFN_cuTensorMapEncodeTiled_v12000 encode;
	int devices; /* 0: not looked yet, -1: none */
	struct {
		int sms, major, minor;
		bool prepared; /* kernels may use their shared memory */
	} device[MAX_DEVICES];
	/* The last tensor maps and what they were made of. */
	struct map_key {
		const void *kv;
		int64_t kv_page, kv_token, kv_head, num_pages, page, h_kv, slices;
		int fp16, box_tokens, box_slices;
	} key;
	unsigned char maps[sizeof(struct kv_maps)]; /* bytes: the context need not be aligned for a CUtensorMap */
};

_Static_assert(sizeof(struct cuda_state) <= sizeof(((struct fmla_ctx *)0)->cuda_state), "grow fmla_ctx.cuda_state");

static struct cuda_state *state_of(struct fmla_ctx *ctx)
{
	return (struct cuda_state *)(void *)ctx->cuda_state;
}

/* ---- devices ---------------------------------------------------------------------------------------------------- */

static void find_devices(struct cuda_state *st)
{
	if (st->devices != 0)
		return;
	int count = 0;
	if (cudaGetDeviceCount(&count) != cudaSuccess) {
		(void)cudaGetLastError();
		count = 0;
	}
	void *entry = NULL;
	enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
	if (count > 0 && cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
	                                                  &found) == cudaSuccess)
		memcpy(&st->encode, &entry, sizeof(entry));
	st->devices = count > MAX_DEVICES ? MAX_DEVICES : count;
	for (int i = 0; i < st->devices; i++) {
		cudaDeviceGetAttribute(&st->device[i].sms, cudaDevAttrMultiProcessorCount, i);
		cudaDeviceGetAttribute(&st->device[i].major, cudaDevAttrComputeCapabilityMajor, i);
		cudaDeviceGetAttribute(&st->device[i].minor, cudaDevAttrComputeCapabilityMinor, i);
	}
	if (st->devices == 0)
		st->devices = -1;
}

static fmla_status cuda_probe(struct fmla_ctx *ctx, struct fmla_backend_info *info)
{
	struct cuda_state *st = state_of(ctx);
	struct info_text *text = &ctx->info_text[INFO_CUDA];
	find_devices(st);
	info->variant = "sm_90a";
	if (st->devices < 1) {
		info->reason = "no CUDA device or driver";
		return FMLA_OK;
	}
	struct cudaDeviceProp prop;
	TRY_CUDA(ctx, cudaGetDeviceProperties(&prop, 0));
	snprintf(text->device_name, sizeof(text->device_name), "%s", prop.name);
	info->device_name = text->device_name;
	info->num_workers = st->device[0].sms;
	if (st->device[0].major != 9) {
		snprintf(text->reason, sizeof(text->reason), "built for Hopper (sm_90a); device 0 has compute capability %d.%d",
		         st->device[0].major, st->device[0].minor);
		info->reason = text->reason;
		return FMLA_OK;
	}
	info->available = 1;
	return FMLA_OK;
}

/* p NULL: merge and append, which any problem of check.c's can be. */
static fmla_status cuda_check(struct fmla_ctx *ctx, const struct problem *p)
{
	struct cuda_state *st = state_of(ctx);
	find_devices(st);
	const int id = p ? p->device.id : 0;
	if (st->devices < 1)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend cuda: no CUDA device or driver");
	if (id < 0 || id >= st->devices)
		return fmla_fail(ctx, FMLA_ERR_ARGUMENT, "the tensors are on CUDA device %d, this machine has %d", id,
		                 st->devices);
	if (st->device[id].major != 9)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED,
		                 "backend cuda: built for Hopper (sm_90a), device %d has compute capability %d.%d", id,
		                 st->device[id].major, st->device[id].minor);
	if (p && p->b > 65536)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend cuda: b is %lld, the limit is 65536", (long long)p->b);
	if (p && p->h_kv > 65535)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend cuda: h_kv is %lld, the limit is 65535",
		                 (long long)p->h_kv);
	return FMLA_OK;
}

/* Makes `id` current for the lifetime of a call; `previous` goes back to leave_device. */
static fmla_status enter_device(struct fmla_ctx *ctx, int id, int *previous)
{
	struct cuda_state *st = state_of(ctx);
	TRY_CUDA(ctx, cudaGetDevice(previous));
	if (*previous != id)
		TRY_CUDA(ctx, cudaSetDevice(id));
	if (!st->device[id].prepared) {
		TRY_CUDA(ctx, fmla_prepare_decode_swap());
		TRY_CUDA(ctx, fmla_prepare_decode_seesaw());
		TRY_CUDA(ctx, fmla_prepare_combine());
		st->device[id].prepared = true;
	}
	return FMLA_OK;
}

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

static int64_t div_up(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

static int tile_rows(const struct problem *p)
{
	return p->rows <= 8 ? 8 : p->rows <= 16 ? 16 : p->rows <= 32 ? 32 : 64;
}

static int64_t row_tiles(const struct problem *p)
{
	return p->rows ? div_up(p->rows, tile_rows(p)) : 1;
}

static int64_t cuda_num_parts(struct fmla_ctx *ctx, const struct problem *p)
{
	const int64_t parts = state_of(ctx)->device[p->device.id].sms / (p->h_kv * row_tiles(p));
	return parts > 1 ? parts : 1;
}

static int64_t max_chunks(const struct problem *p)
{
	return p->batch_invariant ? div_up(p->max_pages * p->page, CHUNK_BLOCKS * BLOCK) : 0;
}

static size_t align_up(size_t bytes)
{
	return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* Of a value of a partial result: tiles of 64 rows write half as much, scaled by row. */
static int partial_bytes(const struct problem *p)
{
	return tile_rows(p) == 64 && !p->batch_invariant ? 2 : 4;
}

/* Where things lie in the workspace. */
struct layout {
	size_t arrivals, lse, out, end;
};

/* How many words a piece of a split request announces itself with, at most; gather.cuh. */
static int64_t arrival_width(struct fmla_ctx *ctx, const struct problem *p)
{
	const int64_t parts = cuda_num_parts(ctx, p), entries = parts < MAX_ENTRIES ? parts : MAX_ENTRIES;
	return entries > tile_rows(p) ? entries : tile_rows(p);
}

static struct layout workspace_layout(struct fmla_ctx *ctx, const struct problem *p)
{
	const int64_t parts = cuda_num_parts(ctx, p);
	const size_t slots = (size_t)(p->batch_invariant ? p->b * max_chunks(p) : parts > 1 ? 2 * parts : 0);
	const size_t tiles = slots * (size_t)(p->h_kv * row_tiles(p)), rows = tiles * (size_t)tile_rows(p);
	struct layout at = {.arrivals = 0};
	at.lse = align_up(p->batch_invariant ? 0 : tiles * (size_t)arrival_width(ctx, p) * 16);
	at.out = at.lse + align_up(p->batch_invariant ? rows * sizeof(float) : 0);
	at.end = at.out + rows * D_V * (size_t)partial_bytes(p);
	return at;
}

static size_t cuda_workspace_size(struct fmla_ctx *ctx, const struct problem *p)
{
	return workspace_layout(ctx, p).end;
}

static bool multiple_of(int64_t n, int64_t a, int64_t b, int64_t c)
{
	return a % n == 0 && b % n == 0 && c % n == 0;
}

static struct decode_params params_of(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct layout at = workspace_layout(ctx, p);
	char *const workspace = p->workspace;
	const int64_t longest = p->max_pages * p->page, parts = cuda_num_parts(ctx, p);
	const int cluster = tile_rows(p) == 64 && row_tiles(p) % 2 == 0 && p->b * row_tiles(p) >= PAIRED_TILES ? 2 : 1;
	int box = 0; /* tokens of a box: the largest power of two that divides a page, up to a tile */
	while (1 << box < BLOCK && p->page % (2 << box) == 0)
		box++;
	return (struct decode_params){
	    .q = p->q,
	    .q_b = p->q_b,
	    .q_s = p->q_s,
	    .q_h = p->q_h,
	    .block_table = p->block_table,
	    .table_stride = p->table_stride,
	    .cache_seqlens = p->cache_seqlens,
	    .cu_seqlens_q = p->cu_seqlens_q,
	    .attn_sink = p->attn_sink,
	    .out = p->out,
	    .out_b = p->out_b,
	    .out_s = p->out_s,
	    .out_h = p->out_h,
	    .lse = p->lse,
	    .lse_b = p->lse_b,
	    .lse_h = p->lse_h,
	    .lse_s = p->lse_s,
	    .max_len = (int32_t)(longest < MAX_LEN ? longest : MAX_LEN),
	    .b = (int32_t)p->b,
	    .s_q = (int32_t)p->s_q,
	    .h_kv = (int32_t)p->h_kv,
	    .group = (int32_t)p->group,
	    .page = (int32_t)p->page,
	    .num_pages = (int32_t)p->num_pages,
	    .slices = (int32_t)(p->d_qk / 64),
	    .row_tiles = (int32_t)row_tiles(p),
	    .cluster = cluster,
	    .tile_rows = tile_rows(p),
	    .page_shift = page_shift(p),
	    .box_shift = box,
	    .box_slices = 1 << box < BLOCK    ? 1
	                  : tile_rows(p) < 64 ? 3
	                                      : 4 / cluster,
	    .num_parts = (int32_t)parts,
	    .causal = p->causal,
	    .window = p->window < INT32_MAX ? (int32_t)p->window : 0, /* wider than any request */
	    .scale_log2 = p->scale * 1.4426950408889634f,
	    .empty_lse = p->empty_lse,
	    .q_aligned = (uintptr_t)p->q % 16 == 0 && multiple_of(8, p->q_b, p->q_s, p->q_h),
	    .out_aligned = (uintptr_t)p->out % 16 == 0 && multiple_of(8, p->out_b, p->out_s, p->out_h),
	    .small = (div_up(longest, BLOCK) + OVERHEAD_BLOCKS) * p->b < INT32_MAX / (parts + 2),
	    .costs = {.overhead = OVERHEAD_BLOCKS,
	              .min_blocks = 1,
	              .max_snap = MAX_SNAP_BLOCKS,
	              .chunk = p->batch_invariant ? CHUNK_BLOCKS : 0,
	              .whole = WHOLE_BLOCKS,
	              .whole_16ths = row_tiles(p) == 1, /* memory is the limit, and 15 of 16 SMs are enough for it */
	              .even = 1},
	    .max_chunks = (int32_t)max_chunks(p),
	    .arrivals = (struct word128 *)(void *)(workspace + at.arrivals),
	    .arrival_width = (int32_t)arrival_width(ctx, p),
	    .partial_lse = (float *)(void *)(workspace + at.lse),
	    .partial_out = workspace + at.out,
	    .partial_bytes = partial_bytes(p),
	};
}

/* The cache as a 5-D tensor {64 values, token, slice, KV head, page}; kept until it changes (~1 us to encode). */
static fmla_status encode_maps(struct fmla_ctx *ctx, const struct problem *p, const struct decode_params *d)
{
	struct cuda_state *st = state_of(ctx);
	struct map_key key;
	memset(&key, 0, sizeof(key)); /* compared with memcmp, padding included */
	key.kv = p->kv;
	key.kv_page = p->kv_page;
	key.kv_token = p->kv_token;
	key.kv_head = p->kv_head;
	key.num_pages = p->num_pages;
	key.page = p->page;
	key.h_kv = p->h_kv;
	key.slices = d->slices;
	key.fp16 = p->type == TYPE_FP16;
	key.box_tokens = 1 << d->box_shift;
	key.box_slices = d->box_slices;
	if (memcmp(&key, &st->key, sizeof(key)) == 0)
		return FMLA_OK;
	/* A stride along a dimension of one element is never used, but must be valid. */
	const cuuint64_t token = 2 * (cuuint64_t)(p->page > 1 ? p->kv_token : p->d_qk);
	const cuuint64_t head = p->h_kv > 1 ? 2 * (cuuint64_t)p->kv_head : token;
	const cuuint64_t page = p->num_pages > 1 ? 2 * (cuuint64_t)p->kv_page : token;
	const cuuint64_t dims[5] = {64, (cuuint64_t)p->page, (cuuint64_t)d->slices, (cuuint64_t)p->h_kv,
	                            (cuuint64_t)(p->num_pages > 0 ? p->num_pages : 1)};
	const cuuint64_t strides[4] = {token, 128, head, page};
	const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
	struct kv_maps maps;
	CUresult r = CUDA_ERROR_NOT_FOUND;
	st->key.kv = NULL;
	for (int i = 0; i < 2 && st->encode; i++) {
		const cuuint32_t slices = i == 0 ? (cuuint32_t)d->box_slices : 1;
		const cuuint32_t box[5] = {64, (cuuint32_t)1 << d->box_shift, slices, 1, 1};
		r = st->encode(i == 0 ? &maps.group : &maps.slice,
		               key.fp16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5,
		               (void *)(uintptr_t)(p->kv ? p->kv : p->workspace), dims, strides, box, ones,
		               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
		               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
		if (r != CUDA_SUCCESS)
			break;
	}
	if (r != CUDA_SUCCESS)
		return fmla_fail(
		    ctx, FMLA_ERR_DEVICE,
		    "CUDA: cuTensorMapEncodeTiled failed with %d for kv_cache of %lld pages of %lld tokens, strides "
		    "%lld, %lld, %lld",
		    (int)r, (long long)p->num_pages, (long long)p->page, (long long)p->kv_page, (long long)p->kv_token,
		    (long long)p->kv_head);
	st->key = key;
	memcpy(st->maps, &maps, sizeof(maps));
	return FMLA_OK;
}

/* ---- the stages -------------------------------------------------------------------------------------------------- */

static fmla_status launch_plan(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct decode_params d = params_of(ctx, p);
	TRY_CUDA(ctx, fmla_launch_plan(&d, p->plan_parts, p->num_parts, p->plan_splits, p->stream));
	return FMLA_OK;
}

/* FMLA_CHECK_PAGES: the only call that waits for the device.  The answer passes through the workspace. */
static fmla_status check_pages(struct fmla_ctx *ctx, const struct problem *p, const struct decode_params *d)
{
	enum cudaStreamCaptureStatus capturing;
	uint64_t first = UINT64_MAX;
	int32_t page;
	TRY_CUDA(ctx, cudaStreamIsCapturing(p->stream, &capturing));
	REQUIRE(ctx, capturing == cudaStreamCaptureStatusNone, "FMLA_CHECK_PAGES waits for the device: not in a graph");
	TRY_CUDA(ctx, cudaMemsetAsync(p->workspace, 0xff, sizeof(first), p->stream));
	TRY_CUDA(ctx, fmla_launch_check_pages(d, p->workspace, p->stream));
	TRY_CUDA(ctx, cudaMemcpyAsync(&first, p->workspace, sizeof(first), cudaMemcpyDeviceToHost, p->stream));
	TRY_CUDA(ctx, cudaStreamSynchronize(p->stream));
	if (first == UINT64_MAX)
		return FMLA_OK;
	const int64_t req = (int64_t)(first >> 32), entry = (int64_t)(first & UINT32_MAX);
	TRY_CUDA(ctx, cudaMemcpyAsync(&page, p->block_table + req * p->table_stride + entry, sizeof(page),
	                              cudaMemcpyDeviceToHost, p->stream));
	TRY_CUDA(ctx, cudaStreamSynchronize(p->stream));
	return fmla_fail(ctx, FMLA_ERR_PAGE, "block_table[%lld, %lld] is %d, kv_cache has %lld pages", (long long)req,
	                 (long long)entry, page, (long long)p->num_pages);
}

static fmla_status launch_decode(struct fmla_ctx *ctx, const struct problem *p)
{
	if (p->total_q == 0)
		return FMLA_OK; /* no row to write */
	const struct decode_params d = params_of(ctx, p);
	const int fp16 = p->type == TYPE_FP16;
	struct kv_maps maps;
	if (p->check_pages)
		TRY(check_pages(ctx, p, &d));
	TRY(encode_maps(ctx, p, &d));
	memcpy(&maps, state_of(ctx)->maps, sizeof(maps));
	if (d.tile_rows == 64)
		TRY_CUDA(ctx, fmla_launch_decode_seesaw(&d, &maps, fp16, p->stream));
	else
		TRY_CUDA(ctx, fmla_launch_decode_swap(&d, &maps.group, fp16, p->stream));
	return FMLA_OK;
}

static fmla_status launch_combine(struct fmla_ctx *ctx, const struct problem *p)
{
	if (p->total_q == 0 || !p->batch_invariant)
		return FMLA_OK; /* merged by the decode kernel */
	const struct decode_params d = params_of(ctx, p);
	TRY_CUDA(ctx, fmla_launch_combine(&d, state_of(ctx)->device[p->device.id].sms, p->type == TYPE_FP16, p->stream));
	return FMLA_OK;
}

static fmla_status launch_merge(struct fmla_ctx *ctx, const struct merge_problem *p)
{
	TRY_CUDA(ctx, fmla_launch_merge(p, p->stream));
	return FMLA_OK;
}

static fmla_status launch_append(struct fmla_ctx *ctx, const struct append_problem *p)
{
	TRY_CUDA(ctx, fmla_launch_append(p, p->stream));
	return FMLA_OK;
}

/* Runs a stage with the tensors' device current. */
#define ON_DEVICE(name, type, stage)                                     \
	static fmla_status name(struct fmla_ctx *ctx, const struct type *p)  \
	{                                                                    \
		int previous;                                                    \
		TRY(enter_device(ctx, p->device.id, &previous));                 \
		return leave_device(ctx, p->device.id, previous, stage(ctx, p)); \
	}

ON_DEVICE(cuda_plan, problem, launch_plan)
ON_DEVICE(cuda_decode, problem, launch_decode)
ON_DEVICE(cuda_combine, problem, launch_combine)
ON_DEVICE(cuda_merge, merge_problem, launch_merge)
ON_DEVICE(cuda_append, append_problem, launch_append)

const struct fmla_backend fmla_backend_cuda = {
    .name = "cuda",
    .device_type = FMLA_DEVICE_CUDA,
    .probe = cuda_probe,
    .check = cuda_check,
    .num_parts = cuda_num_parts,
    .workspace_size = cuda_workspace_size,
    .plan = cuda_plan,
    .decode = cuda_decode,
    .combine = cuda_combine,
    .merge = cuda_merge,
    .kv_append = cuda_append,
};
