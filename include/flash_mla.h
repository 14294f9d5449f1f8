/* SPDX-License-Identifier: MIT
 *
 * flash_mla.h - multi-head latent attention (MLA) decoding over a paged KV cache.
 *
 * What it computes, for request i, query token s, query head h (DeepSeek-V2, arXiv 2405.04434, section 2.1,
 * in the "absorbed" form, where all query heads of a group share one latent vector per cached token):
 *
 *     score(t) = softmax_scale * dot(q[i,s,h,:], k[i,t,:])           k: d_qk values
 *     lse      = ln( sum_t exp(score(t)) )                           natural logarithm
 *     out      = sum_t exp(score(t) - lse) * k[i,t,:d_v]             V is the first d_v values of K
 *
 * over the visible tokens t of the request (see struct fmla_decode_args: length, causal, window).
 *
 * One vocabulary everywhere: check -> plan -> decode -> combine.  A call is checked, its work is planned into parts
 * (one part is the walk of one GPU block or one CPU thread), decoded into partial results, and combined.
 *
 * Rules that hold for every function
 *   - Every call returns a status; nothing prints, exits or aborts.  fmla_last_error() has the sentence.
 *   - A rejected call writes nothing.
 *   - The caller owns all memory.  fmla_plan, fmla_decode, fmla_merge and fmla_kv_append never allocate.
 *   - Threads: a context is cheap; use one per thread.  The library keeps no global mutable state.
 *   - GPU work is only enqueued on the caller's stream, without host synchronisation, so every call can be
 *     captured in a CUDA graph.  On the CPU a call returns when its results are complete.
 *   - Structs grow, signatures do not: set struct_size first; fields your version does not know are zero = default.
 *
 * Needs only this file: no CUDA, no C++.  Valid as C11, C17 and C++11.
 */
#ifndef FLASH_MLA_H
#define FLASH_MLA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define FMLA_API __attribute__((visibility("default")))
#else
#define FMLA_API
#endif

#define FMLA_VERSION_MAJOR 0
#define FMLA_VERSION_MINOR 1
#define FMLA_VERSION_PATCH 0

/* The library's version as major * 10000 + minor * 100 + patch, and as "major.minor.patch". */
FMLA_API int fmla_version(void);
FMLA_API const char *fmla_version_string(void);

/* ---- status -------------------------------------------------------------------------------------------------- */

typedef enum fmla_status {
	FMLA_OK = 0,
	FMLA_ERR_ARGUMENT = 1,    /* an argument breaks a documented rule                                   */
	FMLA_ERR_UNSUPPORTED = 2, /* a valid request that no available backend can serve                    */
	FMLA_ERR_WORKSPACE = 3,   /* workspace missing, misaligned or too small                             */
	FMLA_ERR_MEMORY = 4,      /* out of host memory (context creation only)                             */
	FMLA_ERR_DEVICE = 5,      /* the device or its driver reported an error                             */
	FMLA_ERR_PAGE = 6         /* FMLA_CHECK_PAGES found a page index out of range in a used table entry */
} fmla_status;

/* A constant sentence for a status; never NULL, also for unknown values. */
FMLA_API const char *fmla_status_string(fmla_status status);

/* ---- tensors ------------------------------------------------------------------------------------------------- */

/* The memory layout of DLPack's DLTensor (dlpack.h, ABI 0.6 and later): a `DLTensor *` may be cast to
 * `struct fmla_tensor *`.  Strides count elements; strides == NULL means dense row-major.  `data` points to device
 * memory when `device` is not the CPU; the struct itself, shape and strides always live on the host.
 * OpenCL: `data` is a cl_mem, as in DLPack, and byte_offset counts from its start; so is `workspace` of the calls below,
 * and `stream` is an in-order cl_command_queue on the tensors' device, never NULL. */
struct fmla_device {
	int32_t type; /* enum fmla_device_type, the values of DLDeviceType */
	int32_t id;   /* ordinal of the device                             */
};

struct fmla_dtype {
	uint8_t code;   /* DLDataTypeCode: 0 int, 2 float, 4 bfloat */
	uint8_t bits;   /* bits per value                           */
	uint16_t lanes; /* always 1                                 */
};

struct fmla_tensor {
	void *data;
	struct fmla_device device;
	int32_t ndim;
	struct fmla_dtype dtype;
	int64_t *shape;
	int64_t *strides;
	uint64_t byte_offset;
};

enum fmla_device_type { FMLA_DEVICE_CPU = 1, FMLA_DEVICE_CUDA = 2, FMLA_DEVICE_OPENCL = 4, FMLA_DEVICE_ROCM = 10 };

/* Initialisers for the dtypes that the library takes. */
#define FMLA_BF16 \
	{             \
		4, 16, 1  \
	}
#define FMLA_FP16 \
	{             \
		2, 16, 1  \
	}
#define FMLA_FP32 \
	{             \
		2, 32, 1  \
	}
#define FMLA_INT32 \
	{              \
		0, 32, 1   \
	}
#define FMLA_INT64 \
	{              \
		0, 64, 1   \
	}

#ifndef __cplusplus
/* A dense row-major CPU or CUDA tensor in one expression (C only; lives as long as the enclosing block):
 *     FMLA_TENSOR(ptr, FMLA_BF16, FMLA_DEVICE_CPU, b, s_q, h_q, 576)                                             */
#define FMLA_TENSOR(ptr, type, dev, ...)                                                          \
	(&(struct fmla_tensor){.data = (void *)(ptr),                                                 \
	                       .device = {(dev), 0},                                                  \
	                       .ndim = (int32_t)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
	                       .dtype = type,                                                         \
	                       .shape = (int64_t[]){__VA_ARGS__}})
#endif

/* ---- context ------------------------------------------------------------------------------------------------- */

typedef struct fmla_ctx fmla_ctx;

struct fmla_ctx_options {
	size_t struct_size;
	const char *
	    backend; /* "ref", "cpu", "cuda", "portable-cuda", "opencl", "hip"; NULL: the best one for the tensors' device */
	int32_t num_threads; /* threads of CPU backends; 0: OMP_NUM_THREADS, or one for each core of this process */
};

/* Creates a context.  options may be NULL.  Environment: FMLA_CPU=amx|avx512|avx2|c|ref caps the CPU variant; an
 * unknown value, or an unknown or unavailable backend name, is an error.  FMLA_PROGRAM_CACHE=off|DIR: where compiled
 * OpenCL programs are kept; default $XDG_CACHE_HOME/flash_mla or ~/.cache/flash_mla. On failure *ctx holds a context that only
 * carries the sentence for fmla_last_error() (or NULL without memory); destroy it as usual. */
FMLA_API fmla_status fmla_ctx_create(fmla_ctx **ctx, const struct fmla_ctx_options *options);
FMLA_API void fmla_ctx_destroy(fmla_ctx *ctx); /* NULL is allowed */

/* The sentence of the last failed call on this context: it names the argument, the value and the rule.  "" after
 * success. Valid until the next call on the context.  A NULL context gives a constant sentence. */
FMLA_API const char *fmla_last_error(const fmla_ctx *ctx);

struct fmla_backend_info {
	size_t struct_size;
	const char *name;        /* "cuda", "cpu", "ref", ...                                              */
	int32_t available;       /* 1 when it can run here                                                 */
	int32_t device_type;     /* enum fmla_device_type of the tensors that it takes                     */
	const char *device_name; /* "NVIDIA H200", "Intel(R) Xeon(R) ..."; "" when not available           */
	const char *variant;     /* kernel variant in use: "sm_90a", "amx", "avx512", "avx2", "c"          */
	const char *reason;      /* why not available, or why a faster variant is not used; "" otherwise   */
	int32_t num_workers;     /* SMs or threads                                                         */
};

/* Describes backend number `index` in the order in which they are tried. FMLA_ERR_ARGUMENT past the last one.
 * Strings live as long as the context. */
FMLA_API fmla_status fmla_backend_info(fmla_ctx *ctx, int index, struct fmla_backend_info *info);

/* ---- decode -------------------------------------------------------------------------------------------------- */

/* Flags of struct fmla_decode_args and struct fmla_merge_args. */
enum fmla_flags {
	FMLA_EMPTY_LSE_NEG_INF = 1, /* lse of an empty row is -inf, the identity for merging; default +inf             */
	FMLA_BATCH_INVARIANT = 2,   /* a request's result does not depend, bit for bit, on its batchmates              */
	FMLA_CHECK_PAGES = 4        /* debug: look for out-of-range page indices first (synchronises; not in a graph)  */
};

/* Dense paged decode.  All tensors live on one device.  b, s_q, h_q, h_kv, page, ... are read off the shapes.
 *
 * Lengths: cache_seqlens[i] counts all keys of request i, those of its own s_q query tokens included, already written.
 * Key t of request i is row t % page of page block_table[i, t / page].  A key is used when some query token of its
 * request sees it, a table entry or page when it holds a used key.  All others (past the length, before the window,
 * pages of nobody) may hold anything, NaN and wild indices included; they never reach a result.
 *
 * Negative lengths: an error where the host can see the lengths (CPU); treated as 0 on a GPU, as are lengths past
 * max_pages * page, which are cut there.
 *
 * Page indices out of [0, num_pages) in a used entry: an error on the CPU (FMLA_ERR_PAGE).  On a GPU
 * nothing outside of kv_cache is ever read: the page's keys count as absent and every output row of that request
 * becomes NaN, lse included; FMLA_CHECK_PAGES turns it into FMLA_ERR_PAGE with the entry's coordinates.
 *
 * Visible keys of query token s: t < L when causal == 0, t <= L - s_q + s when causal == 1, with L the request's
 * length; with window > 0 also t > L - s_q + s - window.  A row that sees no key is empty: out = 0, lse = +inf (see
 * flags).
 *
 * Heads: h_q % h_kv == 0; query head h reads KV head h / (h_q / h_kv). */
struct fmla_decode_args {
	size_t struct_size; /* sizeof(struct fmla_decode_args) */

	const struct fmla_tensor *q;           /* [b, s_q, h_q, d_qk] bf16|fp16; [total_q, h_q, d_qk] with cu_seqlens_q;
	                                          last stride 1, other strides free (fastest when multiples of 8)       */
	const struct fmla_tensor *kv_cache;    /* [num_pages, page, h_kv, d_qk] dtype of q; page >= 1; 16-byte aligned;
	                                          last stride 1, other strides multiples of 8: a pool may be padded or
	                                          interleaved with others                                               */
	const struct fmla_tensor *block_table; /* [b, max_pages] int32, last stride 1                                    */
	const struct fmla_tensor *cache_seqlens; /* [b] int32                                                             */
	const struct fmla_tensor
	    *cu_seqlens_q;                   /* [b + 1] int32, query token offsets, first 0, last total_q; NULL: uniform */
	const struct fmla_tensor *attn_sink; /* [h_q] fp32, one more logit per head in the denominator of out, not
	                                        counted in lse: out *= 1 / (1 + exp(sink - lse)); NULL: none           */
	struct fmla_tensor *out;             /* [b, s_q, h_q, d_v] (ragged [total_q, h_q, d_v]) dtype of q; last stride 1,
	                                        other strides free (fastest when multiples of 8)                      */
	struct fmla_tensor *lse;             /* [b, h_q, s_q] (ragged [h_q, total_q]) fp32, any strides; NULL: not wanted */

	double
	    softmax_scale; /* used as it is, after rounding to fp32; must be finite; 0 averages V over the visible keys */
	int32_t causal;    /* 0 or 1                                                                          */
	int32_t max_seqlen_q; /* with cu_seqlens_q: no request has more query tokens than this; 0: total_q        */
	int64_t window;       /* sliding window: keys seen per query token, itself included; 0: all              */
	uint32_t flags;       /* enum fmla_flags                                                                 */
	int32_t head_dim_v;   /* d_v; 0: 512.  (d_qk, d_v) is (576, 512) or (512, 512)                           */

	/* Plan of fmla_plan, both or neither.  A plan is an optimisation: with a stale, foreign, padded or missing plan the
	 * result is the same, only the balance may be worse. */
	const struct fmla_tensor *plan_parts;  /* [num_parts, 8] int32, see fmla_plan */
	const struct fmla_tensor *plan_splits; /* [b + 1] int32                       */

	/* Scratch memory on the tensors' device, 256-byte aligned, at least fmla_workspace_size() bytes.  Not to be shared
	 * by calls that may run at the same time.  Its content needs no initialisation. */
	void *workspace;
	size_t workspace_size;

	void *stream; /* cudaStream_t (NULL: the default stream); ignored on the CPU */
};

/* Bytes of workspace that fmla_decode needs for these shapes; depends on shapes, dtypes, flags and device only, never
 * on data, so `data` pointers may be NULL here. 0 is possible. */
FMLA_API fmla_status fmla_workspace_size(fmla_ctx *ctx, const struct fmla_decode_args *args, size_t *bytes);

/* Rows of plan_parts for these shapes (>= 1): one per worker that walks the batch.  Never depends on lengths or on b.
 */
FMLA_API fmla_status fmla_plan_parts(fmla_ctx *ctx, const struct fmla_decode_args *args, int64_t *num_parts);

/* Builds the schedule of one decoding step into args->plan_parts and args->plan_splits (written although
 * const-qualified in the struct), to be reused by all layers.  Reads only shapes, cache_seqlens and cu_seqlens_q. Row p
 * of plan_parts, in blocks of 64 tokens: { begin_req, end_req (inclusive), begin_block, end_block (exclusive, of
 * end_req), begin_split, first piece continues a split request, last piece does, tag } idle rows have begin_req =
 * INT32_MAX.  plan_splits is the exclusive prefix sum of the number of splits per request. */
FMLA_API fmla_status fmla_plan(fmla_ctx *ctx, const struct fmla_decode_args *args);

FMLA_API fmla_status fmla_decode(fmla_ctx *ctx, const struct fmla_decode_args *args);

/* ---- merge --------------------------------------------------------------------------------------------------- */

/* Merges n partial results over disjoint sets of keys (shared prefixes, context parallelism):
 *     m = max lse_j,  w_j = exp(lse_j - m),  out = sum w_j out_j / sum w_j,  lse = m + ln sum w_j
 * A partial lse of +inf or -inf marks an empty partial, whose `out` is not read into the sum (it may be NaN).
 * n may be 0: all rows are empty then. */
struct fmla_merge_args {
	size_t struct_size;
	const struct fmla_tensor *partial_out; /* [n, b, s_q, h_q, d_v] bf16|fp16|fp32, 16-byte aligned; last stride 1; d_v
	                                          and other strides multiples of 8                                      */
	const struct fmla_tensor *partial_lse; /* [n, b, h_q, s_q] fp32, any strides                                     */
	const struct fmla_tensor *attn_sink;   /* [h_q] fp32 or NULL; applied once, after the merge                      */
	struct fmla_tensor *out;               /* [b, s_q, h_q, d_v] bf16|fp16|fp32                                      */
	struct fmla_tensor *lse;               /* [b, h_q, s_q] fp32, any strides; NULL: not wanted                      */
	uint32_t flags;                        /* FMLA_EMPTY_LSE_NEG_INF                                                 */
	void *stream;
};

FMLA_API fmla_status fmla_merge(fmla_ctx *ctx, const struct fmla_merge_args *args);

/* ---- kv_append ----------------------------------------------------------------------------------------------- */

/* Writes the rows of n new tokens into the paged cache: cache row slot / page, slot % page gets latent ++ rope.
 * A negative slot is skipped (padding).  A slot past the cache is an error on the CPU and skipped on a GPU.  Two equal
 * slots in one call: one of the two rows wins, whole on the CPU, possibly mixed on a GPU. */
struct fmla_kv_append_args {
	size_t struct_size;
	const struct fmla_tensor *kv_latent;    /* [n, d_latent] or [n, h_kv, d_latent] bf16|fp16, last stride 1         */
	const struct fmla_tensor *k_rope;       /* [n, d_rope] or [n, h_kv, d_rope]; NULL when d_latent is all of d_qk   */
	const struct fmla_tensor *slot_mapping; /* [n] int64 or int32                                                    */
	struct fmla_tensor *kv_cache;           /* [num_pages, page, h_kv, d_latent + d_rope], last stride 1             */
	void *stream;
};

FMLA_API fmla_status fmla_kv_append(fmla_ctx *ctx, const struct fmla_kv_append_args *args);

#ifdef __cplusplus
}
#endif
#endif
