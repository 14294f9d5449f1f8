/* SPDX-License-Identifier: MIT */
#include "cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct test_case case_default = {
    .b = 1, .s_q = 1, .h_q = 16, .h_kv = 1, .s_k = 256, .page = 64, .causal = 1, .dqk = 576, .peak = 5, .seed = 1};

/* clang-format off */
const char *const case_table[] = {
	/* lengths around a block, alone and together */
	"s_k=0", "s_k=1", "s_k=63", "s_k=64", "s_k=65", "s_k=127", "s_k=128", "s_k=129", "s_k=1000",
	"b=16 varlen=1 s_k=500", "b=16 varlen=1 s_k=500 dtype=fp16", "b=16 varlen=1 s_k=500 wild=1",
	"b=3 s_k=0", "b=3 s_k=0 neg_inf=1", "b=0", "b=7 varlen=1 s_k=66 neg_inf=1",
	/* query tokens, causal or not; more query tokens than keys */
	"s_q=2 s_k=200", "s_q=3 s_k=200 dtype=fp16", "s_q=4 s_k=200 b=2", "s_q=5 s_k=200 wild=1",
	"s_q=2 s_k=200 causal=0", "s_q=5 s_k=129 causal=0 dtype=fp16", "s_q=5 s_k=3", "s_q=5 s_k=3 causal=0",
	"s_q=4 s_k=1 neg_inf=1", "s_q=5 b=9 varlen=1 s_k=70", "s_q=70 s_k=65 h_q=2", "s_q=17 s_k=300 h_q=5",
	/* heads */
	"h_q=1", "h_q=2 dtype=fp16", "h_q=3 s_k=65", "h_q=4", "h_q=7 s_q=2", "h_q=8", "h_q=9", "h_q=15", "h_q=17", "h_q=31",
	"h_q=32", "h_q=33", "h_q=48", "h_q=63", "h_q=64", "h_q=65 dtype=fp16", "h_q=96", "h_q=126", "h_q=127", "h_q=128",
	"h_q=129", "h_q=130 s_q=2", "h_q=128 s_q=2 b=2 s_k=300", "h_q=64 s_q=4 dtype=fp16",
	"h_kv=2", "h_kv=2 h_q=6 s_q=3", "h_kv=8", "h_kv=8 h_q=8 wild=1", "h_kv=8 h_q=128 dtype=fp16", "h_kv=16 b=3 varlen=1",
	/* pages */
	"page=1 s_k=100", "page=2 s_k=100", "page=3 s_k=200 b=2", "page=16 s_k=300", "page=32 s_k=300 dtype=fp16",
	"page=48 s_k=300", "page=63 s_k=300", "page=65 s_k=300", "page=100 b=5 varlen=1", "page=128 s_k=300",
	"page=256 s_k=1000 b=3 varlen=1", "page=256 s_k=300 wild=1", "page=1 b=4 varlen=1 wild=1", "page=7 wild=1 dtype=fp16",
	/* d_qk 512 */
	"dqk=512", "dqk=512 dtype=fp16 s_q=3", "dqk=512 b=5 varlen=1 wild=1 h_q=128",
	/* window */
	"window=1", "window=1 s_q=4", "window=63", "window=64 s_k=300", "window=65 s_q=3 s_k=300", "window=100 causal=0 s_q=3",
	"window=128 b=8 varlen=1 s_k=1000", "window=1000000", "window=70 page=16 s_q=2 s_k=500 dtype=fp16 wild=1",
	"window=5 s_q=9 s_k=6", "window=5 page=1 s_k=100", "window=3 s_q=4 s_k=2 causal=0",
	/* sink */
	"sink=1", "sink=1 s_k=1", "sink=1 s_k=0", "sink=1 s_q=5 s_k=3 dtype=fp16", "sink=1 b=6 varlen=1 window=90",
	/* ragged */
	"ragged=1 b=5 s_q=3", "ragged=1 b=9 s_q=6 varlen=1 s_k=130", "ragged=1 b=4 s_q=2 dtype=fp16 wild=1 h_q=33",
	"ragged=1 b=6 s_q=4 causal=0 window=50 sink=1", "ragged=1 b=3 s_q=5 h_kv=2 page=16 wild=1", "ragged=1 b=0",
	/* pairs of row tiles, also where a request has rows in one only */
	"ragged=1 b=24 s_q=3 h_q=40 varlen=1 s_k=300 wild=1", "b=24 h_q=65 s_k=300 window=90 varlen=1",
	"b=16 h_q=128 s_k=70 sink=1 dqk=512 dtype=fp16 varlen=1",
	/* peaked and extreme scores */
	"peak=20 s_k=1000", "peak=100 s_k=1000", "peak=500 s_k=300", "peak=100 s_k=700 dtype=fp16", "peak=100 h_q=128 b=2",
	"peak=500 s_q=3 h_q=64 varlen=1 b=5 dtype=fp16",
	/* zeros, denormals, large values among the keys */
	"odd=1 dtype=fp16 peak=100 s_k=700", "odd=1 dtype=fp16 peak=100 h_q=40 s_k=500 page=1",
	"odd=1 dtype=fp16 b=3 varlen=1 wild=1 peak=100", "odd=1 peak=100 s_k=300",
	/* enough keys for splits; batch-invariant */
	"s_k=3000", "s_k=3000 dtype=fp16 h_q=64", "s_k=5000 s_q=2 wild=1", "s_k=5000 invariant=1", "s_k=9000 invariant=1 s_q=2",
	"b=4 varlen=1 s_k=5000 invariant=1 ragged=1 s_q=3", "b=2 s_k=5000 window=4500 invariant=1",
	"b=33 varlen=1 s_k=300 h_q=8", "b=200 s_k=20 h_q=2 varlen=1", "b=2 s_k=4097 h_q=128 s_q=2 varlen=1",
	/* large */
	"b=3 s_q=2 h_q=128 s_k=4097 varlen=1 seed=7", "b=1 h_q=128 s_k=16384", "b=1 h_q=128 s_k=16384 dtype=fp16",
	"b=32 h_q=128 s_k=2048 varlen=1", "b=64 h_q=16 s_k=4096 varlen=1 dtype=fp16", "b=128 h_q=64 s_k=1024 varlen=1 s_q=2",
	"b=1 h_q=16 s_k=131072", "b=4 s_q=128 h_q=128 s_k=600", "b=1000 h_q=16 s_k=200 varlen=1", "b=16 h_q=128 s_k=8192 page=16 wild=1",
	"b=8 h_q=128 s_k=8192 invariant=1 varlen=1", "b=20 h_q=128 h_kv=2 s_k=3000 varlen=1", "b=30 h_q=64 s_k=5000 window=4096 s_q=3",
};
/* clang-format on */

enum { NUM_LARGE = 13 };
const size_t case_count = sizeof(case_table) / sizeof(case_table[0]);
const size_t case_quick_count = sizeof(case_table) / sizeof(case_table[0]) - NUM_LARGE;

/* Every key but dtype: where it is stored and what it may be. */
static const struct key {
	const char *name;
	size_t offset;
	int64_t min, max;
} keys[] = {
#define KEY(field, min, max)                                \
	{                                                       \
#field, offsetof(struct test_case, field), min, max \
	}
    KEY(b, 0, 1000000),   KEY(s_q, 1, 100000), KEY(h_q, 1, 100000),       KEY(h_kv, 1, 100000), KEY(s_k, 0, INT32_MAX),
    KEY(page, 1, 65536),  KEY(causal, 0, 1),   KEY(window, 0, INT64_MAX), KEY(sink, 0, 1),      KEY(ragged, 0, 1),
    KEY(dqk, 512, 576),   KEY(varlen, 0, 1),   KEY(wild, 0, 1),           KEY(peak, 0, 100000), KEY(neg_inf, 0, 1),
    KEY(invariant, 0, 1), KEY(odd, 0, 1),      KEY(seed, 0, INT64_MAX),
#undef KEY
};
enum { NUM_KEYS = sizeof(keys) / sizeof(keys[0]) };

static int64_t *field(struct test_case *c, const struct key *key)
{
	return (int64_t *)(void *)((char *)c + key->offset);
}

static bool set_key(struct test_case *c, const char *name, size_t length, const char *value)
{
	if (length == 5 && strncmp(name, "dtype", 5) == 0) {
		c->fp16 = strcmp(value, "fp16") == 0;
		return c->fp16 || strcmp(value, "bf16") == 0;
	}
	for (int i = 0; i < NUM_KEYS; i++) {
		if (strlen(keys[i].name) != length || strncmp(name, keys[i].name, length) != 0)
			continue;
		char *end;
		const long long v = strtoll(value, &end, 10);
		*field(c, &keys[i]) = v;
		return *value && !*end && v >= keys[i].min && v <= keys[i].max;
	}
	return false;
}

bool case_parse(const char *line, struct test_case *c, char *why, size_t why_size)
{
	*c = case_default;
	while (*(line += strspn(line, " \t\n"))) {
		char word[64];
		const size_t length = strcspn(line, " \t\n");
		const char *equals = memchr(line, '=', length);
		snprintf(word, sizeof(word), "%.*s", (int)length, line);
		if (length >= sizeof(word) || !equals || !set_key(c, line, (size_t)(equals - line), strchr(word, '=') + 1)) {
			snprintf(why, why_size, "'%s' is not a known key=value", word);
			return false;
		}
		line += length;
	}
	if (c->h_q % c->h_kv != 0 || (c->dqk != 576 && c->dqk != 512)) {
		snprintf(why, why_size, "h_q must be a multiple of h_kv, dqk 576 or 512");
		return false;
	}
	return true;
}

void case_format(const struct test_case *c, char line[CASE_LINE])
{
	int at = snprintf(line, CASE_LINE, "dtype=%s", c->fp16 ? "fp16" : "bf16");
	for (int i = 0; i < NUM_KEYS && at < CASE_LINE; i++) {
		struct test_case copy = *c;
		at +=
		    snprintf(line + at, (size_t)(CASE_LINE - at), " %s=%lld", keys[i].name, (long long)*field(&copy, &keys[i]));
	}
}

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

struct test_case case_random(uint64_t seed)
{
	uint64_t r = seed;
#define PICK(...) \
	((const int64_t[]){__VA_ARGS__}[next_random(&r) % (sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))])
	struct test_case c = {.b = PICK(1, 1, 2, 3, 7, 20),
	                      .s_q = PICK(1, 1, 1, 2, 3, 5),
	                      .h_kv = PICK(1, 1, 1, 2, 3),
	                      .s_k = PICK(1, 64, 65, 200, 400, 1500),
	                      .page = PICK(1, 5, 16, 64, 64, 64, 128, 250),
	                      .fp16 = PICK(0, 1),
	                      .causal = PICK(0, 1, 1),
	                      .window = PICK(0, 0, 0, 1, 50, 64, 300),
	                      .sink = PICK(0, 0, 1),
	                      .ragged = PICK(0, 0, 1),
	                      .dqk = PICK(576, 576, 512),
	                      .varlen = PICK(0, 1, 1),
	                      .wild = PICK(0, 1),
	                      .peak = PICK(1, 5, 20, 100),
	                      .neg_inf = PICK(0, 1),
	                      .invariant = PICK(0, 0, 0, 1),
	                      .seed = (int64_t)(seed & INT64_MAX)};
	c.h_q = c.h_kv * PICK(1, 2, 5, 8, 16, 17, 33);
#undef PICK
	return c;
}
