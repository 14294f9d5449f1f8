/* SPDX-License-Identifier: MIT */
#include "threads.h"

#include <stdio.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(_OPENMP) && defined(__linux__)
#include <sched.h>
#endif

/* Does the list ("0,64" or "2-3") name an allowed CPU before this one? */
static int has_earlier(FILE *list, const unsigned char *allowed, int cpu)
{
	int first, last;
	while (fscanf(list, "%d", &first) == 1) {
		int after = getc(list);
		last = first;
		if (after == '-' && fscanf(list, "%d", &last) == 1)
			after = getc(list);
		for (int i = first < 0 ? 0 : first; i <= last && i < cpu; i++)
			if (allowed[i])
				return 1;
		if (after != ',')
			break;
	}
	return 0;
}

int threads_cores(const char *cpus, const unsigned char *allowed, int n)
{
	int cores = 0;
	for (int cpu = 0; cpu < n; cpu++) {
		char path[256];
		if (!allowed[cpu])
			continue;
		snprintf(path, sizeof(path), "%s/cpu%d/topology/thread_siblings_list", cpus, cpu);
		FILE *list = fopen(path, "r");
		cores += !list || !has_earlier(list, allowed, cpu);
		if (list)
			fclose(list);
	}
	return cores;
}

int threads_offered(void)
{
#ifndef _OPENMP
	return 1;
#else
	const int most = omp_get_max_threads();
#ifdef __linux__
	cpu_set_t set;
	unsigned char allowed[CPU_SETSIZE];
	if (!getenv("OMP_NUM_THREADS") && sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) == most) {
		for (int i = 0; i < CPU_SETSIZE; i++)
			allowed[i] = CPU_ISSET((size_t)i, &set) != 0;
		return threads_cores("/sys/devices/system/cpu", allowed, CPU_SETSIZE);
	}
#endif
	return most;
#endif
}
