/* SPDX-License-Identifier: MIT
 *
 * The one table of decode cases, shared by the tests, `flashmla check` and the GPU checks.  A case is a line such as
 *
 *     b=3 s_q=2 h_q=128 h_kv=1 s_k=4097 page=64 dtype=bf16 causal=1 window=0 sink=0 ragged=0 dqk=576 varlen=1 seed=7
 *
 * which a failure prints and which re-runs it.  Keys left out have the defaults of case_default. */
#ifndef FMLA_TESTS_CASES_H
#define FMLA_TESTS_CASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct test_case {
	int64_t b, s_q, h_q, h_kv, s_k, page;
	int64_t fp16; /* dtype=fp16                                                                    */
	int64_t causal, window, sink;
	int64_t ragged;    /* cu_seqlens_q with 0 .. s_q query tokens a request                             */
	int64_t dqk;       /* 576 or 512                                                                    */
	int64_t varlen;    /* lengths 0, 1, 63, 64, 65, s_k and others up to s_k instead of s_k for all     */
	int64_t wild;      /* padded, permuted strides, byte offsets, shared pages, instead of dense tensors */
	int64_t peak;      /* standard deviation of the scores in tenths: 1 flat .. 500 one-hot             */
	int64_t odd;       /* zeros, denormals of fp16 and large values among the keys                      */
	int64_t neg_inf;   /* FMLA_EMPTY_LSE_NEG_INF                                                        */
	int64_t invariant; /* FMLA_BATCH_INVARIANT                                                          */
	int64_t seed;
};

extern const struct test_case case_default;

/* The table; every line parses.  The last ones are large: a GPU or `flashmla check --full` runs them as well. */
extern const char *const case_table[];
extern const size_t case_count, case_quick_count;

/* Reads a line.  On an unknown key or a bad value: false, and `why` says which. */
bool case_parse(const char *line, struct test_case *c, char *why, size_t why_size);

enum { CASE_LINE = 320 };
void case_format(const struct test_case *c, char line[CASE_LINE]);

/* A random case of bounded cost, for sweeps. */
struct test_case case_random(uint64_t seed);

#endif
