/* SPDX-License-Identifier: MIT
 *
 * kv_append: new rows latent ++ rope into their slots, one after the other, so that of two equal slots the later wins.
 */
#include "ref.h"

#include <string.h>

static void copy_values(void *to, int64_t at, const void *from, int64_t from_at, int64_t n)
{
	if (n > 0) /* the pointers of an absent or empty tensor may be NULL */
		memcpy((uint16_t *)to + at, (const uint16_t *)from + from_at, (size_t)n * sizeof(uint16_t));
}

static void append_row(const struct append_problem *p, int64_t n, int64_t slot)
{
	for (int64_t h = 0; h < p->h_kv; h++) {
		const int64_t at = slot / p->page * p->kv_page + slot % p->page * p->kv_token + h * p->kv_head;
		copy_values(p->kv, at, p->latent, n * p->latent_n + h * p->latent_h, p->d_latent);
		copy_values(p->kv, at + p->d_latent, p->rope, n * p->rope_n + h * p->rope_h, p->d_rope);
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
