/* SPDX-License-Identifier: MIT
 *
 * check_gpu - every test that needs a GPU, in one program that needs nothing but the driver.
 *     check_gpu [--backend NAME] [--brief] [--filter TEXT] [--list]
 * Last line: "N passed, N failed"; exit status 1 when something failed or nothing ran.  --brief runs the short list
 * that is meant for compute-sanitizer. */
#include "gpu.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct {
	const char *filter, *backend; /* "cuda", "portable-cuda" */
	bool brief, list;
	const char *current;
	int passed, failed;
	char reason[1024];
} run;

bool fail(const char *format, ...)
{
	char sentence[400];
	va_list args;
	va_start(args, format);
	vsnprintf(sentence, sizeof(sentence), format, args);
	va_end(args);
#pragma omp critical
	{
		const size_t used = strlen(run.reason);
		snprintf(run.reason + used, sizeof(run.reason) - used, "\n    %s", sentence);
	}
	return false;
}

static double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { PATIENCE_S = 60 }; /* for one test */

/* A kernel that never ends: the device is lost to this process, so this is the end. */
static void give_up(int signal_number)
{
	static const char text[] = ": does not end\n0 passed, 1 failed\n";
	(void)signal_number;
	const bool told =
	    write(STDOUT_FILENO, run.current, strlen(run.current)) > 0 && write(STDOUT_FILENO, text, sizeof(text) - 1) > 0;
	_exit(told ? 1 : 2);
}

static bool wanted(const char *name, bool brief)
{
	return (!run.filter || strstr(name, run.filter)) && (!run.brief || brief);
}

static bool run_job(fmla_ctx *gpu, const void *job)
{
	return job_run((struct job *)(uintptr_t)job, gpu);
}

static bool not_made(fmla_ctx *gpu, const void *job)
{
	(void)gpu;
	(void)job;
	return fail("there is no reference");
}

static void run_test(fmla_ctx *gpu, const struct test *t)
{
	if (!wanted(t->name, t->brief))
		return;
	if (run.list) {
		printf("%s\n", t->name);
		return;
	}
	run.reason[0] = '\0';
	const double start = seconds();
	run.current = t->name;
	alarm(PATIENCE_S);
	bool ok = t->run(gpu, t->arg);
	const cudaError_t error = cudaDeviceSynchronize();
	alarm(0);
	if (error != cudaSuccess)
		ok = fail("%s", cudaGetErrorString(error));
	printf("%s %-70s %6.2f s%s\n", ok ? "ok  " : "FAIL", t->name, seconds() - start, ok ? "" : run.reason);
	fflush(stdout);
	run.passed += ok;
	run.failed += !ok;
	if (error != cudaSuccess) { /* such an error does not go away */
		printf("the device is lost, %d passed, %d failed\n", run.passed, run.failed);
		exit(1);
	}
}

enum { AT_ONCE = 32 }; /* cases in host memory */

/* The references take far longer than the GPU: all cores make cases, then the GPU runs them one by one. */
static void run_cases(fmla_ctx *gpu, const char *const *lines, size_t count)
{
	static struct job jobs[AT_ONCE];
	bool made[AT_ONCE];
	if (count > AT_ONCE) {
		run_cases(gpu, lines, AT_ONCE);
		run_cases(gpu, lines + AT_ONCE, count - AT_ONCE);
		return;
	}
	/* All of them, whatever OMP_NUM_THREADS says. */
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)sysconf(_SC_NPROCESSORS_ONLN))
	for (size_t i = 0; i < count; i++)
		made[i] = !run.list && wanted(lines[i], false) && job_make(&jobs[i], lines[i]);
	for (size_t i = 0; i < count; i++) {
		const struct test t = {lines[i], made[i] ? run_job : not_made, &jobs[i], false};
		run_test(gpu, &t);
		job_free(&jobs[i]);
	}
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--brief") == 0)
			run.brief = true;
		else if (strcmp(argv[i], "--list") == 0)
			run.list = true;
		else if (strcmp(argv[i], "--filter") == 0 && i + 1 < argc)
			run.filter = argv[++i];
		else if (strcmp(argv[i], "--backend") == 0 && i + 1 < argc)
			run.backend = argv[++i];
		else
			return fprintf(stderr, "usage: check_gpu [--backend NAME] [--brief] [--filter TEXT] [--list]\n"), 2;
	}
	signal(SIGALRM, give_up);
	fmla_ctx *gpu = NULL;
	const struct fmla_ctx_options options = {.struct_size = sizeof(options),
	                                         .backend = run.backend ? run.backend : "cuda"};
	if (!run.list && fmla_ctx_create(&gpu, &options) != FMLA_OK) {
		printf("SKIP: no GPU backend here: %s\n0 passed, 0 failed\n", fmla_last_error(gpu));
		fmla_ctx_destroy(gpu);
		return 1;
	}
	const struct test *lists[] = {stream_tests, plan_tests, decode_tests};
	for (int l = 0; l < 3; l++)
		for (const struct test *t = lists[l]; t->name; t++)
			run_test(gpu, t);
	const double start = seconds();
	run_cases(gpu, case_table, case_count);
	run_cases(gpu, gpu_cases, gpu_case_count);
	fmla_ctx_destroy(gpu);
	if (run.list)
		return 0;
	printf("cases with their references: %.1f s\n", seconds() - start);
	printf("%d passed, %d failed\n", run.passed, run.failed);
	return run.failed > 0 || run.passed == 0;
}
