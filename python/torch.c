/* SPDX-License-Identifier: MIT
 *
 * torch.c - results made by PyTorch without a Python call.
 *
 * torch.empty spends more time on its arguments than on the memory.  PyTorch >= 2.2 exports its allocation as plain C
 * for compiled models (aoti_torch_*); such a handle is an at::Tensor *, and THPVariable_Wrap gives it its Python
 * object.  All are looked up in the libraries that `import torch` has loaded, so nothing is linked against PyTorch;
 * where one is missing, `_frameworks.empty` makes the results.  DLPack's exchange table can allocate as well, but
 * Tensor.record_stream is silently without effect on such a tensor. */
#include "binding.h"

#include <dlfcn.h>

enum { TORCH_CPU = 0, TORCH_CUDA = 1 };                             /* c10::DeviceType                    */
enum { TORCH_FLOAT16 = 5, TORCH_FLOAT32 = 6, TORCH_BFLOAT16 = 15 }; /* c10::ScalarType, part of its C ABI */

/* ISO C has no cast from an object pointer to a function pointer; POSIX promises that the bits are the same. */
static int find(void *library, const char *name, void *function)
{
	*(void **)function = library ? dlsym(library, name) : NULL;
	return *(void **)function ? 0 : -1;
}

static void look_up(struct torch_entries *t)
{
	void *const cpu = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
	void *const python = dlopen("libtorch_python.so", RTLD_LAZY | RTLD_NOLOAD);
	/* The argument has been a value and a reference; a class with a destructor is passed by address either way. */
	if (find(cpu, "aoti_torch_empty_strided", &t->empty_strided) ||
	    find(cpu, "aoti_torch_get_data_ptr", &t->get_data_ptr) ||
	    find(cpu, "aoti_torch_delete_tensor_object", &t->delete_tensor) ||
	    (find(python, "_Z16THPVariable_WrapRKN2at10TensorBaseE", &t->wrap) &&
	     find(python, "_Z16THPVariable_WrapN2at10TensorBaseE", &t->wrap)))
		t->empty_strided = NULL;
	/* The handles stay open: PyTorch cannot be unloaded. */
}

static int scalar_type(struct fmla_dtype dtype)
{
	return dtype.code == 4 ? TORCH_BFLOAT16 : dtype.bits == 16 ? TORCH_FLOAT16 : TORCH_FLOAT32;
}

PyObject *torch_empty(struct state *st, PyObject *like, struct import *in)
{
	struct torch_entries *const t = &st->torch;
	struct fmla_tensor *const tensor = &in->tensor;
	if (!t->tensor_type) {
		t->tensor_type = framework_call(st, "tensor_type", "()");
		if (!t->tensor_type)
			return NULL;
		if (t->tensor_type != Py_None)
			look_up(t);
	}
	if (!t->empty_strided || (PyObject *)Py_TYPE(like) != t->tensor_type)
		return NULL;

	const int cuda = tensor->device.type == FMLA_DEVICE_CUDA;
	void *handle;
	if (t->empty_strided(tensor->ndim, tensor->shape, tensor->strides, scalar_type(tensor->dtype),
	                     cuda ? TORCH_CUDA : TORCH_CPU, cuda ? tensor->device.id : -1, &handle))
		return NULL; /* out of memory, say: torch.empty will find the words */
	PyObject *object = t->get_data_ptr(handle, &tensor->data) ? NULL : t->wrap(handle);
	t->delete_tensor(handle);
	return object;
}
