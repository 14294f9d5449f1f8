/* SPDX-License-Identifier: MIT */
#include "cpu_probe.h"

#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- products ------------------------------------------------------------------------------------------------ */

/* Runs once untimed, then once timed; returns its floating-point operations. */
typedef double rounds(int n);

#if defined(__x86_64__)

#define TLOAD(reg, p) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #reg ::"r"(p), "r"((int64_t)64) : "memory")
#define TDP(c, a, b)  __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

struct tile_config {
	uint8_t palette, start_row, reserved[14];
	uint16_t bytes_per_row[16];
	uint8_t rows[16];
} __attribute__((packed, aligned(64)));

/* Non-zero operands of both signs: a multiplier may idle on zeros. */
__attribute__((target("amx-tile,amx-bf16"))) static double rounds_amx(int n)
{
	struct tile_config config = {.palette = 1};
	uint16_t data[4][512] __attribute__((aligned(64)));
	uint32_t seed = 1;
	for (int i = 0; i < 8; i++) {
		config.bytes_per_row[i] = 64;
		config.rows[i] = 16;
	}
	for (int i = 0; i < 4; i++)
		for (int j = 0; j < 512; j++) {
			seed = seed * 1664525u + 1013904223u;
			data[i][j] = (uint16_t)(0x3f00 | (seed >> 16 & 0x80ff)); /* 0.5 .. 2, either sign */
		}
	__asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
	TLOAD(4, data[0]);
	TLOAD(5, data[1]);
	TLOAD(6, data[2]);
	TLOAD(7, data[3]);
	for (int i = 0; i < n; i++) {
		TDP(0, 4, 6);
		TDP(1, 4, 7);
		TDP(2, 5, 6);
		TDP(3, 5, 7);
	}
	__asm__ volatile("tilerelease" ::: "memory");
	return 4.0 * n * 2 * 16 * 16 * 32;
}

#define FMA12(width)                                                                                                \
	__asm__ volatile("vfmadd231ps %%" width "12, %%" width "13, %%" width "0\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "1\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "2\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "3\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "4\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "5\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "6\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "7\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "8\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "9\n\t"                                   \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "10\n\t"                                  \
	                 "vfmadd231ps %%" width "12, %%" width "13, %%" width "11" ::                                   \
	                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
	                       "xmm11", "xmm12", "xmm13")

/* All registers start as 1.0, with 2^-20 as one factor: the sums stay normal numbers. */
#define SET_REGISTERS(width, move)                                                                                  \
	do {                                                                                                            \
		const float one = 1.f, small = 0x1p-20f;                                                                    \
		__asm__ volatile(move " %0, %%" width "13\n\t" move " %1, %%" width "12\n\t"                                \
		                      "vxorps %%ymm0, %%ymm0, %%ymm0\n\tvxorps %%ymm1, %%ymm1, %%ymm1\n\t"                  \
		                      "vxorps %%ymm2, %%ymm2, %%ymm2\n\tvxorps %%ymm3, %%ymm3, %%ymm3\n\t"                  \
		                      "vxorps %%ymm4, %%ymm4, %%ymm4\n\tvxorps %%ymm5, %%ymm5, %%ymm5\n\t"                  \
		                      "vxorps %%ymm6, %%ymm6, %%ymm6\n\tvxorps %%ymm7, %%ymm7, %%ymm7\n\t"                  \
		                      "vxorps %%ymm8, %%ymm8, %%ymm8\n\tvxorps %%ymm9, %%ymm9, %%ymm9\n\t"                  \
		                      "vxorps %%ymm10, %%ymm10, %%ymm10\n\tvxorps %%ymm11, %%ymm11, %%ymm11" ::"m"(one),    \
		                 "m"(small)                                                                                 \
		                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
		                   "xmm11", "xmm12", "xmm13");                                                              \
	} while (0)

__attribute__((target("avx512f"))) static double rounds_avx512(int n)
{
	SET_REGISTERS("zmm", "vbroadcastss");
	for (int i = 0; i < 2 * n; i++)
		FMA12("zmm");
	return 2.0 * n * 12 * 16 * 2;
}

__attribute__((target("avx2,fma"))) static double rounds_avx2(int n)
{
	SET_REGISTERS("ymm", "vbroadcastss");
	for (int i = 0; i < 2 * n; i++)
		FMA12("ymm");
	return 2.0 * n * 12 * 8 * 2;
}

#endif

static double rounds_c(int n)
{
	typedef float vec __attribute__((vector_size(16)));
	vec sum[8] = {{0}}, x = (vec){0} + 1.f, y = (vec){0} + 0x1p-20f;
	for (int i = 0; i < n; i++)
		for (int k = 0; k < 8; k++) {
			sum[k] = sum[k] * x + y;
			__asm__ volatile("" : "+m"(x)); /* the compiler must not see that it is always the same */
		}
	for (int k = 1; k < 8; k++)
		sum[0] += sum[k];
	volatile float used = sum[0][0];
	(void)used;
	return n * 8.0 * 4 * 2;
}

static rounds *rounds_of(const char *variant)
{
#if defined(__x86_64__)
	if (strcmp(variant, "amx") == 0) {
#if defined(__linux__) && defined(SYS_arch_prctl)
		unsigned a, b, c, d; /* by cpuid: clang 14 does not know the name "amx-bf16" */
		if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 22) && (d & 1u << 24) &&
		    syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0)
			return rounds_amx;
#endif
		return NULL;
	}
	if (strcmp(variant, "avx512") == 0)
		return __builtin_cpu_supports("avx512f") ? rounds_avx512 : NULL;
	if (strcmp(variant, "avx2") == 0)
		return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? rounds_avx2 : NULL;
#endif
	return strcmp(variant, "c") == 0 ? rounds_c : NULL;
}

double cpu_probe_peak(const char *variant, int threads)
{
	rounds *const run = rounds_of(variant);
	double sum = 0;
	(void)threads; /* without OpenMP */
	if (!run)
		return 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
	{
		run(500);
#pragma omp barrier
		const double start = now(), flop = run(6000);
		sum += flop / (now() - start) / 1e9;
	}
	return sum;
}

/* ---- reads --------------------------------------------------------------------------------------------------- */

/* 512 bytes a turn.  The width matters also in DRAM: a core keeps as many lines in flight as its window holds loads. */
#define READ_LOOP(data, bytes)                                                                 \
	do {                                                                                       \
		typedef uint64_t line __attribute__((vector_size(64), aligned(16)));                   \
		line x[8] = {{0}};                                                                     \
		for (size_t at = 0; at + sizeof(x) <= (bytes); at += sizeof(x))                        \
			for (int k = 0; k < 8; k++)                                                        \
				x[k] ^= *(const line *)(const void *)((data) + at + (size_t)k * sizeof(line)); \
		for (int k = 1; k < 8; k++)                                                            \
			x[0] ^= x[k];                                                                      \
		return x[0][0] ^ x[0][1] ^ x[0][2] ^ x[0][3] ^ x[0][4] ^ x[0][5] ^ x[0][6] ^ x[0][7];  \
	} while (0)

static uint64_t read_share(const unsigned char *data, size_t bytes)
{
	READ_LOOP(data, bytes);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static uint64_t read_share_avx512(const unsigned char *data, size_t bytes)
{
	READ_LOOP(data, bytes);
}

__attribute__((target("avx2"))) static uint64_t read_share_avx2(const unsigned char *data, size_t bytes)
{
	READ_LOOP(data, bytes);
}
#endif

double cpu_probe_read(const void *data, size_t bytes, int threads)
{
	uint64_t (*read)(const unsigned char *, size_t) = read_share;
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx512f"))
		read = read_share_avx512;
	else if (__builtin_cpu_supports("avx2"))
		read = read_share_avx2;
#endif
	const size_t share = bytes / (size_t)threads / 256 * 256;
	volatile uint64_t used = 0;
	uint64_t all = 0;
	const double start = now();
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(^ : all)
	for (int i = 0; i < threads; i++)
		all ^= read((const unsigned char *)data + (size_t)i * share, share);
	used = all;
	(void)used;
	return (double)share * threads / (now() - start) / 1e9;
}
