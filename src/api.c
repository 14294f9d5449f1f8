/* SPDX-License-Identifier: MIT
 *
 * The public functions: check -> plan -> decode -> combine. */
#include "flash_mla.h"

#include "check.h"
#include "registry.h"

#include <string.h>

/* clang-format off */
const struct fmla_backend *const fmla_backends[] = {
#ifdef FMLA_WITH_CUDA
	&fmla_backend_cuda,
	&fmla_backend_portable_cuda,
#endif
#ifdef FMLA_WITH_CPU
	&fmla_backend_cpu,
#endif
	&fmla_backend_ref,
	&fmla_backend_opencl,
	&fmla_backend_hip,
	NULL,
};
/* clang-format on */

enum { NUM_BACKENDS = sizeof(fmla_backends) / sizeof(fmla_backends[0]) - 1 };

/* ---- decode: plan once per step, decode once per layer -------------------------------------------------------- */

static fmla_status backend_for(struct fmla_ctx *ctx, struct fmla_device device, const struct problem *p,
                               const struct fmla_backend **chosen);

fmla_status fmla_decode(fmla_ctx *ctx, const struct fmla_decode_args *args)
{
	struct problem p;
	const struct fmla_backend *be;
	TRY(check_decode(ctx, args, CHECK_DECODE, &p));
	TRY(backend_for(ctx, p.device, &p, &be));
	TRY(check_workspace(ctx, &p, be->workspace_size(ctx, &p)));
	TRY(be->decode(ctx, &p));
	return be->combine(ctx, &p);
}

fmla_status fmla_plan(fmla_ctx *ctx, const struct fmla_decode_args *args)
{
	struct problem p;
	const struct fmla_backend *be;
	TRY(check_decode(ctx, args, CHECK_PLAN, &p));
	TRY(backend_for(ctx, p.device, &p, &be));
	TRY(check_plan_rows(ctx, &p, be->num_parts(ctx, &p)));
	return be->plan(ctx, &p);
}

fmla_status fmla_plan_parts(fmla_ctx *ctx, const struct fmla_decode_args *args, int64_t *num_parts)
{
	struct problem p;
	const struct fmla_backend *be;
	TRY(check_decode(ctx, args, CHECK_SHAPES, &p));
	REQUIRE(ctx, num_parts, "num_parts is NULL");
	TRY(backend_for(ctx, p.device, &p, &be));
	*num_parts = be->num_parts(ctx, &p);
	return FMLA_OK;
}

fmla_status fmla_workspace_size(fmla_ctx *ctx, const struct fmla_decode_args *args, size_t *bytes)
{
	struct problem p;
	const struct fmla_backend *be;
	TRY(check_decode(ctx, args, CHECK_SHAPES, &p));
	REQUIRE(ctx, bytes, "bytes is NULL");
	TRY(backend_for(ctx, p.device, &p, &be));
	*bytes = be->workspace_size(ctx, &p);
	return FMLA_OK;
}

/* ---- merge and append ------------------------------------------------------------------------------------------ */

fmla_status fmla_merge(fmla_ctx *ctx, const struct fmla_merge_args *args)
{
	struct merge_problem p;
	const struct fmla_backend *be;
	TRY(check_merge(ctx, args, &p));
	TRY(backend_for(ctx, p.device, NULL, &be));
	return be->merge(ctx, &p);
}

fmla_status fmla_kv_append(fmla_ctx *ctx, const struct fmla_kv_append_args *args)
{
	struct append_problem p;
	const struct fmla_backend *be;
	TRY(check_append(ctx, args, &p));
	TRY(backend_for(ctx, p.device, NULL, &be));
	return be->kv_append(ctx, &p);
}

/* ---- backends -------------------------------------------------------------------------------------------------- */

static const char *device_name(int32_t type)
{
	switch (type) {
	case FMLA_DEVICE_CPU:
		return "cpu";
	case FMLA_DEVICE_CUDA:
		return "cuda";
	case FMLA_DEVICE_OPENCL:
		return "opencl";
	case FMLA_DEVICE_ROCM:
		return "rocm";
	default:
		return "unknown";
	}
}

/* The forced backend, or the first one for the tensors' device that takes the problem (p NULL: merge and append). */
static fmla_status backend_for(struct fmla_ctx *ctx, struct fmla_device device, const struct problem *p,
                               const struct fmla_backend **chosen)
{
	int asked = 0;
	for (int i = 0; i < NUM_BACKENDS; i++) {
		const struct fmla_backend *be = fmla_backends[i];
		if ((int32_t)be->device_type != device.type || (ctx->forced && ctx->forced != be))
			continue;
		asked++;
		const fmla_status status = be->check(ctx, p);
		if (status == FMLA_OK) {
			ctx->error[0] = '\0';
			*chosen = be;
			return FMLA_OK;
		}
		if (status != FMLA_ERR_UNSUPPORTED)
			return status;
	}
	if (asked == 0) /* otherwise the sentence is that of the last one asked */
		fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "no backend for tensors on device type %d (%s)%s%s", device.type,
		          device_name(device.type), ctx->forced ? ": the context was created for backend " : "",
		          ctx->forced ? ctx->forced->name : "");
	return FMLA_ERR_UNSUPPORTED;
}

fmla_status fmla_backend_info(fmla_ctx *ctx, int index, struct fmla_backend_info *info)
{
	TRY(check_context(ctx));
	REQUIRE(ctx, info, "info is NULL");
	REQUIRE(ctx, index >= 0 && index < NUM_BACKENDS, "index is %d, this library has %d backends", index, NUM_BACKENDS);
	REQUIRE(ctx, info->struct_size >= sizeof(info->struct_size), "struct_size is %zu, set it to the size of the struct",
	        info->struct_size);
	const struct fmla_backend *be = fmla_backends[index];
	struct fmla_backend_info ours = {.device_name = "", .variant = "", .reason = ""};
	TRY(be->probe(ctx, &ours));
	ours.struct_size = info->struct_size;
	ours.name = be->name;
	ours.device_type = be->device_type;
	memcpy(info, &ours, ours.struct_size < sizeof(ours) ? ours.struct_size : sizeof(ours));
	return FMLA_OK;
}

const struct fmla_backend *fmla_backend_named(const char *name)
{
	for (int i = 0; i < NUM_BACKENDS; i++)
		if (strcmp(fmla_backends[i]->name, name) == 0)
			return fmla_backends[i];
	return NULL;
}

const char *fmla_backend_names(void)
{
	return ""
#ifdef FMLA_WITH_CUDA
	       "cuda, portable-cuda, "
#endif
#ifdef FMLA_WITH_CPU
	       "cpu, "
#endif
	       "ref, opencl, hip";
}

/* ---- version --------------------------------------------------------------------------------------------------- */

#define TEXT_OF(x) #x
#define TEXT(x)    TEXT_OF(x)

int fmla_version(void)
{
	return FMLA_VERSION_MAJOR * 10000 + FMLA_VERSION_MINOR * 100 + FMLA_VERSION_PATCH;
}

const char *fmla_version_string(void)
{
	return TEXT(FMLA_VERSION_MAJOR) "." TEXT(FMLA_VERSION_MINOR) "." TEXT(FMLA_VERSION_PATCH);
}
