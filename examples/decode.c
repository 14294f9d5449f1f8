/* SPDX-License-Identifier: MIT
 *
 * decode.c - the smallest complete program: one request of 100 cached tokens, one query token, 16 heads.
 *
 *     cc decode.c -lflash_mla -lm          (valid as C11 and as C++11)
 *
 * Key t has a single 1 at position t, and the query asks for token 42, so attention has to return the value of token
 * 42, which is (the first 512 numbers of) its key. */
#include <flash_mla.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 1, S_Q = 1, H_Q = 16, H_KV = 1, D_QK = 576, D_V = 512, PAGE = 64, PAGES = 2, LENGTH = 100 };
enum { BF16_ONE = 0x3f80, BF16_480 = 0x43f0 }; /* 1 and 480 as bfloat16: the upper half of a float */

int main(void)
{
	static uint16_t q[B * S_Q * H_Q * D_QK], out[B * S_Q * H_Q * D_V];
	static float lse[B * H_Q * S_Q];
	const size_t kv_bytes = sizeof(uint16_t) * PAGES * PAGE * H_KV * D_QK;
	uint16_t *kv = (uint16_t *)aligned_alloc(64, kv_bytes);
	int32_t block_table[B * PAGES] = {1, 0}, cache_seqlens[B] = {LENGTH}; /* tokens 0..63 live in page 1 */

	if (!kv)
		return 1;
	memset(kv, 0, kv_bytes);
	for (int t = 0; t < LENGTH; t++)
		kv[(block_table[t / PAGE] * PAGE + t % PAGE) * D_QK + t] = BF16_ONE;
	for (int h = 0; h < H_Q; h++)
		q[h * D_QK + 42] = BF16_480; /* score 480 / 24 = 20 for token 42, 0 for the others */

	int64_t q_shape[] = {B, S_Q, H_Q, D_QK}, kv_shape[] = {PAGES, PAGE, H_KV, D_QK}, table_shape[] = {B, PAGES},
	        seqlens_shape[] = {B}, out_shape[] = {B, S_Q, H_Q, D_V}, lse_shape[] = {B, H_Q, S_Q};
	struct fmla_tensor tensor_q = {q, {FMLA_DEVICE_CPU, 0}, 4, FMLA_BF16, q_shape, NULL, 0};
	struct fmla_tensor tensor_kv = {kv, {FMLA_DEVICE_CPU, 0}, 4, FMLA_BF16, kv_shape, NULL, 0};
	struct fmla_tensor tensor_table = {block_table, {FMLA_DEVICE_CPU, 0}, 2, FMLA_INT32, table_shape, NULL, 0};
	struct fmla_tensor tensor_seqlens = {cache_seqlens, {FMLA_DEVICE_CPU, 0}, 1, FMLA_INT32, seqlens_shape, NULL, 0};
	struct fmla_tensor tensor_out = {out, {FMLA_DEVICE_CPU, 0}, 4, FMLA_BF16, out_shape, NULL, 0};
	struct fmla_tensor tensor_lse = {lse, {FMLA_DEVICE_CPU, 0}, 3, FMLA_FP32, lse_shape, NULL, 0};

	struct fmla_decode_args args;
	memset(&args, 0, sizeof(args));
	args.struct_size = sizeof(args);
	args.q = &tensor_q;
	args.kv_cache = &tensor_kv;
	args.block_table = &tensor_table;
	args.cache_seqlens = &tensor_seqlens;
	args.out = &tensor_out;
	args.lse = &tensor_lse;
	args.softmax_scale = 1 / 24.0; /* 1 / sqrt(576); models bring their own */

	fmla_ctx *ctx = NULL;
	fmla_status status = fmla_ctx_create(&ctx, NULL);
	if (status == FMLA_OK)
		status = fmla_workspace_size(ctx, &args, &args.workspace_size);
	if (status == FMLA_OK) {
		args.workspace = aligned_alloc(256, (args.workspace_size + 255) / 256 * 256 + 256);
		status = fmla_decode(ctx, &args);
	}
	if (status != FMLA_OK)
		fprintf(stderr, "%s: %s\n", fmla_status_string(status), fmla_last_error(ctx));
	free(args.workspace);
	free(kv);
	fmla_ctx_destroy(ctx);

	const double expected = log(exp(20.0) + LENGTH - 1);
	const int right = status == FMLA_OK && out[42] == BF16_ONE && fabs(lse[0] - expected) < 1e-5;
	printf("token 42 was asked for and %s; lse %.6f, expected %.6f\n", right ? "found" : "NOT found", lse[0], expected);
	return right ? 0 : 1;
}
