/* SPDX-License-Identifier: MIT
 *
 * The inside of the CPU backend: one walk, five functions per variant.
 *
 * A walk is what every variant computes: up to ROW_TILE query rows that share one KV head of one request, against a
 * range of keys.  backend.c makes walks out of plan parts and finishes their rows; a variant only walks. */
#ifndef FMLA_CPU_H
#define FMLA_CPU_H

#include "backend.h"
#include "plan.h"

#include <stdint.h>

enum {
	ROW_TILE = 256,  /* rows of one walk: their fp32 O, 512 KiB, still fits the L2 of a server core      */
	MAX_CHUNKS = 16, /* pieces of a request in batch-invariant mode                                     */
	LINE = 64        /* bytes of a cache line                                                           */
};

struct walk {
	const struct problem *p;
	int64_t req, kv_head;
	int64_t begin, end; /* keys, begin < end; begin is a multiple of BLOCK                        */
	int64_t low, high;  /* keys that at least one row sees; nothing outside may reach a result    */
	int rows;           /* 1 .. ROW_TILE                                                          */
	const uint16_t *q[ROW_TILE];
	int32_t lo[ROW_TILE]; /* row r sees the keys lo[r] <= t < hi[r]                                 */
	int32_t hi[ROW_TILE];
	unsigned char *scratch; /* the variant's own, 256-byte aligned                                    */

	/* Results; the unnormalised O stays in the scratch, in the variant's own order.  l == 0: saw no key. */
	float m[ROW_TILE] __attribute__((aligned(LINE))); /* reference maximum of score * scale            */
	float l[ROW_TILE] __attribute__((aligned(LINE))); /* sum of exp(score * scale - m)                 */
};

struct cpu_kernel {
	const char *name;
	int most_rows; /* <= ROW_TILE: query rows that a walk may have */
	/* Bytes of scratch of one walk of this problem. */
	size_t (*scratch_size)(const struct problem *p);
	void (*walk)(struct walk *w);
	/* out[D_V] = factor * row r of O */
	void (*row)(const struct walk *w, int r, float factor, float *out);
	/* acc[i] = acc[i] * a + x[i] * b; with a == 0 acc is not used */
	void (*fold)(float *acc, float a, const float *x, float b, int64_t n);
	/* n values of fp32 to the type, rounded to nearest even, and back */
	void (*narrow)(enum value_type type, const float *in, void *out, int64_t n);
	void (*widen)(enum value_type type, const void *in, float *out, int64_t n);
};

extern const struct cpu_kernel cpu_kernel_c;
#if defined(__x86_64__)
extern const struct cpu_kernel cpu_kernel_avx2, cpu_kernel_avx512, cpu_kernel_amx;
int cpu_has_fp16_arithmetic(void); /* AVX512-FP16 */
#endif

/* The fastest variant that this machine can run and `cap` allows; *reason says why it is not a faster one ("" when it
 * is the fastest there is).  Asks the kernel for the use of AMX tiles. */
const struct cpu_kernel *cpu_choose(enum cpu_variant cap, const char **reason);

/* Address of key t of the walk. */
static inline const unsigned char *cpu_key(const struct walk *w, int64_t t)
{
	const struct problem *p = w->p;
	const int64_t page = p->block_table[w->req * p->table_stride + t / p->page];
	return (const unsigned char *)p->kv + 2 * (page * p->kv_page + t % p->page * p->kv_token + w->kv_head * p->kv_head);
}

/* The workspace.  The plan in use always lies here, so that combine reads what decode used. */
struct cpu_workspace {
	struct part *parts;     /* [num_parts]                                                         */
	int32_t *splits;        /* [b + 1]                                                             */
	float *m, *l;           /* [partial rows], see struct walk                                     */
	float *o;               /* [partial rows, D_V], not normalised                                 */
	unsigned char *workers; /* one struct worker each, with its kernel's scratch behind it         */
	size_t worker_size, size;
	int num_parts; /* 1 when workers share the batch by rows                              */
	int by_rows;
};

struct cpu_workspace cpu_layout(const struct fmla_ctx *ctx, const struct problem *p, const struct cpu_kernel *kernel);
struct plan_costs cpu_costs(const struct problem *p);
const struct cpu_kernel *cpu_kernel_of(const struct fmla_ctx *ctx);

/* combine.c */

/* A row's running merge: sum of exp(score - m) and of exp(score - m) * v.  l == 0: nothing yet. */
struct merging {
	float m, l, *o; /* o [D_V] */
};
void cpu_fold(const struct cpu_kernel *kernel, struct merging *to, float m, float l, const float *o);
/* Divides, applies the sink, writes out and lse of head h of query token s. */
void cpu_finish(const struct cpu_kernel *kernel, const struct problem *p, int64_t req, int64_t s, int64_t h, float m,
                float l, float *o);

fmla_status cpu_combine(struct fmla_ctx *ctx, const struct problem *p);
fmla_status cpu_merge(struct fmla_ctx *ctx, const struct merge_problem *p);
fmla_status cpu_kv_append(struct fmla_ctx *ctx, const struct append_problem *p);

#endif
