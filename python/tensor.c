/* SPDX-License-Identifier: MIT
 *
 * tensor.c - how a tensor comes in, fastest first:
 *   exchange   type(t).__dlpack_c_exchange_api__, a C table (DLPack 1.3, PyTorch >= 2.10): no Python object is made
 *   attributes t.data_ptr(), t.shape, t.stride(), t.dtype, t.device: older PyTorch
 *   array      t.__array_interface__: NumPy, bfloat16 of ml_dtypes included
 *   capsule    t.__dlpack__(): CuPy, JAX and whatever else speaks DLPack */
#include "binding.h"

#include <stdarg.h>
#include <string.h>

/* ---- DLPack: the parts of its ABI that are read here --------------------------------------------------------- */

/* The exchange table of DLPack 1.3.  Function pointers that are not called are typed as plain functions. */
struct exchange_table {
	uint32_t major, minor;
	const struct exchange_table *older;
	void (*allocate)(void);
	void (*managed_from_object)(void);
	void (*object_from_managed)(void);
	int (*tensor_from_object)(void *object, struct fmla_tensor *tensor); /* borrows; may be NULL */
	int (*current_stream)(int32_t device_type, int32_t device_id, void **stream);
};

struct managed_tensor { /* DLManagedTensor, what a capsule named "dltensor" holds */
	struct fmla_tensor tensor;
	void *manager;
	void (*deleter)(struct managed_tensor *self);
};

PyObject *framework_call(struct state *st, const char *name, const char *format, ...)
{
	if (!st->frameworks) {
		st->frameworks = PyImport_ImportModule("flash_mla._frameworks");
		if (!st->frameworks)
			return NULL;
	}
	va_list va;
	va_start(va, format);
	PyObject *args = Py_VaBuildValue(format, va);
	va_end(va);
	if (!args)
		return NULL;
	PyObject *function = PyObject_GetAttrString(st->frameworks, name);
	PyObject *result = function ? PyObject_CallObject(function, args) : NULL;
	Py_XDECREF(function);
	Py_DECREF(args);
	return result;
}

static const struct exchange_table *exchange_of(struct state *st, PyObject *object)
{
	PyObject *type = (PyObject *)Py_TYPE(object);
	int i = 0;
	for (; i < TYPE_CACHE && st->types[i].type; i++)
		if (st->types[i].type == type)
			return st->types[i].table;

	const struct exchange_table *table = NULL;
	PyObject *capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
	if (capsule && PyCapsule_IsValid(capsule, "dlpack_exchange_api"))
		table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
	Py_XDECREF(capsule); /* the table lives as long as its framework */
	PyErr_Clear();
	while (table && table->major > 1)
		table = table->older;
	if (table && !table->tensor_from_object)
		table = NULL;
	if (i < TYPE_CACHE) {
		Py_INCREF(type);
		st->types[i].type = type;
		st->types[i].table = table;
	}
	return table;
}

/* Reads a sequence of integers into v; returns their number or -1. */
static int read_int64s(PyObject *sequence, int64_t *v, const char *name)
{
	PyObject *tuple = NULL;
	if (sequence && PyTuple_Check(sequence)) /* torch.Size as well */
		tuple = (Py_INCREF(sequence), sequence);
	else if (sequence)
		tuple = PySequence_Tuple(sequence);
	if (!tuple)
		return -1;
	const Py_ssize_t n = PyTuple_Size(tuple);
	int result = (int)n;
	if (n > MAX_NDIM) {
		PyErr_Format(PyExc_ValueError, "%s has %zd dimensions; at most %d are possible", name, n, (int)MAX_NDIM);
		result = -1;
	}
	for (Py_ssize_t i = 0; i < n && result >= 0; i++) {
		v[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
		if (v[i] == -1 && PyErr_Occurred())
			result = -1;
	}
	Py_DECREF(tuple);
	return result;
}

/* Translates "float16", "int32", ...; 0 when the name is known. */
static int dtype_of_name(const char *text, struct fmla_dtype *dtype)
{
	static const struct {
		const char *name;
		struct fmla_dtype dtype;
	} known[] = {{"bfloat16", {4, 16, 1}}, {"float16", {2, 16, 1}}, {"float32", {2, 32, 1}},
	             {"float64", {2, 64, 1}},  {"int32", {0, 32, 1}},   {"int64", {0, 64, 1}},
	             {"int8", {0, 8, 1}},      {"uint8", {1, 8, 1}},    {"float8_e4m3fn", {10, 8, 1}}};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(text, known[i].name) == 0) {
			*dtype = known[i].dtype;
			return 0;
		}
	return -1;
}

/* Translates a dtype object by its text, the part behind a dot: torch.bfloat16, bfloat16. */
static int read_dtype(struct state *st, PyObject *object, struct fmla_dtype *dtype, const char *name)
{
	int i = 0;
	for (; i < DTYPE_CACHE && st->dtypes[i].object; i++)
		if (st->dtypes[i].object == object) {
			*dtype = st->dtypes[i].dtype;
			return 0;
		}
	PyObject *text = PyObject_Str(object);
	PyObject *bytes = text ? PyUnicode_AsUTF8String(text) : NULL;
	Py_XDECREF(text);
	if (!bytes)
		return -1;
	const char *full = PyBytes_AsString(bytes), *dot = full ? strrchr(full, '.') : NULL;
	int result = full ? dtype_of_name(dot ? dot + 1 : full, dtype) : -1;
	if (result && !PyErr_Occurred())
		PyErr_Format(PyExc_TypeError, "%s has dtype %s, which flash_mla does not take", name, full);
	Py_DECREF(bytes);
	if (!result && i < DTYPE_CACHE) {
		Py_INCREF(object);
		st->dtypes[i].object = object;
		st->dtypes[i].dtype = *dtype;
	}
	return result;
}

static int read_address(PyObject *number, void **data)
{
	if (!number)
		return -1;
	*data = PyLong_AsVoidPtr(number);
	Py_DECREF(number);
	return PyErr_Occurred() ? -1 : 0;
}

/* 1 or 0 of a boolean attribute, or -1. */
static int read_flag(PyObject *object, PyObject *attribute)
{
	PyObject *value = PyObject_GetAttr(object, attribute);
	const int flag = value ? PyObject_IsTrue(value) : -1;
	Py_XDECREF(value);
	return flag;
}

/* The device of a PyTorch tensor.  Its `device` would be a new object at each look. */
static int read_device(struct state *st, PyObject *object, struct fmla_device *device, const char *name)
{
	const int cuda = read_flag(object, st->names[NAME_IS_CUDA]);
	const int cpu = cuda ? 0 : read_flag(object, st->names[NAME_IS_CPU]);
	if (cuda < 0 || cpu < 0)
		return -1;
	if (cpu) {
		*device = (struct fmla_device){FMLA_DEVICE_CPU, 0};
		return 0;
	}
	if (cuda) {
		PyObject *id = PyObject_CallMethodObjArgs(object, st->names[NAME_GET_DEVICE], NULL);
		*device = (struct fmla_device){FMLA_DEVICE_CUDA, id ? (int32_t)PyLong_AsLong(id) : 0};
		Py_XDECREF(id);
		return PyErr_Occurred() ? -1 : 0;
	}
	PyObject *other = PyObject_GetAttrString(object, "device");
	if (other)
		PyErr_Format(PyExc_TypeError, "%s cannot be taken: it is on device '%S', not 'cpu' or 'cuda'", name, other);
	Py_XDECREF(other);
	return -1;
}

/* Says which argument an exporter refused, with the first line of its own reason. */
static int refused(const char *name)
{
	PyObject *type, *value, *traceback;
	PyErr_Fetch(&type, &value, &traceback);
	PyObject *text = value ? PyObject_Str(value) : NULL;
	PyObject *lines = text ? PyUnicode_Splitlines(text, 0) : NULL;
	if (lines && PyList_Size(lines) > 0)
		PyErr_Format(PyExc_TypeError, "%s cannot be taken: %U", name, PyList_GetItem(lines, 0));
	else
		PyErr_Format(PyExc_TypeError, "%s cannot be taken", name);
	Py_XDECREF(text);
	Py_XDECREF(lines);
	Py_XDECREF(type);
	Py_XDECREF(value);
	Py_XDECREF(traceback);
	return -1;
}

/* The attributes of a PyTorch tensor. */
static int import_attributes(struct state *st, PyObject *object, const char *name, struct import *in)
{
	struct fmla_tensor *t = &in->tensor;
	int result = -1;
	PyObject *shape = PyObject_GetAttr(object, st->names[NAME_SHAPE]);
	PyObject *strides = PyObject_CallMethodObjArgs(object, st->names[NAME_STRIDE], NULL);
	PyObject *dtype = PyObject_GetAttr(object, st->names[NAME_DTYPE]);
	if (shape && strides && dtype) {
		t->ndim = read_int64s(shape, in->shape, name);
		if (t->ndim >= 0 && read_int64s(strides, in->strides, name) == t->ndim &&
		    read_dtype(st, dtype, &t->dtype, name) == 0 && read_device(st, object, &t->device, name) == 0)
			result = read_address(PyObject_CallMethodObjArgs(object, st->names[NAME_DATA_PTR], NULL), &t->data);
	}
	t->shape = in->shape;
	t->strides = in->strides;
	Py_XDECREF(shape);
	Py_XDECREF(strides);
	Py_XDECREF(dtype);
	return result && PyErr_ExceptionMatches(PyExc_RuntimeError) ? refused(name) : result; /* a sparse tensor, say */
}

/* NumPy's array interface, version 3: {"data": (address, read_only), "shape", "strides" in bytes or None}. */
static int import_array(struct state *st, PyObject *object, PyObject *interface, const char *name, struct import *in,
                        int writes)
{
	struct fmla_tensor *t = &in->tensor;
	PyObject *data = PyDict_GetItemString(interface, "data"); /* borrowed, as the next two */
	PyObject *shape = PyDict_GetItemString(interface, "shape"), *strides = PyDict_GetItemString(interface, "strides");
	PyObject *dtype = PyObject_GetAttrString(object, "dtype");
	const int dtype_known = dtype ? read_dtype(st, dtype, &t->dtype, name) : -1;
	Py_XDECREF(dtype);
	if (dtype_known)
		return -1;
	if (!data || !PyTuple_Check(data) || PyTuple_Size(data) != 2) {
		PyErr_Format(PyExc_TypeError, "%s has an __array_interface__ without a data address", name);
		return -1;
	}
	if (writes && PyObject_IsTrue(PyTuple_GetItem(data, 1))) {
		PyErr_Format(PyExc_ValueError, "%s is a read-only array, but it is written", name);
		return -1;
	}
	t->data = PyLong_AsVoidPtr(PyTuple_GetItem(data, 0));
	t->ndim = read_int64s(shape, in->shape, name);
	if (PyErr_Occurred())
		return -1;
	t->shape = in->shape;
	if (strides && strides != Py_None) {
		if (read_int64s(strides, in->strides, name) != t->ndim)
			return -1;
		const int64_t bytes = t->dtype.bits / 8;
		for (int i = 0; i < t->ndim; i++) {
			if (in->strides[i] % bytes != 0) {
				PyErr_Format(PyExc_ValueError, "%s has a stride of %lld bytes in dimension %d, not a multiple of %d",
				             name, (long long)in->strides[i], i, (int)bytes);
				return -1;
			}
			in->strides[i] /= bytes;
		}
		t->strides = in->strides;
	}
	return 0;
}

/* A DLPack capsule, taken without synchronisation: the work is queued on the producer's current stream. */
static int import_capsule(struct state *st, PyObject *object, const char *name, struct import *in)
{
	PyObject *capsule = framework_call(st, "dlpack_capsule", "(O)", object);
	if (!capsule)
		return refused(name);
	struct managed_tensor *managed = PyCapsule_GetPointer(capsule, "dltensor");
	if (!managed || managed->tensor.ndim > MAX_NDIM) {
		if (managed)
			PyErr_Format(PyExc_ValueError, "%s has %d dimensions; at most %d are possible", name, managed->tensor.ndim,
			             (int)MAX_NDIM);
		Py_DECREF(capsule);
		return -1;
	}
	in->tensor = managed->tensor;
	in->keep = capsule; /* never consumed: its destructor gives the export back */
	return 0;
}

int import_tensor(struct state *st, PyObject *object, const char *name, int writes, struct import *in)
{
	in->ptr = NULL;
	in->keep = NULL;
	if (object == Py_None)
		return 0;
	in->ptr = &in->tensor;
	const struct exchange_table *table = exchange_of(st, object);
	if (table)
		return table->tensor_from_object(object, &in->tensor) ? refused(name) : 0;

	memset(&in->tensor, 0, sizeof(in->tensor));
	in->tensor.device.type = FMLA_DEVICE_CPU;
	if (PyObject_HasAttr(object, st->names[NAME_DATA_PTR]) && PyObject_HasAttr(object, st->names[NAME_STRIDE]))
		return import_attributes(st, object, name, in);
	PyObject *interface = PyObject_GetAttrString(object, "__array_interface__");
	if (interface && PyDict_Check(interface)) {
		const int result = import_array(st, object, interface, name, in, writes);
		in->keep = interface;
		return result;
	}
	Py_XDECREF(interface);
	PyErr_Clear();
	if (PyObject_HasAttrString(object, "__dlpack__"))
		return import_capsule(st, object, name, in);
	PyObject *type = PyObject_GetAttrString((PyObject *)Py_TYPE(object), "__name__");
	if (type)
		PyErr_Format(PyExc_TypeError,
		             "%s must be a tensor (PyTorch, NumPy, or an object with __dlpack__), not an object of type %U",
		             name, type);
	Py_XDECREF(type);
	return -1;
}

void release_all(struct import *in, int n)
{
	for (int i = 0; i < n; i++)
		Py_XDECREF(in[i].keep);
}

int import_all(struct state *st, const struct tensor_arg *which, PyObject *const *args, struct import *in, int n)
{
	for (int i = 0; i < n; i++)
		if (import_tensor(st, args[i], which[i].name, which[i].writes, &in[i])) {
			release_all(in, i + 1);
			return -1;
		}
	return 0;
}

int lengths_as_int32(struct state *st, PyObject *object, const char *name, struct import *in)
{
	if (!in->ptr) /* None: the tensor was never filled in */
		return 0;
	const struct fmla_tensor *t = &in->tensor;
	const int int32 = t->dtype.code == 0 && t->dtype.bits == 32, int64 = t->dtype.code == 0 && t->dtype.bits == 64;
	const int dense = t->ndim != 1 || !t->strides || t->strides[0] == 1 || t->shape[0] <= 1;
	if ((int32 && dense) || !(int32 || int64))
		return 0;
	PyObject *cast = framework_call(st, "to_int32", "(O)", object);
	if (!cast)
		return -1;
	struct import fresh;
	if (import_tensor(st, cast, name, 0, &fresh)) {
		Py_DECREF(cast);
		return -1;
	}
	in->tensor = fresh.tensor;
	in->shape[0] = fresh.tensor.shape[0]; /* copied: they may go away with fresh.keep; the data stays with `cast` */
	in->strides[0] = 1;
	in->tensor.shape = in->shape;
	in->tensor.strides = in->strides;
	Py_XDECREF(fresh.keep);
	Py_XDECREF(in->keep);
	in->keep = cast;
	return 0;
}

int current_stream(struct state *st, PyObject *object, struct fmla_device device, void **stream)
{
	*stream = NULL;
	if (device.type == FMLA_DEVICE_CPU)
		return 0;
	const struct exchange_table *table = exchange_of(st, object);
	if (table)
		return table->current_stream(device.type, device.id, stream);
	return read_address(framework_call(st, "current_stream", "(Oi)", object, (int)device.id), stream);
}
