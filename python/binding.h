/* SPDX-License-Identifier: MIT
 *
 * binding.h - what the files of flash_mla._C share.
 *
 * Written against the limited API of Python 3.9, so that one binary (abi3) serves every later version. */
#ifndef FMLA_BINDING_H
#define FMLA_BINDING_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x03090000
#endif
#include <Python.h>

#include "flash_mla.h"

enum {
	MAX_NDIM = 8,
	TYPE_CACHE = 8,  /* tensor types whose exchange table is remembered */
	DTYPE_CACHE = 8, /* torch.dtype objects already translated          */
	WORKSPACES = 8,  /* (device, stream) pairs remembered per thread    */
	WORKSPACE_ALIGN = 256
};

struct exchange_table;

/* What torch.c found in the process; empty_strided NULL: not all of it. */
struct torch_entries {
	PyObject *tensor_type; /* torch.Tensor, None without PyTorch, NULL before the first look */
	int32_t (*empty_strided)(int64_t ndim, const int64_t *shape, const int64_t *strides, int32_t dtype,
	                         int32_t device_type, int32_t device_id, void **handle);
	int32_t (*get_data_ptr)(void *handle, void **data);
	int32_t (*delete_tensor)(void *handle);
	PyObject *(*wrap)(const void *handle);
};

/* Attributes of tensors that are looked up by name in PyTorch before 2.10. */
enum { NAME_SHAPE, NAME_STRIDE, NAME_DTYPE, NAME_IS_CUDA, NAME_IS_CPU, NAME_GET_DEVICE, NAME_DATA_PTR, NAMES };

struct state {
	struct {
		PyObject *type;
		const struct exchange_table *table; /* NULL: this type has none */
	} types[TYPE_CACHE];
	struct {
		PyObject *object;
		struct fmla_dtype dtype;
	} dtypes[DTYPE_CACHE];
	struct torch_entries torch;
	struct {
		int looked;
		int (*is_capturing)(void *stream, int *status); /* cuStreamIsCapturing of the driver in this process, or NULL */
	} driver;
	PyObject *names[NAMES]; /* interned */
	PyObject *frameworks;   /* the module flash_mla._frameworks, imported at first need */
	PyObject *thread_key;   /* key of this module's entry in the dictionaries of threads */
};

/* Calls flash_mla._frameworks.<name>(args); format as in Py_BuildValue, always a tuple. */
PyObject *framework_call(struct state *st, const char *name, const char *format, ...);

/* ---- tensor.c: tensors in ------------------------------------------------------------------------------------ */

struct import {
	struct fmla_tensor tensor;
	struct fmla_tensor *ptr; /* &tensor, or NULL for None                                  */
	int64_t shape[MAX_NDIM], strides[MAX_NDIM];
	PyObject *keep; /* what must outlive the call, when it is not the argument itself */
};

/* An argument that is a tensor: its place in the call and its name in error messages. */
struct tensor_arg {
	const char *name;
	int writes;
};

/* Borrows `object` (None gives in->ptr NULL).  `writes`: the call writes through it. */
int import_tensor(struct state *st, PyObject *object, const char *name, int writes, struct import *in);

/* Borrows n arguments, or none and raises.  What was borrowed is given back by release_all. */
int import_all(struct state *st, const struct tensor_arg *which, PyObject *const *args, struct import *in, int n);
void release_all(struct import *in, int n);

/* int64 or strided lengths become contiguous int32, by a cast on their own device. */
int lengths_as_int32(struct state *st, PyObject *object, const char *name, struct import *in);

/* The stream on which the caller's framework works on `device` now; NULL on the CPU. */
int current_stream(struct state *st, PyObject *object, struct fmla_device device, void **stream);

/* ---- torch.c ------------------------------------------------------------------------------------------------- */

/* Makes the uninitialised tensor that `in` describes and sets its data.  NULL without an exception, or with one that
 * does not matter, when `like` is no torch.Tensor or PyTorch did not: the slow way is to be tried. */
PyObject *torch_empty(struct state *st, PyObject *like, struct import *in);

/* ---- thread.c: per thread (PyThreadState_GetDict), a library context and one workspace per (device, stream) --- */

struct workspace {
	struct fmla_device device;
	void *stream;
	PyObject *owner; /* the framework's allocation; NULL on the CPU, where `block` is ours */
	void *block;
	char *data; /* aligned to WORKSPACE_ALIGN */
	size_t size;
};

struct thread {
	fmla_ctx *ctx;
	struct workspace workspaces[WORKSPACES];
	int next; /* which one makes room for a new pair */
};

/* The calling thread's context and workspaces. */
struct thread *thread_get(struct state *st);

/* Raises for a failed call and returns -1. */
int raise_status(const fmla_ctx *ctx, fmla_status status);

/* 1 while `stream`, the current one, is captured into a CUDA graph, 0 if not, -1 and an exception. */
int is_capturing(struct state *st, PyObject *like, struct fmla_device device, void *stream);

/* The thread's workspace for this device and stream; empty when there was none. */
struct workspace *workspace_of(struct thread *th, struct fmla_device device, void *stream);
/* Gives it `size` bytes: malloc on the CPU, else the allocator of the framework that made `like`. */
int workspace_resize(struct state *st, PyObject *like, struct workspace *w, size_t size);
void workspace_free(struct workspace *w);

#endif
