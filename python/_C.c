/* SPDX-License-Identifier: MIT
 *
 * _C.c - flash_mla._C, the thin layer between Python objects and flash_mla.h.
 *
 * One call takes Python tensors, borrows their pointer, shape and strides (tensor.c), calls the library with the GIL
 * released and raises on a bad status.  Results that the caller did not hand over are made by his framework. */
#include "binding.h"

#include <math.h>
#include <string.h>

#ifndef METH_FASTCALL
#define METH_FASTCALL 0x0080 /* part of the limited API since 3.10; the same value and signature since 3.7 */
#endif

/* ---- scalars in ---------------------------------------------------------------------------------------------- */

static int read_int64(PyObject *object, const char *name, int64_t *v)
{
	PyObject *index = PyNumber_Index(object);
	if (!index) {
		PyErr_Format(PyExc_TypeError, "%s must be an integer, got %R", name, object);
		return -1;
	}
	*v = PyLong_AsLongLong(index);
	Py_DECREF(index);
	return *v == -1 && PyErr_Occurred() ? -1 : 0;
}

static int read_int32(PyObject *object, const char *name, int32_t *v)
{
	int64_t wide;
	if (read_int64(object, name, &wide))
		return -1;
	if (wide < INT32_MIN || wide > INT32_MAX) {
		PyErr_Format(PyExc_ValueError, "%s is %R; the limit is the range of int32", name, object);
		return -1;
	}
	*v = (int32_t)wide;
	return 0;
}

static int read_double(PyObject *object, const char *name, double *v)
{
	*v = PyFloat_AsDouble(object);
	if (*v == -1.0 && PyErr_Occurred()) {
		PyErr_Format(PyExc_TypeError, "%s must be a real number, got %R", name, object);
		return -1;
	}
	return 0;
}

static int expect_args(const char *function, Py_ssize_t got, Py_ssize_t want)
{
	if (got == want)
		return 0;
	PyErr_Format(PyExc_TypeError, "%s takes %zd positional arguments, got %zd", function, want, got);
	return -1;
}

/* ---- the calls ----------------------------------------------------------------------------------------------- */

enum { Q, KV, TABLE, LENS, CU_Q, SINK, PARTS, SPLITS, OUT, LSE, DECODE_TENSORS };
static const struct tensor_arg DECODE[DECODE_TENSORS] = {
    {"q", 0},         {"kv_cache", 0},   {"block_table", 0}, {"cache_seqlens", 0}, {"cu_seqlens_q", 0},
    {"attn_sink", 0}, {"plan_parts", 0}, {"plan_splits", 0}, {"out", 1},           {"lse", 1}};

static fmla_status decode_unlocked(struct thread *th, struct fmla_decode_args *a, const struct workspace *w)
{
	fmla_status status;
	a->workspace = w->data;
	a->workspace_size = w->size;
	Py_BEGIN_ALLOW_THREADS status = fmla_decode(th->ctx, a);
	Py_END_ALLOW_THREADS return status;
}

/* Decodes with the thread's workspace; only a call that finds it too small, and so wrote nothing, asks for the size.
 * While a CUDA graph is captured, the memory comes from the graph's pool instead and goes back to it after the call,
 * when the allocator may hand it to later work of the same graph. */
static int decode(struct state *st, struct thread *th, PyObject *like, struct fmla_decode_args *a)
{
	const struct fmla_device device = a->q ? a->q->device : (struct fmla_device){FMLA_DEVICE_CPU, 0};
	const int capturing = is_capturing(st, like, device, a->stream);
	if (capturing < 0)
		return -1;
	struct workspace graph = {.device = device, .stream = a->stream};
	struct workspace *w = capturing ? &graph : workspace_of(th, device, a->stream);
	fmla_status status = decode_unlocked(th, a, w);
	if (status == FMLA_ERR_WORKSPACE) {
		size_t size;
		status = fmla_workspace_size(th->ctx, a, &size);
		if (status == FMLA_OK && workspace_resize(st, like, w, size))
			return -1;
		if (status == FMLA_OK)
			status = decode_unlocked(th, a, w);
	}
	workspace_free(&graph);
	return status == FMLA_OK ? 0 : raise_status(th->ctx, status);
}

/* A dense array that the caller's framework makes; in describes it and is borrowed from it. */
static PyObject *make_result(struct state *st, PyObject *like, const char *name, struct fmla_dtype dtype, int ndim,
                             const int64_t *shape, struct import *in)
{
	const struct fmla_device device = in->tensor.device;
	memset(&in->tensor, 0, sizeof(in->tensor));
	in->keep = NULL;
	in->ptr = &in->tensor;
	in->tensor = (struct fmla_tensor){
	    .device = device, .ndim = ndim, .dtype = dtype, .shape = in->shape, .strides = in->strides};
	int64_t stride = 1;
	for (int i = ndim - 1; i >= 0; i--) {
		in->shape[i] = shape[i];
		in->strides[i] = stride;
		stride *= shape[i] > 1 ? shape[i] : 1;
	}
	PyObject *result = torch_empty(st, like, in);
	if (result)
		return result;
	PyErr_Clear();
	PyObject *sizes = PyTuple_New(ndim);
	for (int i = 0; sizes && i < ndim; i++)
		PyTuple_SetItem(sizes, i, PyLong_FromLongLong(shape[i]));
	result = sizes ? framework_call(st, "empty", "(ONz)", like, sizes, dtype.bits == 32 ? "float32" : NULL) : NULL;
	if (result && import_tensor(st, result, name, 1, in)) {
		Py_DECREF(result);
		result = NULL;
	}
	return result;
}

/* The results: what the caller handed over, or new ones in result[0] and result[1]. */
static int decode_results(struct state *st, PyObject *const *args, struct import *in, int32_t head_dim_v,
                          PyObject **result)
{
	const struct fmla_tensor *q = in[Q].ptr;
	const int ragged = in[CU_Q].ptr != NULL;
	if (!q || q->ndim != 4 - ragged) {
		PyObject *is = q ? PyObject_GetAttrString(args[Q], "shape") : NULL, *list = is ? PySequence_List(is) : NULL;
		Py_XDECREF(is);
		if (list || !q)
			PyErr_Format(PyExc_ValueError, "q has shape %R, must be %s", q ? list : Py_None,
			             ragged ? "[total_q, h_q, d_qk] with cu_seqlens_q" : "[b, s_q, h_q, d_qk]");
		Py_XDECREF(list);
		return -1;
	}
	const int64_t *shape = q->shape, d_v = head_dim_v > 0 ? head_dim_v : 512; /* others are rejected by the library */
	const int64_t out[4] = {shape[0], shape[1], ragged ? d_v : shape[2], d_v};
	const int64_t lse[3] = {shape[ragged ? 1 : 0], shape[ragged ? 0 : 2], shape[1]};
	const struct fmla_dtype float32 = FMLA_FP32;
	in[OUT].tensor.device = in[LSE].tensor.device = q->device;
	result[0] = args[OUT] == Py_None ? make_result(st, args[Q], "out", q->dtype, 4 - ragged, out, &in[OUT])
	                                 : (Py_INCREF(args[OUT]), args[OUT]);
	if (!result[0])
		return -1;
	result[1] = args[LSE] == Py_None ? make_result(st, args[Q], "lse", float32, 3 - ragged, lse, &in[LSE])
	                                 : (Py_INCREF(args[LSE]), args[LSE]);
	return result[1] ? 0 : -1;
}

/* decode(q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, attn_sink, plan_parts, plan_splits, out, lse,
 *        softmax_scale, causal, window, max_seqlen_q, head_dim_v, flags) -> (out, lse) */
static PyObject *py_decode(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	struct state *st = PyModule_GetState(module);
	struct thread *th;
	struct import in[DECODE_TENSORS];
	if (expect_args("decode", nargs, DECODE_TENSORS + 6) || !(th = thread_get(st)) ||
	    import_all(st, DECODE, args, in, DECODE_TENSORS))
		return NULL;
	struct fmla_decode_args a = {.struct_size = sizeof(a)};
	PyObject *const *scalars = args + DECODE_TENSORS;
	PyObject *result[2] = {NULL, NULL};
	int32_t flags = 0;
	int failed = lengths_as_int32(st, args[LENS], "cache_seqlens", &in[LENS]) ||
	             lengths_as_int32(st, args[CU_Q], "cu_seqlens_q", &in[CU_Q]) ||
	             (scalars[0] != Py_None && read_double(scalars[0], "softmax_scale", &a.softmax_scale)) ||
	             read_int32(scalars[1], "causal", &a.causal) || read_int64(scalars[2], "window", &a.window) ||
	             read_int32(scalars[3], "max_seqlen_q", &a.max_seqlen_q) ||
	             read_int32(scalars[4], "head_dim_v", &a.head_dim_v) || read_int32(scalars[5], "flags", &flags) ||
	             decode_results(st, args, in, a.head_dim_v, result) ||
	             current_stream(st, args[Q], in[Q].tensor.device, &a.stream);
	if (!failed) {
		a.q = in[Q].ptr;
		a.kv_cache = in[KV].ptr;
		a.block_table = in[TABLE].ptr;
		a.cache_seqlens = in[LENS].ptr;
		a.cu_seqlens_q = in[CU_Q].ptr;
		a.attn_sink = in[SINK].ptr;
		a.plan_parts = in[PARTS].ptr;
		a.plan_splits = in[SPLITS].ptr;
		a.out = in[OUT].ptr;
		a.lse = in[LSE].ptr;
		a.flags = (uint32_t)flags;
		if (scalars[0] == Py_None)
			a.softmax_scale = 1.0 / sqrt((double)a.q->shape[a.q->ndim - 1]);
		failed = decode(st, th, args[Q], &a);
	}
	release_all(in, DECODE_TENSORS);
	PyObject *both = failed ? NULL : PyTuple_Pack(2, result[0], result[1]);
	Py_XDECREF(result[0]);
	Py_XDECREF(result[1]);
	return both;
}

/* Shapes of a decoding step whose q and kv_cache are not at hand: everything that planning looks at.  Tensors without
 * data; the block table is as wide as lengths can be. */
struct step {
	struct fmla_decode_args args;
	struct fmla_tensor q, kv, table, out;
	int64_t q_shape[4], kv_shape[4], table_shape[2], out_shape[4];
};

static struct fmla_tensor bare(struct fmla_device device, struct fmla_dtype dtype, int ndim, int64_t *shape)
{
	return (struct fmla_tensor){.device = device, .ndim = ndim, .dtype = dtype, .shape = shape};
}

/* Reads (s_q, h_q, h_kv, d_qk, bits of dtype code, window, flags) and lays the step out for b requests. */
static int step_init(struct step *s, struct fmla_device device, int64_t b, int64_t total_q, PyObject *const *scalars)
{
	int64_t s_q, h_q, h_kv, d_qk;
	int32_t code, flags;
	memset(s, 0, sizeof(*s));
	struct fmla_decode_args *a = &s->args;
	if (read_int64(scalars[0], "s_q", &s_q) || read_int64(scalars[1], "h_q", &h_q) ||
	    read_int64(scalars[2], "h_kv", &h_kv) || read_int64(scalars[3], "head_dim", &d_qk) ||
	    read_int32(scalars[4], "dtype", &code) || read_int64(scalars[5], "window", &a->window) ||
	    read_int32(scalars[6], "flags", &flags))
		return -1;
	const struct fmla_dtype type = {(uint8_t)code, 16, 1}, int32 = FMLA_INT32;
	const int64_t page = 64, max_pages = INT32_MAX / page, ragged = total_q >= 0;
	const int64_t q_shape[4] = {b, s_q, h_q, d_qk}, out_shape[4] = {b, s_q, h_q, 512};
	memcpy(s->q_shape, q_shape, sizeof(q_shape));
	memcpy(s->out_shape, out_shape, sizeof(out_shape));
	memcpy(s->kv_shape, (int64_t[4]){1, page, h_kv, d_qk}, sizeof(s->kv_shape));
	memcpy(s->table_shape, (int64_t[2]){b, max_pages}, sizeof(s->table_shape));
	if (ragged) {
		s->q_shape[1] = s->out_shape[1] = total_q;
		a->max_seqlen_q = (int32_t)s_q;
	}
	s->q = bare(device, type, ragged ? 3 : 4, s->q_shape + ragged);
	s->out = bare(device, type, ragged ? 3 : 4, s->out_shape + ragged);
	s->kv = bare(device, type, 4, s->kv_shape);
	s->table = bare(device, int32, 2, s->table_shape);
	a->struct_size = sizeof(*a);
	a->q = &s->q;
	a->kv_cache = &s->kv;
	a->block_table = &s->table;
	a->out = &s->out;
	a->softmax_scale = 1.0;
	a->flags = (uint32_t)flags;
	return 0;
}

/* plan_parts(device_type, device_id, s_q, h_q, h_kv, head_dim, dtype, window, flags) -> int */
static PyObject *py_plan_parts(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	struct thread *th;
	struct step s;
	struct fmla_device device;
	if (expect_args("plan_parts", nargs, 9) || !(th = thread_get(PyModule_GetState(module))) ||
	    read_int32(args[0], "device_type", &device.type) || read_int32(args[1], "device_id", &device.id) ||
	    step_init(&s, device, 1, -1, args + 2))
		return NULL;
	int64_t one = 1, parts;
	struct fmla_tensor lens = bare(device, (struct fmla_dtype)FMLA_INT32, 1, &one);
	s.args.cache_seqlens = &lens;
	const fmla_status status = fmla_plan_parts(th->ctx, &s.args, &parts);
	if (status != FMLA_OK) {
		raise_status(th->ctx, status);
		return NULL;
	}
	return PyLong_FromLongLong(parts);
}

/* plan(cache_seqlens, cu_seqlens_q, parts, splits, total_q, s_q, h_q, h_kv, head_dim, dtype, window, flags): writes
 * parts [P, 8] and splits [b + 1]. */
static PyObject *py_plan(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	static const struct tensor_arg PLAN[4] = {{"cache_seqlens", 0}, {"cu_seqlens_q", 0}, {"parts", 1}, {"splits", 1}};
	struct state *st = PyModule_GetState(module);
	struct thread *th;
	struct import in[4];
	struct step s;
	int64_t total_q;
	if (expect_args("plan", nargs, 12) || !(th = thread_get(st)) || read_int64(args[4], "total_q", &total_q) ||
	    import_all(st, PLAN, args, in, 4))
		return NULL;
	int failed =
	    lengths_as_int32(st, args[0], "cache_seqlens", &in[0]) || lengths_as_int32(st, args[1], "cu_seqlens_q", &in[1]);
	if (!failed && (!in[0].ptr || in[0].tensor.ndim != 1)) {
		PyErr_Format(PyExc_ValueError, "cache_seqlens must be a tensor of shape [b], it has %d dimensions",
		             in[0].ptr ? (int)in[0].tensor.ndim : 0);
		failed = -1;
	}
	failed = failed || step_init(&s, in[0].tensor.device, in[0].tensor.shape[0], total_q, args + 5) ||
	         current_stream(st, args[0], in[0].tensor.device, &s.args.stream);
	if (!failed) {
		s.args.cache_seqlens = in[0].ptr;
		s.args.cu_seqlens_q = in[1].ptr;
		s.args.plan_parts = in[2].ptr;
		s.args.plan_splits = in[3].ptr;
		fmla_status status;
		Py_BEGIN_ALLOW_THREADS status = fmla_plan(th->ctx, &s.args);
		Py_END_ALLOW_THREADS if (status != FMLA_OK) failed = raise_status(th->ctx, status);
	}
	release_all(in, 4);
	if (failed)
		return NULL;
	Py_RETURN_NONE;
}

/* merge(partial_out, partial_lse, attn_sink, out, lse, flags) */
static PyObject *py_merge(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	static const struct tensor_arg MERGE[5] = {
	    {"partial_out", 0}, {"partial_lse", 0}, {"attn_sink", 0}, {"out", 1}, {"lse", 1}};
	struct state *st = PyModule_GetState(module);
	struct thread *th;
	struct import in[5];
	int32_t flags;
	if (expect_args("merge", nargs, 6) || !(th = thread_get(st)) || read_int32(args[5], "flags", &flags) ||
	    import_all(st, MERGE, args, in, 5))
		return NULL;
	struct fmla_merge_args a = {.struct_size = sizeof(a),
	                            .partial_out = in[0].ptr,
	                            .partial_lse = in[1].ptr,
	                            .attn_sink = in[2].ptr,
	                            .out = in[3].ptr,
	                            .lse = in[4].ptr,
	                            .flags = (uint32_t)flags};
	int failed = in[0].ptr ? current_stream(st, args[0], in[0].tensor.device, &a.stream) : 0;
	if (!failed) {
		fmla_status status;
		Py_BEGIN_ALLOW_THREADS status = fmla_merge(th->ctx, &a);
		Py_END_ALLOW_THREADS if (status != FMLA_OK) failed = raise_status(th->ctx, status);
	}
	release_all(in, 5);
	if (failed)
		return NULL;
	Py_RETURN_NONE;
}

/* kv_append(kv_latent, k_rope, slot_mapping, kv_cache) */
static PyObject *py_kv_append(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	static const struct tensor_arg APPEND[4] = {{"kv_latent", 0}, {"k_rope", 0}, {"slot_mapping", 0}, {"kv_cache", 1}};
	struct state *st = PyModule_GetState(module);
	struct thread *th;
	struct import in[4];
	if (expect_args("kv_append", nargs, 4) || !(th = thread_get(st)) || import_all(st, APPEND, args, in, 4))
		return NULL;
	struct fmla_kv_append_args a = {.struct_size = sizeof(a),
	                                .kv_latent = in[0].ptr,
	                                .k_rope = in[1].ptr,
	                                .slot_mapping = in[2].ptr,
	                                .kv_cache = in[3].ptr};
	int failed = in[3].ptr ? current_stream(st, args[3], in[3].tensor.device, &a.stream) : 0;
	if (!failed) {
		fmla_status status;
		Py_BEGIN_ALLOW_THREADS status = fmla_kv_append(th->ctx, &a);
		Py_END_ALLOW_THREADS if (status != FMLA_OK) failed = raise_status(th->ctx, status);
	}
	release_all(in, 4);
	if (failed)
		return NULL;
	Py_RETURN_NONE;
}

/* backends() -> list of dict, in the order in which they are tried */
static PyObject *py_backends(PyObject *module, PyObject *unused)
{
	(void)unused;
	struct thread *th = thread_get(PyModule_GetState(module));
	PyObject *list = th ? PyList_New(0) : NULL;
	for (int i = 0; list; i++) {
		struct fmla_backend_info info = {.struct_size = sizeof(info)};
		if (fmla_backend_info(th->ctx, i, &info) != FMLA_OK)
			break;
		PyObject *entry = Py_BuildValue("{s:s,s:O,s:i,s:s,s:s,s:s,s:i}", "name", info.name, "available",
		                                info.available ? Py_True : Py_False, "device_type", (int)info.device_type,
		                                "device_name", info.device_name, "variant", info.variant, "reason", info.reason,
		                                "num_workers", (int)info.num_workers);
		if (!entry || PyList_Append(list, entry)) {
			Py_DECREF(list);
			list = NULL;
		}
		Py_XDECREF(entry);
	}
	return list;
}

/* ---- module -------------------------------------------------------------------------------------------------- */

#define FASTCALL(name, function)                                           \
	{                                                                      \
		name, (PyCFunction)(void (*)(void))(function), METH_FASTCALL, NULL \
	}
static PyMethodDef METHODS[] = {
    FASTCALL("decode", py_decode), FASTCALL("plan", py_plan),           FASTCALL("plan_parts", py_plan_parts),
    FASTCALL("merge", py_merge),   FASTCALL("kv_append", py_kv_append), {"backends", py_backends, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static int module_exec(PyObject *module)
{
	struct state *st = PyModule_GetState(module);
	static const char *const names[NAMES] = {
	    [NAME_SHAPE] = "shape",      [NAME_STRIDE] = "stride", [NAME_DTYPE] = "dtype",
	    [NAME_IS_CUDA] = "is_cuda",  [NAME_IS_CPU] = "is_cpu", [NAME_GET_DEVICE] = "get_device",
	    [NAME_DATA_PTR] = "data_ptr"};
	memset(st, 0, sizeof(*st));
	for (int i = 0; i < NAMES; i++)
		if (!(st->names[i] = PyUnicode_InternFromString(names[i])))
			return -1;
	st->thread_key = PyUnicode_FromFormat("flash_mla.thread.%p", (void *)st);
	return !st->thread_key || PyModule_AddStringConstant(module, "version", fmla_version_string()) ||
	               PyModule_AddIntConstant(module, "EMPTY_LSE_NEG_INF", FMLA_EMPTY_LSE_NEG_INF) ||
	               PyModule_AddIntConstant(module, "BATCH_INVARIANT", FMLA_BATCH_INVARIANT) ||
	               PyModule_AddIntConstant(module, "CHECK_PAGES", FMLA_CHECK_PAGES)
	           ? -1
	           : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct state *st = PyModule_GetState(module);
	if (st) {
		Py_VISIT(st->frameworks);
		Py_VISIT(st->torch.tensor_type);
		for (int i = 0; i < TYPE_CACHE; i++)
			Py_VISIT(st->types[i].type);
	}
	return 0;
}

static int module_clear(PyObject *module)
{
	struct state *st = PyModule_GetState(module);
	if (st) {
		Py_CLEAR(st->frameworks);
		Py_CLEAR(st->torch.tensor_type);
		Py_CLEAR(st->thread_key);
		for (int i = 0; i < NAMES; i++)
			Py_CLEAR(st->names[i]);
		for (int i = 0; i < TYPE_CACHE; i++)
			Py_CLEAR(st->types[i].type);
		for (int i = 0; i < DTYPE_CACHE; i++)
			Py_CLEAR(st->dtypes[i].object);
	}
	return 0;
}

static void module_free(void *module)
{
	module_clear(module);
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, (void *)module_exec}, {0, NULL}};
static struct PyModuleDef DEFINITION = {PyModuleDef_HEAD_INIT,
                                        .m_name = "flash_mla._C",
                                        .m_doc = "The C library behind flash_mla; use flash_mla.decode and friends.",
                                        .m_size = sizeof(struct state),
                                        .m_methods = METHODS,
                                        .m_slots = SLOTS,
                                        .m_traverse = module_traverse,
                                        .m_clear = module_clear,
                                        .m_free = module_free};

PyMODINIT_FUNC PyInit__C(void);
PyMODINIT_FUNC PyInit__C(void)
{
	return PyModuleDef_Init(&DEFINITION);
}
