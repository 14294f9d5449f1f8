/* SPDX-License-Identifier: MIT
 *
 * trace.h - public traces of LLM serving, and the decode batches that a server would have formed from them.
 *
 * Two formats, told apart by their first character:
 *     Azure CSV       TIMESTAMP,ContextTokens,GeneratedTokens
 *                     2023-11-16 18:15:46.6805900,374,44
 *     Mooncake JSONL  {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}
 *                     timestamp in ms; hash_ids name the prompt's blocks of 512 tokens, each id standing for its block
 *                     and all blocks before it, so equal ids mean an equal prefix whose KV can be shared.
 *
 * The server: continuous batching, one token per running request and step.  A request joins at its arrival if fewer
 * than max_batch run, else waits in order of arrival; prefill happens elsewhere (both traces come from servers that
 * split the phases) and yields the first token; a request of n generated tokens decodes n - 1 steps and leaves. */
#ifndef CLI_TRACE_H
#define CLI_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TRACE_HASH_TOKENS = 512, TRACE_MAX_LENGTH = 1 << 24 };

struct trace_request {
	double arrival_ms;
	int32_t input, output; /* tokens of the prompt and of the answer     */
	int32_t num_hashes;    /* 0: the trace says nothing about its prefix */
	size_t first_hash;     /* index into trace.hashes                    */
};

struct trace {
	struct trace_request *requests; /* in order of arrival */
	size_t count, capacity;
	int64_t *hashes;
	size_t num_hashes, hash_capacity;
	char error[256]; /* the sentence of a failed call, with the line number */
};

bool trace_load(struct trace *t, const char *path);
bool trace_parse(struct trace *t, const char *text, size_t size); /* the same on a text in memory */
void trace_free(struct trace *t);                                 /* also after a failure         */

struct replay_slot {
	uint32_t request; /* index into trace.requests                          */
	int32_t length;   /* tokens in its cache, the one being decoded included */
};

struct replay {
	const struct trace *trace;
	int max_batch;
	double step_ms; /* time of a decode step; 0: arrival times are ignored and the server is always full */
	double now_ms;
	size_t next; /* first request that has not joined yet */
	int count;
	struct replay_slot *slots; /* the batch of this step, [count] */
};

bool replay_start(struct replay *r, const struct trace *t, int max_batch, double step_ms);
bool replay_step(struct replay *r); /* forms the next non-empty batch; false: the trace is over */
void replay_free(struct replay *r);

#endif
