/* SPDX-License-Identifier: MIT
 *
 * The opencl backend: the portable kernels on any OpenCL 1.2 device.  Tensors are buffers (struct fmla_tensor's data is a
 * cl_mem, byte_offset counts), `stream` is an in-order command queue on the device that the tensors name; programs are
 * compiled at the first call with a queue of a new OpenCL context, and kept on disk (program_cache.h). */
#include "cl_api.h"
#include "host.h"
#include "opencl_source.h"
#include "program_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	LOCAL_BYTES = 40 << 10, /* shared memory that the kernels may use                 */
	GROUPS_PER_UNIT = 2,    /* to hide latency                                        */
	MAX_CONTEXTS = 8,       /* programs kept; then the oldest one goes                */
	MAX_ARGUMENTS = PK_MOST_BUFFERS + 1
};
static const char options[] = "-cl-std=CL1.2";

/* The kernels for one OpenCL context and device. */
struct program {
	cl_context context;
	cl_device device;
	cl_program program;
	cl_kernel kernel[PK_KERNELS];
};

struct device {
	cl_platform platform;
	cl_device id;
	uint32_t units;
	const char *trouble; /* NULL: usable */
};

/* What the backend remembers in the context (fmla_ctx.opencl_state). */
struct opencl_state {
	const char *trouble; /* NULL: there is a loader */
	struct cl_api cl;
	int devices;
	struct device device[CL_MOST_DEVICES];
	int programs;
	struct program program[MAX_CONTEXTS];
};

static fmla_status fail_cl(struct fmla_ctx *ctx, int32_t error, const char *what)
{
	return fmla_fail(ctx, FMLA_ERR_DEVICE, "OpenCL: %s failed with %d", what, error);
}

#define TRY_CL(ctx, call)                         \
	do {                                          \
		const int32_t error_ = (call);            \
		if (error_ != CL_SUCCESS)                 \
			return fail_cl((ctx), error_, #call); \
	} while (0)

/* ---- devices ------------------------------------------------------------------------------------------------------- */

static const char *device_trouble(const struct cl_api *cl, cl_device id)
{
	uint64_t local = 0;
	size_t items = 0;
	uint32_t little = 0, available = 0, compiler = 0;
	cl->clGetDeviceInfo(id, CL_DEVICE_LOCAL_MEM_SIZE, sizeof(local), &local, NULL);
	cl->clGetDeviceInfo(id, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof(items), &items, NULL);
	cl->clGetDeviceInfo(id, CL_DEVICE_ENDIAN_LITTLE, sizeof(little), &little, NULL);
	cl->clGetDeviceInfo(id, CL_DEVICE_AVAILABLE, sizeof(available), &available, NULL);
	cl->clGetDeviceInfo(id, CL_DEVICE_COMPILER_AVAILABLE, sizeof(compiler), &compiler, NULL);
	return !available               ? "the device is not available"
	       : !compiler              ? "the device has no compiler"
	       : !little                ? "the device is big-endian"
	       : local < LOCAL_BYTES    ? "the device has less than 40 KiB of local memory"
	       : items < PK_GROUP_ITEMS ? "the device's groups have less than 256 work-items"
	                                : NULL;
}

/* NULL only without memory. */
static struct opencl_state *state_of(struct fmla_ctx *ctx)
{
	struct opencl_state *st = ctx->opencl_state;
	if (st)
		return st;
	st = ctx->opencl_state = calloc(1, sizeof(*st));
	if (!st)
		return NULL;
	st->trouble = cl_open(&st->cl);
	if (st->trouble)
		return st;
	struct cl_devices found;
	cl_list_devices(&st->cl, &found);
	for (int i = 0; i < found.count; i++) {
		struct device *d = &st->device[st->devices++];
		d->platform = found.at[i].platform;
		d->id = found.at[i].id;
		d->trouble = device_trouble(&st->cl, d->id);
		st->cl.clGetDeviceInfo(d->id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(d->units), &d->units, NULL);
	}
	if (st->devices == 0)
		st->trouble = "an OpenCL loader, but no platform with a device (no ICD)";
	return st;
}

static fmla_status opencl_probe(struct fmla_ctx *ctx, struct fmla_backend_info *info)
{
	struct opencl_state *st = state_of(ctx);
	struct info_text *text = &ctx->info_text[INFO_OPENCL];
	info->variant = "OpenCL C 1.2";
	if (!st || st->trouble) {
		info->reason = st ? st->trouble : "out of memory";
		return FMLA_OK;
	}
	int first = 0;
	while (first + 1 < st->devices && st->device[first].trouble)
		first++;
	const struct device *d = &st->device[first];
	st->cl.clGetDeviceInfo(d->id, CL_DEVICE_NAME, sizeof(text->device_name) - 1, text->device_name, NULL);
	info->device_name = text->device_name;
	info->num_workers = (int32_t)d->units;
	info->available = d->trouble == NULL;
	info->reason = d->trouble ? d->trouble : "";
	if (info->available && st->devices > 1) {
		snprintf(text->reason, sizeof(text->reason), "device %d of %d", first, st->devices);
		info->reason = text->reason;
	}
	return FMLA_OK;
}

static fmla_status check_device(struct fmla_ctx *ctx, int id)
{
	const struct opencl_state *st = state_of(ctx);
	if (!st)
		return fmla_fail(ctx, FMLA_ERR_MEMORY, "backend opencl: out of memory");
	if (st->trouble)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend opencl: %s", st->trouble);
	REQUIRE(ctx, id >= 0 && id < st->devices, "the tensors are on OpenCL device %d, this machine has %d", id,
	        st->devices);
	if (st->device[id].trouble)
		return fmla_fail(ctx, FMLA_ERR_UNSUPPORTED, "backend opencl: device %d: %s", id, st->device[id].trouble);
	return FMLA_OK;
}

/* p NULL: merge and append, which check their device when they run. */
static fmla_status opencl_check(struct fmla_ctx *ctx, const struct problem *p)
{
	return check_device(ctx, p ? p->device.id : 0);
}

static struct pk_target target_of(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct opencl_state *st = ctx->opencl_state; /* opencl_check made it */
	return (struct pk_target){(int64_t)st->device[p->device.id].units * GROUPS_PER_UNIT, PK_PORTABLE_ROWS};
}

static int64_t opencl_num_parts(struct fmla_ctx *ctx, const struct problem *p)
{
	return pk_num_parts(p, target_of(ctx, p));
}

static size_t opencl_workspace_size(struct fmla_ctx *ctx, const struct problem *p)
{
	return pk_workspace_size(p, target_of(ctx, p));
}

/* ---- programs ------------------------------------------------------------------------------------------------------ */

/* What decides about the compiled program, as one text. */
static void write_key(const struct opencl_state *st, const struct device *d, char *key, size_t size)
{
	static const uint32_t device_info[] = {CL_DEVICE_NAME, CL_DRIVER_VERSION};
	static const uint32_t platform_info[] = {CL_PLATFORM_NAME, CL_PLATFORM_VERSION};
	size_t at =
	    (size_t)snprintf(key, size, "flash_mla %s, source %016llx, %s\n", fmla_version_string(),
	                     (unsigned long long)cache_hash(fmla_opencl_source, strlen(fmla_opencl_source)), options);
	for (int i = 0; i < 4; i++) {
		char text[256] = "";
		if (i < 2)
			st->cl.clGetDeviceInfo(d->id, device_info[i], sizeof(text) - 1, text, NULL);
		else
			st->cl.clGetPlatformInfo(d->platform, platform_info[i - 2], sizeof(text) - 1, text, NULL);
		at += (size_t)snprintf(key + at, size - at, "%s\n", text);
	}
}

static void store_program(const struct opencl_state *st, cl_program program, const char *key)
{
	size_t bytes = 0;
	if (!cache_is_on()) /* asking for the program costs some drivers a second compilation */
		return;
	if (st->cl.clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof(bytes), &bytes, NULL) != CL_SUCCESS ||
	    bytes == 0)
		return;
	unsigned char *binary = malloc(bytes);
	if (binary && st->cl.clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof(binary), &binary, NULL) == CL_SUCCESS)
		cache_store(key, binary, bytes);
	free(binary);
}

static cl_program load_program(const struct opencl_state *st, cl_context context, const struct device *d,
                               const char *key)
{
	size_t bytes = 0;
	int32_t error = 0;
	unsigned char *binary = cache_load(key, &bytes);
	if (!binary)
		return NULL;
	const unsigned char *const constant = binary;
	cl_program program =
	    st->cl.clCreateProgramWithBinary(context, 1, &d->id, &bytes, (const unsigned char **)&constant, NULL, &error);
	free(binary);
	if (program && st->cl.clBuildProgram(program, 1, &d->id, options, NULL, NULL) != CL_SUCCESS) {
		st->cl.clReleaseProgram(program); /* of another driver after all */
		program = NULL;
	}
	return program;
}

static fmla_status compile_program(struct fmla_ctx *ctx, cl_context context, const struct device *d,
                                   cl_program *program)
{
	const struct opencl_state *st = ctx->opencl_state;
	const char *source = fmla_opencl_source;
	int32_t error = 0;
	*program = st->cl.clCreateProgramWithSource(context, 1, &source, NULL, &error);
	if (!*program)
		return fail_cl(ctx, error, "clCreateProgramWithSource");
	error = st->cl.clBuildProgram(*program, 1, &d->id, options, NULL, NULL);
	if (error == CL_SUCCESS)
		return FMLA_OK;
	char log[384] = "";
	st->cl.clGetProgramBuildInfo(*program, d->id, CL_PROGRAM_BUILD_LOG, sizeof(log) - 1, log, NULL);
	st->cl.clReleaseProgram(*program);
	return fmla_fail(ctx, FMLA_ERR_DEVICE, "OpenCL: the kernels do not compile (%d): %s", error, log);
}

static void release_program(const struct opencl_state *st, struct program *p)
{
	for (int k = 0; k < PK_KERNELS; k++)
		if (p->kernel[k])
			st->cl.clReleaseKernel(p->kernel[k]);
	if (p->program)
		st->cl.clReleaseProgram(p->program);
	if (p->context)
		st->cl.clReleaseContext(p->context);
	*p = (struct program){.context = NULL};
}

static fmla_status make_program(struct fmla_ctx *ctx, cl_context context, const struct device *d, struct program *p)
{
	struct opencl_state *st = ctx->opencl_state;
	char key[2048];
	write_key(st, d, key, sizeof(key));
	p->device = d->id;
	p->program = load_program(st, context, d, key);
	if (!p->program) {
		TRY(compile_program(ctx, context, d, &p->program));
		store_program(st, p->program, key);
	}
	for (int k = 0; k < PK_KERNELS; k++) {
		int32_t error = 0;
		p->kernel[k] = st->cl.clCreateKernel(p->program, pk_kernel_name[k], &error);
		if (!p->kernel[k])
			return fail_cl(ctx, error, pk_kernel_name[k]);
	}
	TRY_CL(ctx, st->cl.clRetainContext(context)); /* or its address might come back as another one's */
	p->context = context;
	return FMLA_OK;
}

/* The kernels for a queue, which must be in order and on device `id`. */
static fmla_status kernels_for(struct fmla_ctx *ctx, cl_queue queue, int id, struct program **found)
{
	struct opencl_state *st = ctx->opencl_state;
	cl_context context = NULL;
	cl_device device = NULL;
	uint64_t properties = 0;
	REQUIRE(ctx, queue, "stream is NULL, must be an OpenCL command queue");
	TRY_CL(ctx, st->cl.clGetCommandQueueInfo(queue, CL_QUEUE_CONTEXT, sizeof(context), &context, NULL));
	TRY_CL(ctx, st->cl.clGetCommandQueueInfo(queue, CL_QUEUE_DEVICE, sizeof(device), &device, NULL));
	TRY_CL(ctx, st->cl.clGetCommandQueueInfo(queue, CL_QUEUE_PROPERTIES, sizeof(properties), &properties, NULL));
	REQUIRE(ctx, device == st->device[id].id, "stream is a queue of another device than the tensors' OpenCL device %d",
	        id);
	REQUIRE(ctx, (properties & CL_QUEUE_OUT_OF_ORDER) == 0, "stream is an out-of-order queue, must be in order");
	for (int i = 0; i < st->programs; i++)
		if (st->program[i].context == context && st->program[i].device == device) {
			*found = &st->program[i];
			return FMLA_OK;
		}
	if (st->programs == MAX_CONTEXTS) {
		release_program(st, &st->program[0]);
		memmove(&st->program[0], &st->program[1], (MAX_CONTEXTS - 1) * sizeof(st->program[0]));
		st->programs--;
	}
	struct program fresh = {.context = NULL};
	const fmla_status status = make_program(ctx, context, &st->device[id], &fresh);
	if (status != FMLA_OK) {
		release_program(st, &fresh);
		return status;
	}
	st->program[st->programs] = fresh;
	*found = &st->program[st->programs++];
	return FMLA_OK;
}

static void opencl_release(struct fmla_ctx *ctx)
{
	struct opencl_state *st = ctx->opencl_state;
	if (!st)
		return;
	for (int i = 0; i < st->programs; i++)
		release_program(st, &st->program[i]);
	free(st);
	ctx->opencl_state = NULL;
}

/* ---- the stages ---------------------------------------------------------------------------------------------------- */

static fmla_status enqueue(struct fmla_ctx *ctx, void *stream, int id, const struct pk_call *c)
{
	const struct opencl_state *st = ctx->opencl_state;
	struct program *p = NULL;
	if (c->groups == 0)
		return FMLA_OK;
	TRY(kernels_for(ctx, stream, id, &p));
	cl_kernel kernel = p->kernel[c->kernel];
	for (int i = 0; i < c->num_buffers; i++) {
		cl_buffer buffer = (cl_buffer)(uintptr_t)c->buffer[i];
		TRY_CL(ctx, st->cl.clSetKernelArg(kernel, (uint32_t)i, sizeof(buffer), buffer ? &buffer : NULL));
	}
	TRY_CL(ctx, st->cl.clSetKernelArg(kernel, (uint32_t)c->num_buffers, c->shape_size, &c->shape));
	const size_t group = PK_GROUP_ITEMS, items = (size_t)c->groups * group;
	TRY_CL(ctx, st->cl.clEnqueueNDRangeKernel(stream, kernel, 1, NULL, &items, &group, 0, NULL, NULL));
	return FMLA_OK;
}

static fmla_status opencl_plan(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct pk_call call = pk_plan_call(p, target_of(ctx, p));
	return enqueue(ctx, p->stream, p->device.id, &call);
}

/* FMLA_CHECK_PAGES: waits for the device. */
static fmla_status check_pages(struct fmla_ctx *ctx, const struct problem *p)
{
	const struct opencl_state *st = ctx->opencl_state;
	const struct pk_call call = pk_pages_call(p, target_of(ctx, p));
	int32_t answer[3];
	TRY(enqueue(ctx, p->stream, p->device.id, &call));
	TRY_CL(ctx, st->cl.clEnqueueReadBuffer(p->stream, p->workspace, 1, 0, sizeof(answer), answer, 0, NULL, NULL));
	return pk_pages_answer(ctx, p, answer);
}

static fmla_status opencl_decode(struct fmla_ctx *ctx, const struct problem *p)
{
	if (p->total_q == 0)
		return FMLA_OK; /* no row to write */
	if (p->check_pages)
		TRY(check_pages(ctx, p));
	const struct pk_call plan = pk_own_plan_call(p, target_of(ctx, p));
	const struct pk_call decode = pk_decode_call(p, target_of(ctx, p));
	TRY(enqueue(ctx, p->stream, p->device.id, &plan));
	return enqueue(ctx, p->stream, p->device.id, &decode);
}

static fmla_status opencl_combine(struct fmla_ctx *ctx, const struct problem *p)
{
	if (p->total_q == 0 || !pk_splits_requests(p, target_of(ctx, p)))
		return FMLA_OK;
	const struct pk_call call = pk_combine_call(p, target_of(ctx, p));
	return enqueue(ctx, p->stream, p->device.id, &call);
}

static fmla_status opencl_merge(struct fmla_ctx *ctx, const struct merge_problem *p)
{
	TRY(check_device(ctx, p->device.id));
	const struct pk_call call = pk_merge_call(p);
	return enqueue(ctx, p->stream, p->device.id, &call);
}

static fmla_status opencl_append(struct fmla_ctx *ctx, const struct append_problem *p)
{
	TRY(check_device(ctx, p->device.id));
	const struct pk_call call = pk_append_call(p);
	return enqueue(ctx, p->stream, p->device.id, &call);
}

const struct fmla_backend fmla_backend_opencl = {.name = "opencl",
                                                 .device_type = FMLA_DEVICE_OPENCL,
                                                 .probe = opencl_probe,
                                                 .check = opencl_check,
                                                 .num_parts = opencl_num_parts,
                                                 .workspace_size = opencl_workspace_size,
                                                 .plan = opencl_plan,
                                                 .decode = opencl_decode,
                                                 .combine = opencl_combine,
                                                 .merge = opencl_merge,
                                                 .kv_append = opencl_append,
                                                 .release = opencl_release};
