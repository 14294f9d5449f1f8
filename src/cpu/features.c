/* SPDX-License-Identifier: MIT
 *
 * Which variant may run here: what the processor can, what the operating system lets us use, what the user allows. */
#include "cpu.h"

#if defined(__x86_64__)
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Tile state is off until a process asks for it; without the permission the first tile instruction faults.  Asking
 * again is harmless.  Refused by kernels before 5.16, by some container filters, and when an alternate signal stack is
 * too small for the state: then there simply is no AMX. */
static int amx_permitted(void)
{
#if defined(__linux__) && defined(SYS_arch_prctl)
	enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
	return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
	return 0;
#endif
}

/* The compiler's run-time caches cpuid (a trap in virtual machines) and has checked XCR0. */
static int has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); /* every such processor has F16C */
}

static int has_avx512(void)
{
	return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#if defined(__clang__) /* older ones do not know these names */
#include <cpuid.h>
static int has_amx_tiles(void)
{
	unsigned a, b, c, d = 0;
	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 22) && (d & 1u << 24);
}

int cpu_has_fp16_arithmetic(void)
{
	unsigned a, b, c, d = 0;
	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 23);
}
#else
static int has_amx_tiles(void)
{
	return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
}

int cpu_has_fp16_arithmetic(void)
{
	return __builtin_cpu_supports("avx512fp16");
}
#endif

static int has_amx(void)
{
	return has_avx512() && __builtin_cpu_supports("avx512bf16") && has_amx_tiles();
}

const struct cpu_kernel *cpu_choose(enum cpu_variant cap, const char **reason)
{
	*reason = "";
	if (cap < CPU_AMX)
		*reason = "capped by FMLA_CPU";
	if (cap >= CPU_AMX) {
		if (!has_amx())
			*reason = "no AMX-BF16 on this processor";
		else if (!amx_permitted())
			*reason = "the kernel does not permit AMX tiles to this process";
		else
			return &cpu_kernel_amx;
	}
	if (cap >= CPU_AVX512) {
		if (has_avx512())
			return &cpu_kernel_avx512;
		*reason = "no AVX-512 (F, BW, DQ, VL) on this processor";
	}
	if (cap >= CPU_AVX2) {
		if (has_avx2())
			return &cpu_kernel_avx2;
		*reason = "no AVX2, FMA and F16C on this processor";
	}
	return &cpu_kernel_c;
}

#else

const struct cpu_kernel *cpu_choose(enum cpu_variant cap, const char **reason)
{
	*reason = cap < CPU_AMX ? "capped by FMLA_CPU" : "not an x86-64 processor";
	return &cpu_kernel_c;
}

#endif
