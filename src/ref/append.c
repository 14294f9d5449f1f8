/* SPDX-License-Identifier: MIT
 *
 * kv_append: new rows latent ++ rope into their slots, one after the other, so that of two equal slots the later wins.
 */
#include "ref.h"

#include <string.h>

static void append_row(const struct append_problem *p, int64_t n, int64_t slot)
{
	const size_t value = sizeof(uint16_t);
	for (int64_t h = 0; h < p->h_kv; h++) {
		char *to = (char *)p->kv +
		           (slot / p->page * p->kv_page + slot % p->page * p->kv_token + h * p->kv_head) * (int64_t)value;
		const char *latent = (const char *)p->latent + (n * p->latent_n + h * p->latent_h) * (int64_t)value;
		if (p->d_latent > 0)
			memcpy(to, latent, (size_t)p->d_latent * value);
		const char *rope = (const char *)p->rope + (n * p->rope_n + h * p->rope_h) * (int64_t)value;
		if (p->d_rope > 0)
			memcpy(to + p->d_latent * (int64_t)value, rope, (size_t)p->d_rope * value);
	}
}

fmla_status ref_kv_append(struct fmla_ctx *ctx, const struct append_problem *p)
{
	(void)ctx;
	for (int64_t n = 0; n < p->n; n++) {
		const int64_t slot = append_slot(p, n);
		if (slot >= 0)
			append_row(p, n, slot);
	}
	return FMLA_OK;
}
