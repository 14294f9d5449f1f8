/* SPDX-License-Identifier: MIT
 *
 * thread.c - a thread's library context and its workspaces. */
#include "binding.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

void workspace_free(struct workspace *w)
{
	Py_XDECREF(w->owner);
	free(w->block);
	memset(w, 0, sizeof(*w));
}

/* Runs with the GIL when a thread's dictionary goes away. */
static void thread_free(PyObject *capsule)
{
	struct thread *th = PyCapsule_GetPointer(capsule, "flash_mla.thread");
	if (!th)
		return;
	for (int i = 0; i < WORKSPACES; i++)
		workspace_free(&th->workspaces[i]);
	fmla_ctx_destroy(th->ctx);
	free(th);
}

int raise_status(const fmla_ctx *ctx, fmla_status status)
{
	PyObject *kind = PyExc_RuntimeError;
	if (status == FMLA_ERR_ARGUMENT || status == FMLA_ERR_PAGE)
		kind = PyExc_ValueError;
	else if (status == FMLA_ERR_MEMORY)
		kind = PyExc_MemoryError;
	const char *sentence = fmla_last_error(ctx);
	PyErr_SetString(kind, sentence && *sentence ? sentence : fmla_status_string(status));
	return -1;
}

static struct thread *thread_new(struct state *st, PyObject *dict)
{
	struct thread *th = calloc(1, sizeof(*th));
	if (!th) {
		PyErr_NoMemory();
		return NULL;
	}
	const fmla_status status = fmla_ctx_create(&th->ctx, NULL);
	if (status != FMLA_OK) {
		raise_status(th->ctx, status);
		fmla_ctx_destroy(th->ctx);
		free(th);
		return NULL;
	}
	PyObject *capsule = PyCapsule_New(th, "flash_mla.thread", thread_free);
	if (!capsule) {
		fmla_ctx_destroy(th->ctx);
		free(th);
		return NULL;
	}
	const int failed = PyDict_SetItem(dict, st->thread_key, capsule);
	Py_DECREF(capsule);
	return failed ? NULL : th;
}

struct thread *thread_get(struct state *st)
{
	PyObject *dict = PyThreadState_GetDict(); /* borrowed */
	if (!dict) {
		PyErr_SetString(PyExc_RuntimeError, "this thread has no Python state");
		return NULL;
	}
	PyObject *capsule = PyDict_GetItemWithError(dict, st->thread_key); /* borrowed */
	if (capsule)
		return PyCapsule_GetPointer(capsule, "flash_mla.thread");
	return PyErr_Occurred() ? NULL : thread_new(st, dict);
}

int is_capturing(struct state *st, PyObject *like, struct fmla_device device, void *stream)
{
	if (device.type == FMLA_DEVICE_CPU || !stream) /* the default stream cannot be captured */
		return 0;
	if (!st->driver.looked) {
		void *const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
		if (driver)
			*(void **)(void *)&st->driver.is_capturing = dlsym(driver, "cuStreamIsCapturing");
		st->driver.looked = 1;
	}
	int status;
	if (st->driver.is_capturing && st->driver.is_capturing(stream, &status) == 0)
		return status != 0;
	PyObject *answer = framework_call(st, "is_capturing", "(O)", like);
	const int capturing = answer ? PyObject_IsTrue(answer) : -1;
	Py_XDECREF(answer);
	return capturing;
}

struct workspace *workspace_of(struct thread *th, struct fmla_device device, void *stream)
{
	for (int i = 0; i < WORKSPACES; i++) {
		struct workspace *w = &th->workspaces[i];
		if (w->data && w->device.type == device.type && w->device.id == device.id && w->stream == stream)
			return w;
	}
	struct workspace *w = &th->workspaces[th->next];
	th->next = (th->next + 1) % WORKSPACES;
	workspace_free(w);
	w->device = device;
	w->stream = stream;
	return w;
}

int workspace_resize(struct state *st, PyObject *like, struct workspace *w, size_t size)
{
	struct workspace n = {.device = w->device, .stream = w->stream, .size = size};
	if (n.device.type == FMLA_DEVICE_CPU) {
		n.block = malloc(size + WORKSPACE_ALIGN);
		if (!n.block) {
			PyErr_NoMemory();
			return -1;
		}
		n.data = n.block;
	} else {
		n.owner = framework_call(st, "workspace", "(On)", like, (Py_ssize_t)(size + WORKSPACE_ALIGN));
		struct import in;
		if (!n.owner || import_tensor(st, n.owner, "workspace", 1, &in)) {
			Py_XDECREF(n.owner);
			return -1;
		}
		Py_XDECREF(in.keep);
		n.data = (char *)in.tensor.data + in.tensor.byte_offset;
	}
	n.data += (WORKSPACE_ALIGN - (uintptr_t)n.data % WORKSPACE_ALIGN) % WORKSPACE_ALIGN;
	workspace_free(w);
	*w = n;
	return 0;
}
