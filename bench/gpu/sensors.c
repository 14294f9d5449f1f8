/* SPDX-License-Identifier: MIT
 *
 * SM clock, power and energy through NVML, which comes with the driver; opened at run time, so that nothing links it.
 */
#include "bench.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

enum { NVML_CLOCK_SM = 1 };

/* A function pointer out of a library; ISO C has no cast for that. */
static void find(void *library, const char *name, void *pointer)
{
	void *symbol = dlsym(library, name);
	memcpy(pointer, &symbol, sizeof(symbol));
}

void sensors_open(struct sensors *s)
{
	int (*init)(void) = NULL, (*driver)(char *, unsigned) = NULL, (*by_bus)(const char *, void **) = NULL;
	char bus[32] = "";
	*s = (struct sensors){.driver = "unknown"};
	s->library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
	if (!s->library)
		return;
	find(s->library, "nvmlInit_v2", (void *)&init);
	find(s->library, "nvmlSystemGetDriverVersion", (void *)&driver);
	find(s->library, "nvmlDeviceGetHandleByPciBusId_v2", (void *)&by_bus);
	find(s->library, "nvmlDeviceGetClockInfo", (void *)&s->clock);
	find(s->library, "nvmlDeviceGetPowerUsage", (void *)&s->power);
	find(s->library, "nvmlDeviceGetTotalEnergyConsumption", (void *)&s->energy);
	if (!init || init() != 0)
		return;
	if (driver)
		driver(s->driver, sizeof(s->driver));
	if (by_bus && cudaDeviceGetPCIBusId(bus, sizeof(bus), 0) == cudaSuccess && by_bus(bus, &s->device) != 0)
		s->device = NULL;
}

double sensors_mhz(const struct sensors *s)
{
	unsigned mhz = 0;
	return s->device && s->clock && s->clock(s->device, NVML_CLOCK_SM, &mhz) == 0 ? mhz : 0;
}

double sensors_watts(const struct sensors *s)
{
	unsigned mw = 0;
	return s->device && s->power && s->power(s->device, &mw) == 0 ? mw / 1e3 : 0;
}

double sensors_joules(const struct sensors *s)
{
	unsigned long long mj = 0;
	return s->device && s->energy && s->energy(s->device, &mj) == 0 ? (double)mj / 1e3 : 0;
}
