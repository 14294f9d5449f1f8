/* SPDX-License-Identifier: MIT
 *
 * fmla_merge and fmla_kv_append against the rate of a copy. */
#include "bench.h"

#include "flash_mla.h"

#include <stdio.h>
#include <stdlib.h>

struct stream_calls {
	fmla_ctx *ctx;
	struct fmla_merge_args merge;
	struct fmla_kv_append_args append;
	struct fmla_tensor t[9];
	char *partial, *merged, *latent, *rope, *cache;
	size_t partial_bytes, merged_bytes, latent_bytes, rope_bytes, cache_bytes;
};

static void merge_layer(void *arg, int layer, cudaStream_t stream)
{
	struct stream_calls *c = arg;
	c->t[0].data = c->partial + (size_t)layer * c->partial_bytes;
	c->t[2].data = c->merged + (size_t)layer * c->merged_bytes;
	c->merge.stream = stream;
	fmla(c->ctx, fmla_merge(c->ctx, &c->merge), "fmla_merge");
}

static void append_layer(void *arg, int layer, cudaStream_t stream)
{
	struct stream_calls *c = arg;
	c->t[4].data = c->latent + (size_t)layer * c->latent_bytes;
	c->t[5].data = c->rope + (size_t)layer * c->rope_bytes;
	c->t[7].data = c->cache + (size_t)layer * c->cache_bytes;
	c->append.stream = stream;
	fmla(c->ctx, fmla_kv_append(c->ctx, &c->append), "fmla_kv_append");
}

struct pairs {
	char *data;
	size_t half; /* bytes */
};

/* Copies of the size of one streaming call: every second layer's buffer into the one behind it. */
static void copy_pairs(void *arg, int layer, cudaStream_t stream)
{
	const struct pairs *c = arg;
	char *from = c->data + (size_t)layer * 2 * c->half;
	CUDA(cudaMemcpyAsync(from + c->half, from, c->half, cudaMemcpyDeviceToDevice, stream));
}

static void print_stream(const char *what, double bytes, double copy_gbs, struct timing t)
{
	printf("%-58s %8.2f us (min %.2f)  %5.0f GB/s  %5.1f%% of copy\n", what, t.median_us, t.min_us,
	       bytes / t.median_us / 1e3, 100 * bytes / t.median_us / 1e3 / copy_gbs);
	fflush(stdout);
}

/* merge and kv_append against the copy ceiling; eight layers of distinct buffers, more than 64 MB each. */
void streaming_calls(fmla_ctx *ctx, const struct sensors *sensors, double copy_gbs)
{
	enum { LAYERS = 8, N = 4 };
	const struct fmla_dtype bf16 = FMLA_BF16, fp32 = FMLA_FP32, int32 = FMLA_INT32;
	const struct fmla_device gpu = {FMLA_DEVICE_CUDA, 0};
	int64_t b = 128, h = 128, n = 65536, pages = 1024 + 16, page = 64;
	int64_t in[5] = {N, b, 1, h, D_V}, in_lse[4] = {N, b, h, 1}, out[4] = {b, 1, h, D_V}, lse[3] = {b, h, 1};
	int64_t latent[2] = {n, D_V}, rope[2] = {n, D_QK - D_V}, cache[4] = {pages, page, 1, D_QK};
	const size_t rows = (size_t)(b * h);
	struct stream_calls c = {.ctx = ctx,
	                         .partial_bytes = N * rows * D_V * 2,
	                         .merged_bytes = rows * D_V * 2,
	                         .latent_bytes = (size_t)n * D_V * 2,
	                         .rope_bytes = (size_t)n * (D_QK - D_V) * 2,
	                         .cache_bytes = (size_t)(pages * page) * D_QK * 2};
	c.partial = device_alloc(c.partial_bytes * LAYERS * 2); /* once more for fp32 */
	c.merged = device_alloc(c.merged_bytes * LAYERS * 2);
	c.latent = device_alloc(c.latent_bytes * LAYERS);
	c.rope = device_alloc(c.rope_bytes * LAYERS);
	c.cache = device_alloc(c.cache_bytes * LAYERS);
	CUDA(fill_normal(c.partial, c.partial_bytes * LAYERS, 1, 0, 1, NULL));
	CUDA(fill_normal(c.latent, c.latent_bytes * LAYERS / 2, 1, 0, 2, NULL));
	CUDA(fill_normal(c.rope, c.rope_bytes * LAYERS / 2, 1, 0, 3, NULL));
	float *partial_lse = device_alloc(N * rows * sizeof(float)), *merged_lse = device_alloc(rows * sizeof(float));
	CUDA(fill_floats(partial_lse, N * rows, 4, NULL));
	int32_t *slots = malloc((size_t)(pages * page) * sizeof(*slots));
	must(slots != NULL, "slots", "out of memory");
	shuffle(slots, pages * page, 9);
	int32_t *scattered = upload(slots, (size_t)n * sizeof(*slots));
	for (int64_t i = 0; i < n; i++)
		slots[i] = (int32_t)i;
	int32_t *in_order = upload(slots, (size_t)n * sizeof(*slots));
	free(slots);

#define T(i, p, type, dims, array) \
	c.t[i] = (struct fmla_tensor){.data = (p), .device = gpu, .ndim = (dims), .dtype = (type), .shape = (array)}
	T(0, c.partial, bf16, 5, in);
	T(1, partial_lse, fp32, 4, in_lse);
	T(2, c.merged, bf16, 4, out);
	T(3, merged_lse, fp32, 3, lse);
	T(4, c.latent, bf16, 2, latent);
	T(5, c.rope, bf16, 2, rope);
	T(6, scattered, int32, 1, &n);
	T(7, c.cache, bf16, 4, cache);
#undef T
	c.merge = (struct fmla_merge_args){
	    .struct_size = sizeof(c.merge), .partial_out = &c.t[0], .partial_lse = &c.t[1], .out = &c.t[2], .lse = &c.t[3]};
	c.append = (struct fmla_kv_append_args){.struct_size = sizeof(c.append),
	                                        .kv_latent = &c.t[4],
	                                        .k_rope = &c.t[5],
	                                        .slot_mapping = &c.t[6],
	                                        .kv_cache = &c.t[7]};
	printf("\nstreaming calls (%d layers with their own buffers)\n", LAYERS);
	const double lse_bytes = (N + 1) * (double)rows * 4;
	print_stream("fmla_merge of 4, bf16, 16,384 rows: 84 MB", (double)(c.partial_bytes + c.merged_bytes) + lse_bytes,
	             copy_gbs, time_burst(merge_layer, &c, LAYERS, sensors));
	in[0] = in_lse[0] = 2;
	print_stream("fmla_merge of 2, bf16, 16,384 rows: 50 MB",
	             (double)(c.partial_bytes / 2 + c.merged_bytes) + lse_bytes * 3 / 5, copy_gbs,
	             time_burst(merge_layer, &c, LAYERS, sensors));
	in[0] = in_lse[0] = N;
	c.t[0].dtype = c.t[2].dtype = fp32;
	c.partial_bytes *= 2;
	c.merged_bytes *= 2;
	print_stream("fmla_merge of 4, fp32, 16,384 rows: 168 MB", (double)(c.partial_bytes + c.merged_bytes) + lse_bytes,
	             copy_gbs, time_burst(merge_layer, &c, LAYERS, sensors));
	struct pairs copy = {.data = c.latent, .half = c.latent_bytes};
	print_stream("cudaMemcpyAsync of 67 MB: 134 MB", 2 * (double)copy.half, copy_gbs,
	             time_burst(copy_pairs, &copy, LAYERS / 2, sensors));
	const double append_bytes = (double)n * (2 * D_QK * 2 + 4);
	print_stream("fmla_kv_append, 65,536 rows to random slots: 151 MB", append_bytes, copy_gbs,
	             time_burst(append_layer, &c, LAYERS, sensors));
	c.t[6].data = in_order;
	print_stream("fmla_kv_append, 65,536 rows in order: 151 MB", append_bytes, copy_gbs,
	             time_burst(append_layer, &c, LAYERS, sensors));
	void *const all[] = {c.partial, c.merged, c.latent, c.rope, c.cache, partial_lse, merged_lse, scattered, in_order};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		CUDA(cudaFree(all[i]));
}
