/* SPDX-License-Identifier: MIT */
#include "workload.h"

#include "../tests/data.h"

#include <string.h>

/* Made by `flashmla info --trace FILE` from the files that `source` names. */
const struct workload workloads[] = {
    {
        .name = "azure-conv",
        .source =
            "Azure LLM inference trace 2023, conversation (Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv, "
            "19366 requests; Patel et al., Splitwise, ISCA 2024)",
        .licence = "CC-BY 4.0",
        .quantiles = {3,    274,  406,  453,  531,  1057, 1110, 1149, 1184, 1217, 1249,
                      1281, 1313, 1342, 1372, 1402, 1436, 1478, 1550, 2210, 14088},
    },
    {
        .name = "azure-code",
        .source = "Azure LLM inference trace 2023, code completion (Azure/AzurePublicDataset, "
                  "AzureLLMInferenceTrace_code.csv, 8819 requests; Patel et al., Splitwise, ISCA 2024)",
        .licence = "CC-BY 4.0",
        .quantiles = {4,    112,  218,  338,  493,  644,  834,  996,  1152, 1375, 1590,
                      1797, 2035, 2275, 2606, 2934, 3366, 4019, 5026, 7030, 7840},
    },
    {
        .name = "mooncake",
        .source =
            "Mooncake conversation trace (kvcache-ai/Mooncake, conversation_trace.jsonl, 12031 requests; Qin et al., "
            "Mooncake, FAST 2025)",
        .licence = "Apache-2.0",
        .quantiles = {892,  1114,  1348,  1709,  2212,  2971,  3925,  4741,  5542,  6551,  7701,
                      9001, 10550, 12305, 14257, 16430, 19254, 23672, 29861, 43219, 126526},
    },
};

const int num_workloads = sizeof(workloads) / sizeof(*workloads);

const struct workload *workload_find(const char *name)
{
	for (int i = 0; i < num_workloads; i++)
		if (strcmp(workloads[i].name, name) == 0)
			return &workloads[i];
	return NULL;
}

static double random_uniform(uint64_t seed, uint64_t index) /* [0, 1) */
{
	return (double)(random_bits(seed, index) >> 11) * 0x1p-53;
}

void shuffle(int32_t *values, int64_t count, uint64_t seed)
{
	for (int64_t i = count - 1; i > 0; i--) {
		const int64_t j = (int64_t)(random_bits(seed, (uint64_t)i) % (uint64_t)(i + 1));
		const int32_t swap = values[i];
		values[i] = values[j];
		values[j] = swap;
	}
}

void workload_lengths(const struct workload *w, int64_t b, uint64_t seed, int32_t *lengths)
{
	for (int64_t i = 0; i < b; i++) {
		const double x = ((double)i + random_uniform(seed, (uint64_t)i)) / (double)b * (WORKLOAD_KNOTS - 1);
		const int k = x < WORKLOAD_KNOTS - 1 ? (int)x : WORKLOAD_KNOTS - 2;
		const double low = w->quantiles[k], high = w->quantiles[k + 1];
		lengths[i] = (int32_t)(low + (high - low) * (x - k));
	}
	shuffle(lengths, b, ~seed);
}

void normal_lengths(int64_t s_k, int64_t b, uint64_t seed, int32_t *lengths)
{
	for (int64_t i = 0; i < b; i++) {
		const double length = (double)s_k * (1 + random_normal(seed, (uint64_t)i) / 2), most = 4 * (double)s_k;
		lengths[i] = (int32_t)(length < 1 ? 1 : length > most ? most : length);
	}
}

/* How many decode steps of the trace see a cache of at most `length` tokens. */
static double steps_up_to(const struct trace *t, int32_t length)
{
	double steps = 0;
	for (size_t i = 0; i < t->count; i++) {
		const struct trace_request *r = &t->requests[i];
		const int32_t all = r->output > 1 ? r->output - 1 : 0, seen = length - r->input;
		steps += seen < 0 ? 0 : seen < all ? seen : all;
	}
	return steps;
}

void workload_quantiles(const struct trace *t, int32_t quantiles[WORKLOAD_KNOTS])
{
	const double all = steps_up_to(t, 2 * TRACE_MAX_LENGTH);
	for (int k = 0; k < WORKLOAD_KNOTS; k++) {
		const double wanted = all * k / (WORKLOAD_KNOTS - 1);
		int32_t low = 0, high = 2 * TRACE_MAX_LENGTH; /* smallest length with at least that many steps, and one */
		while (low < high) {
			const int32_t middle = low + (high - low) / 2;
			const double steps = steps_up_to(t, middle);
			if (steps >= wanted && steps > 0)
				high = middle;
			else
				low = middle + 1;
		}
		quantiles[k] = low;
	}
}
