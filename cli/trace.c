/* SPDX-License-Identifier: MIT */
#include "trace.h"

#include "json.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 1 << 28, MAX_LINE_HASHES = TRACE_MAX_LENGTH / TRACE_HASH_TOKENS };

static bool fail(struct trace *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool fail(struct trace *t, const char *format, ...)
{
	va_list list;
	va_start(list, format);
	vsnprintf(t->error, sizeof(t->error), format, list);
	va_end(list);
	return false;
}

/* ---- storage: grows with the lines that were read, never with what a line claims ------------------------------- */

static bool grow(void **array, size_t *capacity, size_t needed, size_t item)
{
	if (needed <= *capacity)
		return true;
	const size_t wanted = needed < 512 ? 1024 : needed * 2;
	void *bigger = realloc(*array, wanted * item);
	if (!bigger)
		return false;
	*array = bigger;
	*capacity = wanted;
	return true;
}

static bool add_request(struct trace *t, struct trace_request request)
{
	void *array = t->requests;
	const bool ok = grow(&array, &t->capacity, t->count + 1, sizeof(request));
	t->requests = array;
	if (!ok)
		return fail(t, "out of memory");
	t->requests[t->count++] = request;
	return true;
}

static bool add_hash(struct trace *t, int64_t hash)
{
	void *array = t->hashes;
	const bool ok = grow(&array, &t->hash_capacity, t->num_hashes + 1, sizeof(hash));
	t->hashes = array;
	if (ok)
		t->hashes[t->num_hashes++] = hash;
	return ok;
}

/* ---- Azure CSV ------------------------------------------------------------------------------------------------- */

/* Reads 1 to max_digits digits; moves *at behind them. */
static bool csv_number(const char **at, const char *end, int max_digits, int64_t *value)
{
	const char *start = *at;
	*value = 0;
	while (*at < end && **at >= '0' && **at <= '9' && *at - start < max_digits)
		*value = *value * 10 + (*(*at)++ - '0');
	return *at > start;
}

static bool csv_char(const char **at, const char *end, char c)
{
	if (*at == end || **at != c)
		return false;
	(*at)++;
	return true;
}

/* Days since 1970-01-01 in the Gregorian calendar; a year starts in March here, so that the leap day is its last. */
static int64_t days_from_date(int64_t year, int64_t month, int64_t day)
{
	const int64_t y = month > 2 ? year : year - 1, m = (month + 9) % 12;
	return y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719468;
}

/* "2023-11-16 18:15:46.6805900", also with a time zone of +00:00 behind it, which both Azure traces share. */
static bool csv_time(const char **at, const char *end, double *ms)
{
	int64_t year, month, day, hour, minute, second, fraction = 0;
	if (!(csv_number(at, end, 4, &year) && csv_char(at, end, '-') && csv_number(at, end, 2, &month) &&
	      csv_char(at, end, '-') && csv_number(at, end, 2, &day) && csv_char(at, end, ' ') &&
	      csv_number(at, end, 2, &hour) && csv_char(at, end, ':') && csv_number(at, end, 2, &minute) &&
	      csv_char(at, end, ':') && csv_number(at, end, 2, &second)))
		return false;
	double unit = 1000;
	if (csv_char(at, end, '.')) {
		const char *start = *at;
		if (!csv_number(at, end, 9, &fraction))
			return false;
		for (; start < *at; start++)
			unit /= 10;
	}
	static const char utc[] = "+00:00";
	if ((size_t)(end - *at) >= strlen(utc) && memcmp(*at, utc, strlen(utc)) == 0)
		*at += strlen(utc);
	if (month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 60)
		return false;
	const int64_t seconds = ((days_from_date(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
	*ms = (double)seconds * 1000 + (double)fraction * unit;
	return true;
}

static bool csv_line(struct trace *t, const char *at, const char *end, size_t line)
{
	struct trace_request r = {0};
	int64_t input, output;
	if (!csv_time(&at, end, &r.arrival_ms) || !csv_char(&at, end, ','))
		return fail(t, "line %zu: a time such as 2023-11-16 18:15:46.68 is expected first", line);
	if (!csv_number(&at, end, 9, &input) || !csv_char(&at, end, ',') || !csv_number(&at, end, 9, &output) || at != end)
		return fail(t, "line %zu: two numbers, ContextTokens and GeneratedTokens, are expected behind the time", line);
	if (input > TRACE_MAX_LENGTH || output > TRACE_MAX_LENGTH)
		return fail(t, "line %zu: a request of more than %d tokens", line, TRACE_MAX_LENGTH);
	r.input = (int32_t)input;
	r.output = (int32_t)output;
	return add_request(t, r);
}

/* ---- Mooncake JSONL -------------------------------------------------------------------------------------------- */

static bool read_hashes(struct trace *t, struct json *j, struct trace_request *r)
{
	int64_t hash;
	r->first_hash = t->num_hashes;
	r->num_hashes = 0;
	json_begin(j, '[');
	while (json_more(j, ']')) {
		if (!json_int64(j, &hash))
			return false;
		if (r->num_hashes++ == MAX_LINE_HASHES)
			return json_fail(j, "too many hash_ids");
		if (!add_hash(t, hash))
			return json_fail(j, "out of memory");
	}
	return !json_error(j)[0];
}

static bool read_length(struct json *j, int32_t *length)
{
	int64_t value;
	if (!json_int64(j, &value))
		return false;
	if (value < 0 || value > TRACE_MAX_LENGTH)
		return json_fail(j, "a length is negative or beyond 2^24 tokens");
	*length = (int32_t)value;
	return true;
}

static bool jsonl_line(struct trace *t, const char *at, const char *end, size_t line)
{
	enum { TIME = 1, INPUT = 2, OUTPUT = 4, HASHES = 8 };
	struct trace_request r = {0};
	struct json j;
	unsigned seen = 0;
	json_open(&j, at, (size_t)(end - at));
	json_begin(&j, '{');
	while (json_more(&j, '}')) {
		char key[32];
		int64_t time;
		unsigned bit = 0;
		if (!json_key(&j, key, sizeof(key)))
			break;
		if (strcmp(key, "timestamp") == 0) {
			bit = TIME;
			if (json_int64(&j, &time))
				r.arrival_ms = (double)time;
		} else if (strcmp(key, "input_length") == 0) {
			bit = INPUT;
			read_length(&j, &r.input);
		} else if (strcmp(key, "output_length") == 0) {
			bit = OUTPUT;
			read_length(&j, &r.output);
		} else if (strcmp(key, "hash_ids") == 0) {
			bit = HASHES;
			read_hashes(t, &j, &r);
		} else {
			json_skip(&j);
		}
		if (seen & bit)
			json_fail(&j, "a key appears twice");
		seen |= bit;
	}
	if (!json_end(&j))
		return fail(t, "line %zu, byte %zu: %s", line, json_position(&j), json_error(&j));
	if ((seen & (TIME | INPUT | OUTPUT)) != (TIME | INPUT | OUTPUT))
		return fail(t, "line %zu: timestamp, input_length or output_length is missing", line);
	if (r.num_hashes > (r.input + TRACE_HASH_TOKENS - 1) / TRACE_HASH_TOKENS)
		return fail(t, "line %zu: %d hash_ids for %d tokens, one per %d is the most", line, r.num_hashes, r.input,
		            TRACE_HASH_TOKENS);
	return add_request(t, r);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static int by_arrival(const void *a, const void *b)
{
	const struct trace_request *x = a, *y = b;
	return x->arrival_ms < y->arrival_ms ? -1 : x->arrival_ms > y->arrival_ms;
}

bool trace_parse(struct trace *t, const char *text, size_t size)
{
	static const char csv_header[] = "TIMESTAMP,ContextTokens,GeneratedTokens";
	const char *at = text, *const end = text + size;
	memset(t, 0, sizeof(*t));
	const bool jsonl = size > 0 && text[0] == '{';
	bool sorted = true;
	for (size_t line = 1; at < end; line++) {
		const char *eol = memchr(at, '\n', (size_t)(end - at));
		const char *next = eol ? eol + 1 : end, *stop = eol ? eol : end;
		while (stop > at && (stop[-1] == '\r' || stop[-1] == ' '))
			stop--;
		const size_t n = (size_t)(stop - at);
		if (line == 1 && !jsonl) {
			if (n != strlen(csv_header) || memcmp(at, csv_header, n) != 0)
				return fail(t, "line 1 is neither a JSON object (Mooncake) nor \"%s\" (Azure)", csv_header);
		} else if (n > 0) {
			if (!(jsonl ? jsonl_line(t, at, stop, line) : csv_line(t, at, stop, line)))
				return false;
			sorted = sorted &&
			         (t->count < 2 || t->requests[t->count - 2].arrival_ms <= t->requests[t->count - 1].arrival_ms);
		}
		at = next;
	}
	if (t->count == 0)
		return fail(t, "the trace has no requests");
	if (t->count > UINT32_MAX)
		return fail(t, "the trace has too many requests");
	if (!sorted)
		qsort(t->requests, t->count, sizeof(*t->requests), by_arrival);
	return true;
}

bool trace_load(struct trace *t, const char *path)
{
	memset(t, 0, sizeof(*t));
	FILE *file = fopen(path, "rb");
	if (!file)
		return fail(t, "%s", strerror(errno));
	off_t size;
	char *text = NULL;
	bool ok = fseeko(file, 0, SEEK_END) == 0 && (size = ftello(file)) >= 0 && fseeko(file, 0, SEEK_SET) == 0;
	if (!ok)
		fail(t, "not a file that can be read from any place");
	else if (size > MAX_FILE)
		ok = fail(t, "larger than %d MiB", MAX_FILE >> 20);
	else if (!(text = malloc((size_t)size + 1)))
		ok = fail(t, "out of memory");
	else if (fread(text, 1, (size_t)size, file) != (size_t)size)
		ok = fail(t, "reading failed");
	else
		ok = trace_parse(t, text, (size_t)size);
	free(text);
	fclose(file);
	return ok;
}

void trace_free(struct trace *t)
{
	free(t->requests);
	free(t->hashes);
	t->requests = NULL;
	t->hashes = NULL;
	t->count = t->num_hashes = 0;
}

/* ---- replay ---------------------------------------------------------------------------------------------------- */

bool replay_start(struct replay *r, const struct trace *t, int max_batch, double step_ms)
{
	*r = (struct replay){.trace = t, .max_batch = max_batch, .step_ms = step_ms, .now_ms = t->requests[0].arrival_ms};
	r->slots = malloc((size_t)max_batch * sizeof(*r->slots));
	return r->slots != NULL;
}

void replay_free(struct replay *r)
{
	free(r->slots);
	r->slots = NULL;
}

/* Everybody's cache grows by one token; who has produced all of its answer leaves. */
static void finish_step(struct replay *r)
{
	int kept = 0;
	for (int i = 0; i < r->count; i++) {
		const struct trace_request *q = &r->trace->requests[r->slots[i].request];
		if (++r->slots[i].length < q->input + q->output)
			r->slots[kept++] = r->slots[i];
	}
	r->count = kept;
	r->now_ms += r->step_ms;
}

static void admit(struct replay *r)
{
	for (; r->count < r->max_batch && r->next < r->trace->count; r->next++) {
		const struct trace_request *q = &r->trace->requests[r->next];
		if (r->step_ms > 0 && q->arrival_ms > r->now_ms)
			return;
		if (q->output > 1)
			r->slots[r->count++] = (struct replay_slot){(uint32_t)r->next, q->input + 1};
	}
}

bool replay_step(struct replay *r)
{
	finish_step(r);
	admit(r);
	while (r->count == 0 && r->next < r->trace->count) { /* an idle server sleeps until the next request */
		r->now_ms = r->trace->requests[r->next].arrival_ms;
		admit(r);
	}
	return r->count > 0;
}
