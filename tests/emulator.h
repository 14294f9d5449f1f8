/* SPDX-License-Identifier: MIT
 *
 * emulator.h - runs the kernels of src/portable on the CPU: one fiber per work-item, a barrier is a switch to the
 * scheduler.  Include once, after it come the kernels.
 *
 * The scheduler lets every fiber of a group run to its next barrier, in order, in reverse or shuffled anew at each
 * barrier.  A missing barrier shows as a wrong result in some order, fibers at different barriers (or at none) are found
 * by the barriers' line numbers.  Between groups shared memory keeps what the last group left, as on a device. */
#ifndef FMLA_TESTS_EMULATOR_H
#define FMLA_TESTS_EMULATOR_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

enum emulator_order { ORDER_FORWARD, ORDER_REVERSE, ORDER_RANDOM, EMULATOR_ORDERS };
enum { EMULATOR_ITEMS = 256, EMULATOR_STACK = 128 << 10, EMULATOR_DONE = -1 };

static struct {
	int item, group;
	enum emulator_order order;
	void (*body)(const void *argument);
	const void *argument;
	ucontext_t scheduler, fiber[EMULATOR_ITEMS];
	int line[EMULATOR_ITEMS]; /* of the barrier at which the fiber waits */
	char *stacks;
	uint64_t random;
	char error[128]; /* the first divergence; "" so far */
} emulator;

static void emulator_sync(int line)
{
	const int item = emulator.item;
	emulator.line[item] = line;
	swapcontext(&emulator.fiber[item], &emulator.scheduler);
}

static void emulator_fiber(void)
{
	const int item = emulator.item;
	emulator.body(emulator.argument);
	emulator.line[item] = EMULATOR_DONE;
	swapcontext(&emulator.fiber[item], &emulator.scheduler);
}

static void emulator_shuffle(int order[EMULATOR_ITEMS])
{
	for (int i = EMULATOR_ITEMS - 1; i > 0; i--) {
		emulator.random = emulator.random * 6364136223846793005u + 1442695040888963407u;
		const int j = (int)(emulator.random >> 33) % (i + 1), x = order[i];
		order[i] = order[j];
		order[j] = x;
	}
}

static void emulator_start(ucontext_t *fiber, char *stack)
{
	getcontext(fiber);
	fiber->uc_stack.ss_sp = stack;
	fiber->uc_stack.ss_size = EMULATOR_STACK;
	fiber->uc_link = NULL;
	makecontext(fiber, emulator_fiber, 0);
}

static void emulator_run_group(void)
{
	int order[EMULATOR_ITEMS];
	for (int i = 0; i < EMULATOR_ITEMS; i++) {
		order[i] = emulator.order == ORDER_REVERSE ? EMULATOR_ITEMS - 1 - i : i;
		emulator_start(&emulator.fiber[i], emulator.stacks + (size_t)i * EMULATOR_STACK);
	}
	do {
		if (emulator.order == ORDER_RANDOM)
			emulator_shuffle(order);
		for (int i = 0; i < EMULATOR_ITEMS; i++) {
			emulator.item = order[i];
			swapcontext(&emulator.scheduler, &emulator.fiber[order[i]]);
		}
		for (int i = 1; i < EMULATOR_ITEMS; i++)
			if (emulator.line[i] != emulator.line[0]) {
				snprintf(emulator.error, sizeof(emulator.error), "work-item 0 is at line %d, work-item %d at %d",
				         emulator.line[0], i, emulator.line[i]);
				return; /* the fibers are left where they are */
			}
	} while (emulator.line[0] != EMULATOR_DONE);
}

/* Runs `body` as `groups` groups; false: emulator.error says where work-items diverged. */
static bool emulator_run(void (*body)(const void *argument), const void *argument, int64_t groups,
                         enum emulator_order order)
{
	emulator.stacks = malloc((size_t)EMULATOR_ITEMS * EMULATOR_STACK);
	emulator.body = body;
	emulator.argument = argument;
	emulator.order = order;
	emulator.random = 1;
	emulator.error[0] = '\0';
	for (int64_t g = 0; g < groups && !emulator.error[0] && emulator.stacks; g++) {
		emulator.group = (int)g;
		emulator_run_group();
	}
	const bool ok = emulator.stacks && !emulator.error[0];
	free(emulator.stacks);
	return ok;
}

#endif
