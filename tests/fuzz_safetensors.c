/* SPDX-License-Identifier: MIT
 *
 * Fuzz target: the header of a .safetensors file.  Whatever the bytes are, parsing ends, allocates its one fixed table
 * at most, and what it accepts obeys every rule that the reader relies on. */
#include "../cli/json.h"
#include "../cli/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)  \
	do {             \
		if (!(cond)) \
			abort(); \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* The first two bytes choose how much data the file claims to have behind its header. */
	struct safetensors st;
	if (size < 2)
		return 0;
	const uint64_t behind = (uint64_t)data[0] << 8 | data[1];
	data += 2;
	size -= 2;
	uint64_t header = 0;
	for (size_t i = 0; i < 8 && i < size; i++)
		header |= (uint64_t)data[i] << (8 * i);
	const uint64_t file_size = header <= ST_MAX_HEADER ? 8 + header + behind : size;
	const bool accepted = st_parse(&st, data, size < 8 + header ? size : (size_t)(8 + header), file_size);

	CHECK(accepted == (st.error[0] == 0));
	if (accepted) {
		uint64_t at = 0;
		for (int i = 0; i < st.count; i++) {
			const struct st_tensor *t = &st.tensors[i];
			uint64_t bytes = st_dtype_size(t->dtype);
			CHECK(bytes > 0 && t->ndim <= ST_MAX_DIMS && t->begin == at && t->end >= at);
			for (int d = 0; d < t->ndim; d++)
				bytes *= (uint64_t)t->shape[d];
			CHECK(t->end - t->begin == bytes);
			CHECK(st_find(&st, t->name) == t);
			at = t->end;
		}
		CHECK(at == file_size - st.data_start);
	}
	st_close(&st);
	return 0;
}
