/* SPDX-License-Identifier: MIT
 *
 * generic.cu - the portable kernel source as CUDA C++, and its launcher. */
#include "kernels_cuda.h"

#include "host.h"
#include "kernels.h"

extern "C" cudaError_t fmla_generic_launch(const struct pk_call *call, cudaStream_t stream)
{
	static const void *const kernels[PK_KERNELS] = {
	    (const void *)fmla_pk_plan,    (const void *)fmla_pk_decode_bf16, (const void *)fmla_pk_decode_fp16,
	    (const void *)fmla_pk_combine, (const void *)fmla_pk_merge,       (const void *)fmla_pk_append,
	    (const void *)fmla_pk_pages};
	struct pk_call c = *call;
	void *arguments[PK_MOST_BUFFERS + 1];
	if (c.groups == 0)
		return cudaSuccess;
	for (int i = 0; i < c.num_buffers; i++)
		arguments[i] = &c.buffer[i];
	arguments[c.num_buffers] = &c.shape;
	return cudaLaunchKernel(kernels[c.kernel], dim3((unsigned)c.groups), dim3(PK_ITEMS), arguments, 0, stream);
}
