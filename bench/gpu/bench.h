/* SPDX-License-Identifier: MIT
 *
 * Pieces of bench_gpu: timing of a captured layer sequence, the card's sensors, random data on the device. */
#ifndef BENCH_GPU_H
#define BENCH_GPU_H

#include "flash_mla.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ends the program with a sentence when a CUDA or library call failed: a benchmark has nothing to recover. */
void must(bool ok, const char *what, const char *why);
#define CUDA(call)                                                                \
	do {                                                                          \
		const cudaError_t cuda_error_ = (call);                                   \
		must(cuda_error_ == cudaSuccess, #call, cudaGetErrorString(cuda_error_)); \
	} while (0)

/* ---- device.cu ---- */
#ifdef __cplusplus
extern "C" {
#endif
/* `count` 16-bit values (bf16, or fp16) from normal(0, deviation). */
cudaError_t fill_normal(void *data, size_t count, float deviation, int fp16, uint64_t seed, cudaStream_t stream);
cudaError_t fill_floats(float *data, size_t count, uint64_t seed, cudaStream_t stream); /* normal(0, 1) */
/* Reads pages of 73,728 bytes in the order of `pages`, bulk copies into two slots a CTA. */
enum { READ_PAGE_BYTES = 73728 };
cudaError_t read_pages(const void *data, const int32_t *pages, int32_t count, int num_sms, cudaStream_t stream);
#ifdef __cplusplus
}
#endif

/* ---- sensors.c: NVML where the driver has it ---- */
struct sensors {
	void *library, *device;
	char driver[80];
	int (*clock)(void *device, int type, unsigned *mhz);
	int (*power)(void *device, unsigned *milliwatts);
	int (*energy)(void *device, unsigned long long *millijoules);
};
void sensors_open(struct sensors *s);
double sensors_mhz(const struct sensors *s);    /* SM clock now; 0: unknown */
double sensors_watts(const struct sensors *s);  /* power now; 0: unknown    */
double sensors_joules(const struct sensors *s); /* since the driver was loaded; 0: unknown */

/* ---- timing.c ---- */
struct timing {
	double median_us, min_us; /* per layer */
	double mhz, watts;        /* while it ran; 0: unknown */
	double joules;            /* per layer, sustained only; 0: unknown */
	int replays;
};

/* Enqueues one layer on `stream`. */
typedef void (*layer_fn)(void *arg, int layer, cudaStream_t stream);

/* Captures `layers` layers into a graph and replays it.  Burst: after two replays, about 25 ms of them, each timed.
 * Sustained: 1.5 s of warm-up, then `seconds` timed in chunks; clock and power are sampled meanwhile. */
struct timing time_burst(layer_fn layer, void *arg, int layers, const struct sensors *s);
struct timing time_sustained(layer_fn layer, void *arg, int layers, double seconds, const struct sensors *s);

double wall_seconds(void);

/* ---- data.c ---- */
enum { D_QK = 576, D_V = 512 };
double uniform(uint64_t *state);                    /* in (0, 1) */
void shuffle(int32_t *x, int64_t n, uint64_t seed); /* 0 ... n - 1 in random order */
void *device_alloc(size_t bytes);
void *upload(const void *host, size_t bytes);
void fmla(fmla_ctx *ctx, fmla_status status, const char *what); /* must, for calls of the library */

/* ---- stream.c ---- */
void streaming_calls(fmla_ctx *ctx, const struct sensors *sensors, double copy_gbs);

#endif
