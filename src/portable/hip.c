/* SPDX-License-Identifier: MIT
 *
 * The hip backend: the portable kernels on AMD Instinct (gfx90a, gfx942), from code objects in the library, through
 * libamdhip64, which is found at run time.  Never executed by us: no AMD GPU was at hand (docs/gpus.md). */
#include "hip_objects.h"
#include "host.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	MAX_DEVICES = 16,
	HIP_MULTIPROCESSORS = 63, /* hipDeviceAttributeMultiprocessorCount */
	HIP_TO_HOST = 2           /* hipMemcpyDeviceToHost                 */
};

/* F(result, name, parameters): what is called of HIP; hipError_t is an int here. */
#define HIP_FUNCTIONS(F)                                                                                        \
	F(int, hipGetDeviceCount, (int *))                                                                          \
	F(int, hipGetDevice, (int *))                                                                               \
	F(int, hipSetDevice, (int))                                                                                 \
	F(int, hipDeviceGetAttribute, (int *, int, int))                                                            \
	F(int, hipDeviceGetName, (char *, int, int))                                                                \
	F(int, hipModuleLoadData, (void **, const void *))                                                          \
	F(int, hipModuleUnload, (void *))                                                                           \
	F(int, hipModuleGetFunction, (void **, void *, const char *))                                               \
	F(int, hipModuleLaunchKernel,                                                                               \
	  (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **)) \
	F(int, hipMemcpyAsync, (void *, const void *, size_t, int, void *))                                         \
	F(int, hipStreamSynchronize, (void *))                                                                      \
	F(const char *, hipGetErrorString, (int))

struct device {
	int units;
	const char *arch; /* of the code object that the device took; NULL: none */
	void *module;
	void *kernel[PK_KERNELS];
};

/* What the backend remembers in the context (fmla_ctx.hip_state). */
struct state {
	const char *trouble; /* NULL: usable */
	void *library;
#define F(result, name, parameters) result(*name) parameters;
	HIP_FUNCTIONS(F)
#undef F
	int devices;
	struct device device[MAX_DEVICES];
};

#define TRY_HIP(ctx, st, call)                                                                                      \
	do {                                                                                                            \
		const int error_ = (call);                                                                                  \
		if (error_ != 0)                                                                                            \
			return fmla_fail((ctx), FMLA_ERR_DEVICE, "HIP: %s failed: %s", #call, (st)->hipGetErrorString(error_)); \
	} while (0)

/* ---- devices ------------------------------------------------------------------------------------------------------- */

static const char *open_library(struct state *st)
{
	static const char *const names[] = {"libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"};
	if (!hip_objects[0].arch)
		return "built without AMD code objects (no clang-19 with lld at build time)";
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && !st->library; i++)
		st->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
	if (!st->library)
		return "no HIP runtime (libamdhip64.so)";
	const char *missing = NULL;
	void *symbol;
#define F(result, name, parameters)             \
	symbol = dlsym(st->library, #name);         \
	memcpy(&st->name, &symbol, sizeof(symbol)); \
	missing = symbol ? missing : "libamdhip64.so lacks " #name;
	HIP_FUNCTIONS(F)
#undef F
	return missing;
}

/* The best code object that the current device takes. */
static void load_module(struct state *st, struct device *d)
{
	for (const struct hip_object *o = hip_objects; o->arch && !d->arch; o++) {
		if (st->hipModuleLoadData(&d->module, o->image) != 0)
			continue;
		int found = 1;
		for (int k = 0; k < PK_KERNELS; k++) {
			const char *name = k == PK_DECODE_BF16   ? "fmla_pk_wave_bf16"
			                   : k == PK_DECODE_FP16 ? "fmla_pk_wave_fp16"
			                                         : pk_kernel_name[k];
			found &= st->hipModuleGetFunction(&d->kernel[k], d->module, name) == 0;
		}
		if (found)
			d->arch = o->arch;
		else
			st->hipModuleUnload(d->module);
	}
}

/* NULL only without memory. */
static struct state *state_of(struct fmla_ctx *ctx)
{
	struct state *st = ctx->hip_state;
	if (st)
		return st;
	st = ctx->hip_state = calloc(1, sizeof(*st));
	if (!st)
		return NULL;
	st->trouble = open_library(st);
	int count = 0, previous = 0;
	if (st->trouble)
		return st;
	if (st->hipGetDeviceCount(&count) != 0 || count < 1 || st->hipGetDevice(&previous) != 0) {
		st->trouble = "no HIP device";
		return st;
	}
	for (int i = 0; i < count && i < MAX_DEVICES; i++) {
		struct device *d = &st->device[st->devices++];
		if (st->hipSetDevice(i) == 0 && st->hipDeviceGetAttribute(&d->units, HIP_MULTIPROCESSORS, i) == 0)
			load_module(st, d);
	}
	st->hipSetDevice(previous);
	return st;
}

static void hip_release(struct fmla_ctx *ctx)
{
	struct state *st = ctx->hip_state;
	if (!st)
		return;
	for (int i = 0; i < st->devices; i++)
		if (st->device[i].arch)
			st->hipModuleUnload(st->device[i].module);
	if (st->library)
		dlclose(st->library);
	free(st);
	ctx->hip_state = NULL;
}

static fmla_status hip_probe(struct fmla_ctx *ctx, struct fmla_backend_info *info)
{
	struct state *st = state_of(ctx);
	struct info_text *text = &ctx->info_text[INFO_HIP];
	info->variant = "MFMA 16x16x16";
	if (!st || st->trouble) {
		info->reason = st ? st->trouble : "out of memory";
		return FMLA_OK;
	}
	if (!st->device[0].arch) {
		info->reason = "device 0 takes neither gfx942 nor gfx90a code";
		return FMLA_OK;
	}
	st->hipDeviceGetName(text->device_name, sizeof(text->device_name) - 1, 0);
	info->device_name = text->device_name;
	info->num_workers = st->device[0].units;
	info->available = 1;
	info->reason = "compiled and checked, never run by its authors";
	return FMLA_OK;
}

static fmla_status check_device(struct fmla_ctx *ctx, int id)
{
	const struct state *st = state_of(ctx);
	if (!st)
		return fmla_fail(ctx, FMLA_ERR_MEMORY, "backend hip: out of memory");
	if (st->trouble)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend hip: %s", st->trouble);
	REQUIRE(ctx, id >= 0 && id < st->devices, "the tensors are on ROCm device %d, this machine has %d", id,
	        st->devices);
	if (!st->device[id].arch)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend hip: device %d takes neither gfx942 nor gfx90a code", id);
	return FMLA_OK;
}

/* p NULL: merge and append, which check their device when they run. */
static fmla_status hip_check(struct fmla_ctx *ctx, const struct problem *p)
{
	return check_device(ctx, p ? p->device.id : 0);
}

static struct pk_target target_of(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct state *st = ctx->hip_state; /* hip_check made it */
	return (struct pk_target){st->device[p->device.id].units, PK_PORTABLE_ROWS};
}

static int64_t hip_num_parts(struct fmla_ctx *ctx, const struct problem *p)
{
	return pk_num_parts(p, target_of(ctx, p));
}

static size_t hip_workspace_size(struct fmla_ctx *ctx, const struct problem *p)
{
	return pk_workspace_size(p, target_of(ctx, p));
}

/* ---- the stages ---------------------------------------------------------------------------------------------------- */

static fmla_status launch(struct fmla_ctx *ctx, int id, void *stream, struct pk_call c)
{
	struct state *st = ctx->hip_state;
	void *arguments[PK_MOST_BUFFERS + 1];
	int previous = id;
	if (c.groups == 0)
		return FMLA_OK;
	for (int i = 0; i < c.num_buffers; i++)
		arguments[i] = &c.buffer[i];
	arguments[c.num_buffers] = &c.shape;
	TRY_HIP(ctx, st, st->hipGetDevice(&previous));
	if (previous != id)
		TRY_HIP(ctx, st, st->hipSetDevice(id));
	const int error = st->hipModuleLaunchKernel(st->device[id].kernel[c.kernel], (unsigned)c.groups, 1, 1,
	                                            PK_GROUP_ITEMS, 1, 1, 0, stream, arguments, NULL);
	if (previous != id)
		TRY_HIP(ctx, st, st->hipSetDevice(previous));
	TRY_HIP(ctx, st, error);
	return FMLA_OK;
}

static fmla_status hip_plan(struct fmla_ctx *ctx, const struct problem *p)
{
	return launch(ctx, p->device.id, p->stream, pk_plan_call(p, target_of(ctx, p)));
}

/* FMLA_CHECK_PAGES: waits for the device. */
static fmla_status check_pages(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct state *st = ctx->hip_state;
	int32_t answer[3];
	TRY(launch(ctx, p->device.id, p->stream, pk_pages_call(p, target_of(ctx, p))));
	TRY_HIP(ctx, st, st->hipMemcpyAsync(answer, p->workspace, sizeof(answer), HIP_TO_HOST, p->stream));
	TRY_HIP(ctx, st, st->hipStreamSynchronize(p->stream));
	return pk_pages_answer(ctx, p, answer);
}

static fmla_status hip_decode(struct fmla_ctx *ctx, const struct problem *p)
{
	if (p->total_q == 0)
		return FMLA_OK; /* no row to write */
	if (p->check_pages)
		TRY(check_pages(ctx, p));
	TRY(launch(ctx, p->device.id, p->stream, pk_own_plan_call(p, target_of(ctx, p))));
	return launch(ctx, p->device.id, p->stream, pk_decode_call(p, target_of(ctx, p)));
}

static fmla_status hip_combine(struct fmla_ctx *ctx, const struct problem *p)
{
	if (p->total_q == 0 || !pk_splits_requests(p, target_of(ctx, p)))
		return FMLA_OK;
	return launch(ctx, p->device.id, p->stream, pk_combine_call(p, target_of(ctx, p)));
}

static fmla_status hip_merge(struct fmla_ctx *ctx, const struct merge_problem *p)
{
	TRY(check_device(ctx, p->device.id));
	return launch(ctx, p->device.id, p->stream, pk_merge_call(p));
}

static fmla_status hip_append(struct fmla_ctx *ctx, const struct append_problem *p)
{
	TRY(check_device(ctx, p->device.id));
	return launch(ctx, p->device.id, p->stream, pk_append_call(p));
}

const struct fmla_backend fmla_backend_hip = {.name = "hip",
                                              .device_type = FMLA_DEVICE_ROCM,
                                              .probe = hip_probe,
                                              .check = hip_check,
                                              .num_parts = hip_num_parts,
                                              .workspace_size = hip_workspace_size,
                                              .plan = hip_plan,
                                              .decode = hip_decode,
                                              .combine = hip_combine,
                                              .merge = hip_merge,
                                              .kv_append = hip_append,
                                              .release = hip_release};
