/* SPDX-License-Identifier: MIT */
#include "safetensors.h"

#include "json.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static bool fail(struct safetensors *st, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool fail(struct safetensors *st, const char *format, ...)
{
	va_list list;
	va_start(list, format);
	vsnprintf(st->error, sizeof(st->error), format, list);
	va_end(list);
	return false;
}

size_t st_dtype_size(const char *dtype)
{
	static const struct {
		const char *name;
		size_t size;
	} dtypes[] = {{"BF16", 2}, {"F16", 2}, {"F32", 4},     {"F64", 8},     {"I64", 8},
	              {"I32", 4},  {"I16", 2}, {"I8", 1},      {"U64", 8},     {"U32", 4},
	              {"U16", 2},  {"U8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"BOOL", 1}};
	for (size_t i = 0; i < sizeof(dtypes) / sizeof(*dtypes); i++)
		if (strcmp(dtypes[i].name, dtype) == 0)
			return dtypes[i].size;
	return 0;
}

/* ---- reading ------------------------------------------------------------------------------------------------- */

static bool read_shape(struct json *j, struct st_tensor *t)
{
	t->ndim = 0;
	json_begin(j, '[');
	while (json_more(j, ']')) {
		if (t->ndim == ST_MAX_DIMS)
			return json_fail(j, "a shape has too many dimensions");
		if (!json_int64(j, &t->shape[t->ndim]))
			return false;
		if (t->shape[t->ndim++] < 0)
			return json_fail(j, "a shape is negative");
	}
	return !j->error;
}

static bool read_offsets(struct json *j, struct st_tensor *t)
{
	int64_t v[2];
	int n = 0;
	json_begin(j, '[');
	while (json_more(j, ']')) {
		if (n == 2)
			return json_fail(j, "data_offsets has more than two values");
		if (!json_int64(j, &v[n]))
			return false;
		if (v[n++] < 0)
			return json_fail(j, "data_offsets is negative");
	}
	if (j->error || n != 2)
		return json_fail(j, "data_offsets needs two values");
	t->begin = (uint64_t)v[0];
	t->end = (uint64_t)v[1];
	return true;
}

static bool read_tensor(struct json *j, struct st_tensor *t)
{
	enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
	unsigned seen = 0;
	json_begin(j, '{');
	while (json_more(j, '}')) {
		char key[16];
		unsigned bit = 0;
		bool ok = json_key(j, key, sizeof(key));
		if (ok && strcmp(key, "dtype") == 0) {
			bit = DTYPE;
			ok = json_string(j, t->dtype, sizeof(t->dtype));
		} else if (ok && strcmp(key, "shape") == 0) {
			bit = SHAPE;
			ok = read_shape(j, t);
		} else if (ok && strcmp(key, "data_offsets") == 0) {
			bit = OFFSETS;
			ok = read_offsets(j, t);
		}
		if (!ok)
			return false;
		if (!bit)
			return json_fail(j, "a tensor has a key other than dtype, shape and data_offsets");
		if (seen & bit)
			return json_fail(j, "a tensor has the same key twice");
		seen |= bit;
	}
	if (!j->error && seen != (DTYPE | SHAPE | OFFSETS))
		return json_fail(j, "a tensor lacks dtype, shape or data_offsets");
	return !j->error;
}

static int by_begin(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;
	if (x->begin != y->begin)
		return x->begin < y->begin ? -1 : 1;
	return x->end < y->end ? -1 : x->end > y->end; /* an empty tensor comes first */
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

/* begin, end and shape of one tensor against each other and the data that is there. */
static bool check_size(struct safetensors *st, const struct st_tensor *t, uint64_t data_size)
{
	const size_t value = st_dtype_size(t->dtype);
	if (value == 0)
		return fail(st, "tensor %s: unknown dtype %s", t->name, t->dtype);
	uint64_t bytes = value;
	bool overflow = false;
	for (int i = 0; i < t->ndim; i++)
		overflow |= __builtin_mul_overflow(bytes, (uint64_t)t->shape[i], &bytes);
	for (int i = 0; i < t->ndim; i++)
		if (t->shape[i] == 0)
			overflow = false, bytes = 0;
	if (overflow)
		return fail(st, "tensor %s: its shape overflows", t->name);
	if (t->begin > t->end || t->end > data_size)
		return fail(st, "tensor %s: data_offsets [%llu, %llu] are outside of the %llu bytes of data", t->name,
		            (unsigned long long)t->begin, (unsigned long long)t->end, (unsigned long long)data_size);
	if (t->end - t->begin != bytes)
		return fail(st, "tensor %s: data_offsets span %llu bytes, its shape needs %llu", t->name,
		            (unsigned long long)(t->end - t->begin), (unsigned long long)bytes);
	return true;
}

static bool check_tiling(struct safetensors *st, uint64_t data_size)
{
	qsort(st->tensors, (size_t)st->count, sizeof(*st->tensors), by_name);
	for (int i = 1; i < st->count; i++)
		if (strcmp(st->tensors[i - 1].name, st->tensors[i].name) == 0)
			return fail(st, "tensor %s appears twice", st->tensors[i].name);
	qsort(st->tensors, (size_t)st->count, sizeof(*st->tensors), by_begin);
	uint64_t at = 0;
	for (int i = 0; i < st->count; i++) {
		if (st->tensors[i].begin != at)
			return fail(st, "tensor %s starts at byte %llu of the data, %s byte %llu", st->tensors[i].name,
			            (unsigned long long)st->tensors[i].begin,
			            st->tensors[i].begin < at ? "overlapping its neighbour, which ends at"
			                                      : "leaving a hole behind its neighbour, which ends at",
			            (unsigned long long)at);
		at = st->tensors[i].end;
	}
	if (at != data_size)
		return fail(st, "%llu bytes behind the last tensor belong to none", (unsigned long long)(data_size - at));
	return true;
}

static bool parse_header(struct safetensors *st, const char *text, size_t size, uint64_t data_size)
{
	struct json j;
	if (size == 0 || text[0] != '{')
		return fail(st, "the header does not start with '{': not a safetensors file");
	st->tensors = calloc(ST_MAX_TENSORS, sizeof(*st->tensors));
	if (!st->tensors)
		return fail(st, "out of memory");
	json_open(&j, text, size);
	json_begin(&j, '{');
	while (json_more(&j, '}')) {
		char name[ST_MAX_NAME];
		if (!json_key(&j, name, sizeof(name)))
			break;
		if (strcmp(name, "__metadata__") == 0) {
			if (!json_skip(&j))
				break;
			continue;
		}
		if (st->count == ST_MAX_TENSORS)
			return fail(st, "more than %d tensors", ST_MAX_TENSORS);
		struct st_tensor *t = &st->tensors[st->count++];
		memcpy(t->name, name, sizeof(name));
		if (!read_tensor(&j, t))
			break;
	}
	if (!json_end(&j))
		return fail(st, "the header is broken at byte %zu: %s", json_position(&j), json_error(&j));
	for (int i = 0; i < st->count; i++)
		if (!check_size(st, &st->tensors[i], data_size))
			return false;
	return check_tiling(st, data_size);
}

static bool header_size(struct safetensors *st, const unsigned char prefix[8], uint64_t file_size, size_t *size)
{
	uint64_t n = 0;
	for (int i = 7; i >= 0; i--)
		n = n << 8 | prefix[i];
	if (n > file_size - 8)
		return fail(st, "its header claims %llu bytes, the file has %llu: truncated, or not a safetensors file",
		            (unsigned long long)n, (unsigned long long)file_size);
	if (n > ST_MAX_HEADER)
		return fail(st, "its header has %llu bytes; at most %d are accepted", (unsigned long long)n, ST_MAX_HEADER);
	*size = (size_t)n;
	st->data_start = 8 + n;
	return true;
}

bool st_parse(struct safetensors *st, const void *bytes, size_t size, uint64_t file_size)
{
	size_t n = 0;
	memset(st, 0, sizeof(*st));
	if (size < 8 || file_size < size)
		return fail(st, "shorter than the 8 bytes that every safetensors file starts with");
	if (!header_size(st, bytes, file_size, &n))
		return false;
	if (size - 8 < n)
		return fail(st, "its header is not complete");
	return parse_header(st, (const char *)bytes + 8, n, file_size - st->data_start);
}

bool st_open(struct safetensors *st, const char *path)
{
	unsigned char prefix[8];
	size_t n = 0;
	memset(st, 0, sizeof(*st));
	st->file = fopen(path, "rb");
	if (!st->file)
		return fail(st, "%s", strerror(errno));
	off_t file_size;
	if (fseeko(st->file, 0, SEEK_END) != 0 || (file_size = ftello(st->file)) < 0 || fseeko(st->file, 0, SEEK_SET) != 0)
		return fail(st, "not a file that can be read from any place");
	if (fread(prefix, 1, sizeof(prefix), st->file) != sizeof(prefix))
		return fail(st, "shorter than the 8 bytes that every safetensors file starts with");
	if (!header_size(st, prefix, (uint64_t)file_size, &n))
		return false;
	char *text = malloc(n + 1);
	if (!text)
		return fail(st, "out of memory");
	const bool ok = fread(text, 1, n, st->file) == n ? parse_header(st, text, n, (uint64_t)file_size - st->data_start)
	                                                 : fail(st, "reading failed: %s", strerror(errno));
	free(text);
	return ok;
}

void st_close(struct safetensors *st)
{
	if (st->file)
		fclose(st->file);
	free(st->tensors);
	st->file = NULL;
	st->tensors = NULL;
	st->count = 0;
}

const struct st_tensor *st_find(const struct safetensors *st, const char *name)
{
	for (int i = 0; i < st->count; i++)
		if (strcmp(st->tensors[i].name, name) == 0)
			return &st->tensors[i];
	return NULL;
}

bool st_read(struct safetensors *st, const struct st_tensor *tensor, void *data)
{
	const size_t n = (size_t)(tensor->end - tensor->begin);
	if (fseeko(st->file, (off_t)(st->data_start + tensor->begin), SEEK_SET) != 0 || fread(data, 1, n, st->file) != n)
		return fail(st, "tensor %s: reading failed", tensor->name);
	return true;
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

static void write_header(FILE *file, const struct st_tensor *tensors, int count, const char *const *metadata)
{
	fputs("{\"__metadata__\":{", file);
	for (int i = 0; metadata[i]; i += 2) {
		fputs(i ? "," : "", file);
		json_put_string(file, metadata[i]);
		fputc(':', file);
		json_put_string(file, metadata[i + 1]);
	}
	fputc('}', file);
	for (int i = 0; i < count; i++) {
		const struct st_tensor *t = &tensors[i];
		fputc(',', file);
		json_put_string(file, t->name);
		fprintf(file, ":{\"dtype\":\"%s\",\"shape\":[", t->dtype);
		for (int d = 0; d < t->ndim; d++)
			fprintf(file, d ? ",%lld" : "%lld", (long long)t->shape[d]);
		fprintf(file, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->begin, (unsigned long long)t->end);
	}
	fputc('}', file);
}

bool st_write(const char *path, struct st_tensor *tensors, void *const *data, int count, const char *const *metadata,
              char *error, size_t error_size)
{
	char *part = malloc(strlen(path) + sizeof(".part")), *header = NULL;
	size_t header_size = 0;
	uint64_t at = 0;
	for (int i = 0; i < count; i++) {
		tensors[i].begin = at;
		at += st_dtype_size(tensors[i].dtype);
		for (int d = 0; d < tensors[i].ndim; d++)
			at = tensors[i].begin + (at - tensors[i].begin) * (uint64_t)tensors[i].shape[d];
		tensors[i].end = at;
	}
	FILE *text = open_memstream(&header, &header_size);
	if (!part || !text) {
		free(part);
		snprintf(error, error_size, "out of memory");
		return false;
	}
	write_header(text, tensors, count, metadata);
	fclose(text);
	strcat(strcpy(part, path), ".part");

	FILE *file = fopen(part, "wb");
	bool ok = file != NULL;
	if (ok) {
		const size_t padded = (header_size + 7) / 8 * 8; /* data starts at a multiple of 8 */
		for (int i = 0; i < 8; i++)
			fputc((int)((uint64_t)padded >> (8 * i) & 0xff), file);
		fprintf(file, "%-*s", (int)padded, header);
		for (int i = 0; i < count; i++)
			if (tensors[i].end > tensors[i].begin) /* the data of an empty tensor may be NULL */
				fwrite(data[i], 1, (size_t)(tensors[i].end - tensors[i].begin), file);
		ok = !ferror(file);
		ok = fclose(file) == 0 && ok;
		ok = ok && rename(part, path) == 0;
	}
	if (!ok) {
		snprintf(error, error_size, "%s: %s", path, strerror(errno));
		if (file)
			remove(part);
	}
	free(part);
	free(header);
	return ok;
}
