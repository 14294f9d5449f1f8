/* SPDX-License-Identifier: MIT */
#include "roof.h"

#include "../bench/cpu_probe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Bulk copies of random pages into shared memory, and cuBLAS bf16 8192^3 on random data, both on a cool card. */
static const struct {
	const char *device;
	struct roof roof;
} cards[] = {{"NVIDIA H200", {.gbs = 4590, .tflops = 790}}};

static const struct {
	const char *variant, *name;
} instructions[] = {{"amx", "AMX bf16"},
                    {"avx512", "AVX-512 fp32"},
                    {"avx2", "AVX2 fp32"},
                    {"c", "scalar fp32"},
                    {"sm_90a", "bf16 tensor cores"}};

/* A cache of a few MiB is read in the time that waking a thread takes: the best of several reads is its speed. */
static double read_speed(const void *kv, size_t bytes, int threads)
{
	enum { LARGE = 64 << 20, TRIES = 16 };
	double best = 0;
	for (int i = 0; i < (bytes < LARGE ? TRIES : 1); i++)
		best = fmax(best, cpu_probe_read(kv, bytes, threads));
	return best;
}

struct roof roof_probe(const struct fmla_backend_info *info, const void *kv, size_t bytes)
{
	struct roof roof = {0, 0};
	if (info->device_type == FMLA_DEVICE_CPU) {
		roof.tflops = cpu_probe_peak(info->variant, info->num_workers) / 1e3;
		if (roof.tflops > 0) /* 0: the reference, which has no limit worth naming */
			roof.gbs = read_speed(kv, bytes, info->num_workers);
		return roof;
	}
	for (size_t i = 0; i < sizeof(cards) / sizeof(*cards); i++)
		if (strcmp(cards[i].device, info->device_name) == 0)
			roof = cards[i].roof;
	return roof;
}

double others_cpu_seconds(void)
{
	/* cpu user nice system idle iowait irq softirq steal ..., in ticks */
	enum { IDLE = 3, IOWAIT = 4, FIELDS = 8 };
	double busy = 0;
	FILE *file = fopen("/proc/stat", "r");
	if (!file)
		return 0;
	char line[256] = "";
	char *at = fgets(line, sizeof(line), file) ? line + strcspn(line, " ") : line;
	for (int i = 0; i < FIELDS; i++) {
		const double ticks = strtod(at, &at);
		busy += i == IDLE || i == IOWAIT ? 0 : ticks;
	}
	fclose(file);
	struct rusage own;
	getrusage(RUSAGE_SELF, &own);
	return busy / (double)sysconf(_SC_CLK_TCK) - (double)(own.ru_utime.tv_sec + own.ru_stime.tv_sec) -
	       (double)(own.ru_utime.tv_usec + own.ru_stime.tv_usec) * 1e-6;
}

const char *roof_read_name(const struct fmla_backend_info *info)
{
	return info->device_type == FMLA_DEVICE_CPU ? "memory read" : "HBM read";
}

const char *roof_compute_name(const struct fmla_backend_info *info)
{
	for (size_t i = 0; i < sizeof(instructions) / sizeof(*instructions); i++)
		if (strcmp(instructions[i].variant, info->variant) == 0)
			return instructions[i].name;
	return "products";
}

double roof_us(struct roof roof, double bytes, double flop)
{
	if (roof.gbs <= 0 || roof.tflops <= 0)
		return 0;
	return fmax(bytes / roof.gbs / 1e3, flop / roof.tflops / 1e6);
}
