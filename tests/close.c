/* SPDX-License-Identifier: MIT */
#include "close.h"

#include <math.h>
#include <stdio.h>

const struct limits limits_out = {.abs = 8e-4, .rel = 2.01 / 128, .cos = 5e-6};

/* The peers' 1e-6 absolute is for scores around one; lse is a small difference of scores, whose fp32 sums (and the three
 * products of fp16 on AMX) are wrong by parts of the largest of them, ten deviations. */
struct limits limits_lse(double deviation)
{
	return (struct limits){.abs = 1e-6 * fmax(1, 10 * deviation), .rel = 8.01 / 65536};
}

struct closeness close_values(const float *got, const float *want, int64_t n, struct limits limits)
{
	struct closeness c = {.close = true, .worst = -1};
	double worst_excess = 0, dot = 0, got2 = 0, want2 = 0;
	for (int64_t i = 0; i < n; i++) {
		const double g = got[i], w = want[i];
		double excess = 0; /* > 1: too far */
		if (!isfinite(g) || !isfinite(w)) {
			const bool same = isnan(g) ? isnan(w) : g == w;
			excess = same ? 0 : INFINITY;
		} else {
			const double error = fabs(g - w);
			excess = fmin(error / limits.abs, error / (limits.rel * fabs(w) + 1e-300));
			c.max_abs = fmax(c.max_abs, error);
			dot += g * w;
			got2 += g * g;
			want2 += w * w;
		}
		if (excess > worst_excess || c.worst < 0) {
			worst_excess = excess;
			c.worst = i;
		}
	}
	if (got2 > 0 || want2 > 0)
		c.cosine = 1 - 2 * dot / (got2 + want2); /* also sees a wrong length, unlike dot / (|got| |want|) */
	c.close = worst_excess <= 1 && (limits.cos == 0 || c.cosine <= limits.cos);
	return c;
}

bool close_results(const struct result *got, const struct result *want, char *why, size_t why_size)
{
	const int64_t rows = want->tokens * want->h_q;
	if (got->tokens != want->tokens || got->h_q != want->h_q || got->d_v != want->d_v) {
		snprintf(why, why_size, "shapes differ");
		return false;
	}
	const struct closeness lse = close_values(got->lse, want->lse, rows, limits_lse(want->deviation));
	if (!lse.close) {
		snprintf(why, why_size, "lse[token %lld, head %lld] is %.9g, want %.9g", (long long)(lse.worst / want->h_q),
		         (long long)(lse.worst % want->h_q), got->lse[lse.worst], want->lse[lse.worst]);
		return false;
	}
	const struct closeness out = close_values(got->out, want->out, rows * want->d_v, limits_out);
	if (!out.close) {
		const int64_t row = out.worst / want->d_v;
		snprintf(why, why_size, "out[token %lld, head %lld, %lld] is %.9g, want %.9g; 1 - cosine %.3g",
		         (long long)(row / want->h_q), (long long)(row % want->h_q), (long long)(out.worst % want->d_v),
		         got->out[out.worst], want->out[out.worst], out.cosine);
		return false;
	}
	return true;
}
