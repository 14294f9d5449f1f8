/* SPDX-License-Identifier: MIT
 *
 * cli.h - what the files of the `flashmla` command share: its commands, exit codes, options and terminal.
 *
 * The command uses the public header only, plus the case table, data and comparison that the tests use (tests/). */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <argp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "flash_mla.h"

/* Exit codes, also in `flashmla --help`. */
enum exit_code {
	EXIT_OK = 0,
	EXIT_FAILED = 1,      /* a check failed: a result differs from the reference */
	EXIT_USAGE = 2,       /* wrong arguments or a bad input file                 */
	EXIT_UNAVAILABLE = 3, /* no such backend here                                */
	EXIT_SYSTEM = 4,      /* out of memory, device error, output not writable    */
	EXIT_INTERRUPTED = 130
};

int cmd_info(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_plan(int argc, char **argv);

/* Set by Ctrl-C; long loops look at it between two calls and leave in order.  A second Ctrl-C kills. */
extern volatile sig_atomic_t interrupted;

/* Prints "flashmla COMMAND: sentence" to stderr and returns `code`. */
int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The exit code for a library status, and a report of the context's sentence. */
int fail_status(fmla_ctx *ctx, fmla_status status, const char *doing);

/* Parse an option's value; a wrong one ends the program with a sentence that names the option and the range. */
int64_t parse_integer(struct argp_state *state, const char *option, const char *text, int64_t least, int64_t most);
double parse_real(struct argp_state *state, const char *option, const char *text, double least, double most);

/* --backend, --threads and --device, a child parser of every command that computes. */
struct where {
	const char *backend; /* NULL: the best backend that is available */
	int threads;         /* 0: all                                   */
	int device;          /* ordinal of a GPU or OpenCL device        */
};
extern const struct argp where_argp; /* its input is a struct where */

/* A context there, and what it is.  On failure reports, sets *code and returns NULL. */
fmla_ctx *open_backend(struct where where, struct fmla_backend_info *info, int *code);

/* Finds out before the work whether its result can be written: creates `path` when it is not there.  NULL is fine. */
bool can_write(const char *path);

/* A progress bar on stderr, only where stderr is a terminal. */
void progress(const char *what, int64_t done, int64_t total);
void progress_clear(void);

/* "1.23 M", "45.6 k": a count for people. */
const char *human_count(double value, char text[16]);

double now_seconds(void); /* monotonic */

#endif
