/* SPDX-License-Identifier: MIT */
#include "json.h"

#include <string.h>

void json_open(struct json *j, const char *text, size_t size)
{
	*j = (struct json){.text = text, .at = text, .end = text + size};
}

bool json_fail(struct json *j, const char *error)
{
	if (!j->error)
		j->error = error;
	return false;
}

const char *json_error(const struct json *j)
{
	return j->error ? j->error : "";
}

size_t json_position(const struct json *j)
{
	return (size_t)(j->at - j->text);
}

/* The next character that is no white space, not consumed; 0 at the end or after an error. */
static char peek(struct json *j)
{
	if (j->error)
		return 0;
	while (j->at < j->end && (*j->at == ' ' || *j->at == '\t' || *j->at == '\n' || *j->at == '\r'))
		j->at++;
	return j->at < j->end ? *j->at : 0;
}

static bool take(struct json *j, char c, const char *error)
{
	if (peek(j) != c)
		return json_fail(j, error);
	j->at++;
	return true;
}

bool json_begin(struct json *j, char open)
{
	if (!take(j, open, open == '{' ? "an object is expected" : "an array is expected"))
		return false;
	j->fresh = true;
	return true;
}

bool json_more(struct json *j, char close)
{
	const bool fresh = j->fresh;
	j->fresh = false;
	if (peek(j) == close) {
		j->at++;
		return false;
	}
	if (!fresh && !take(j, ',', "a comma or the closing bracket is expected"))
		return false;
	if (peek(j) == 0)
		return json_fail(j, "the text ends too early");
	return true;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* The four hex digits behind "\u". */
static bool unicode_unit(struct json *j, uint32_t *unit)
{
	if (j->end - j->at < 4)
		return json_fail(j, "the text ends inside a string");
	*unit = 0;
	for (int i = 0; i < 4; i++) {
		const int digit = hex_digit(*j->at++);
		if (digit < 0)
			return json_fail(j, "\\u needs four hex digits");
		*unit = *unit * 16 + (uint32_t)digit;
	}
	return true;
}

/* A code point behind "\u", surrogate pairs joined, as 1 to 4 bytes of UTF-8. */
static bool unicode_escape(struct json *j, char utf8[4], size_t *n)
{
	uint32_t c, low;
	if (!unicode_unit(j, &c))
		return false;
	if (c >= 0xdc00 && c < 0xe000)
		return json_fail(j, "a surrogate pair is incomplete");
	if (c >= 0xd800 && c < 0xdc00) {
		if (j->end - j->at < 6 || j->at[0] != '\\' || j->at[1] != 'u')
			return json_fail(j, "a surrogate pair is incomplete");
		j->at += 2;
		if (!unicode_unit(j, &low))
			return false;
		if (low < 0xdc00 || low > 0xdfff)
			return json_fail(j, "a surrogate pair is incomplete");
		c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
	}
	if (c == 0)
		return json_fail(j, "a string holds a zero character");
	const int rest = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3; /* continuation bytes of 6 bits each */
	static const uint32_t lead[4] = {0x00, 0xc0, 0xe0, 0xf0};
	utf8[0] = (char)(lead[rest] | c >> (6 * rest));
	for (int i = 1; i <= rest; i++)
		utf8[i] = (char)(0x80 | (c >> (6 * (rest - i)) & 0x3f));
	*n = (size_t)rest + 1;
	return true;
}

/* Reads a string; buf NULL: checks it only. */
static bool read_string(struct json *j, char *buf, size_t size)
{
	size_t used = 0;
	if (!take(j, '"', "a string is expected"))
		return false;
	for (;;) {
		if (j->at == j->end)
			return json_fail(j, "the text ends inside a string");
		char piece[4] = {*j->at++};
		size_t n = 1;
		if (piece[0] == '"')
			break;
		if ((unsigned char)piece[0] < 0x20)
			return json_fail(j, "a control character in a string");
		if (piece[0] == '\\') {
			static const char escapes[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
			const char c = j->at < j->end ? *j->at++ : 0;
			const char *known = c ? strchr(escapes, c) : NULL;
			if (known)
				piece[0] = meaning[known - escapes];
			else if (c != 'u')
				return json_fail(j, "an unknown escape in a string");
			else if (!unicode_escape(j, piece, &n))
				return false;
		}
		if (!buf)
			continue;
		if (n >= size - used)
			return json_fail(j, "a string is too long");
		memcpy(buf + used, piece, n);
		used += n;
	}
	if (buf)
		buf[used] = 0;
	return true;
}

bool json_string(struct json *j, char *buf, size_t size)
{
	return read_string(j, buf, size);
}

bool json_key(struct json *j, char *buf, size_t size)
{
	return read_string(j, buf, size) && take(j, ':', "a colon is expected");
}

static bool is_digit(const struct json *j)
{
	return j->at < j->end && *j->at >= '0' && *j->at <= '9';
}

bool json_int64(struct json *j, int64_t *value)
{
	const bool negative = peek(j) == '-';
	int64_t v = 0;
	if (negative)
		j->at++;
	if (j->error || !is_digit(j))
		return json_fail(j, "an integer is expected");
	if (*j->at == '0' && j->end - j->at > 1 && j->at[1] >= '0' && j->at[1] <= '9')
		return json_fail(j, "a number starts with 0");
	while (is_digit(j)) {
		if (__builtin_mul_overflow(v, (int64_t)10, &v) || __builtin_sub_overflow(v, (int64_t)(*j->at - '0'), &v))
			return json_fail(j, "an integer does not fit into 64 bits"); /* v is kept negative: reaches INT64_MIN */
		j->at++;
	}
	if (j->at < j->end && (*j->at == '.' || *j->at == 'e' || *j->at == 'E'))
		return json_fail(j, "an integer is expected");
	if (!negative && v == INT64_MIN)
		return json_fail(j, "an integer does not fit into 64 bits");
	*value = negative ? v : -v;
	return true;
}

static bool skip_digits(struct json *j)
{
	if (!is_digit(j))
		return json_fail(j, "a number is malformed");
	while (is_digit(j))
		j->at++;
	return true;
}

static bool skip_number(struct json *j)
{
	if (*j->at == '-')
		j->at++;
	if (!skip_digits(j))
		return false;
	if (j->at < j->end && *j->at == '.') {
		j->at++;
		if (!skip_digits(j))
			return false;
	}
	if (j->at < j->end && (*j->at == 'e' || *j->at == 'E')) {
		j->at++;
		if (j->at < j->end && (*j->at == '+' || *j->at == '-'))
			j->at++;
		return skip_digits(j);
	}
	return true;
}

static bool skip_word(struct json *j, const char *word)
{
	const size_t n = strlen(word);
	if ((size_t)(j->end - j->at) < n || memcmp(j->at, word, n) != 0)
		return json_fail(j, "a value is expected");
	j->at += n;
	return true;
}

static bool skip_value(struct json *j, int depth)
{
	const char c = peek(j);
	if (c == '"')
		return read_string(j, NULL, 0);
	if (c == '-' || (c >= '0' && c <= '9'))
		return skip_number(j);
	if (c != '{' && c != '[')
		return skip_word(j, c == 't' ? "true" : c == 'f' ? "false" : "null");

	if (depth == JSON_MAX_DEPTH)
		return json_fail(j, "nested too deeply");
	const char close = c == '{' ? '}' : ']';
	json_begin(j, c);
	while (json_more(j, close)) {
		if (c == '{' && !(read_string(j, NULL, 0) && take(j, ':', "a colon is expected")))
			return false;
		if (!skip_value(j, depth + 1))
			return false;
	}
	return !j->error;
}

bool json_skip(struct json *j)
{
	return skip_value(j, 0);
}

bool json_end(struct json *j)
{
	if (peek(j) != 0 || (!j->error && j->at != j->end))
		return json_fail(j, "something follows the end");
	return !j->error;
}

void json_put_string(FILE *file, const char *text)
{
	fputc('"', file);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			fprintf(file, "\\%c", *text);
		else if ((unsigned char)*text < 0x20)
			fprintf(file, "\\u%04x", (unsigned)*text);
		else
			fputc(*text, file);
	}
	fputc('"', file);
}
