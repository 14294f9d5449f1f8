/* SPDX-License-Identifier: MIT
 *
 * flashmla.c - the command: finds the sub-command and hands over. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name, *job;
	int (*run)(int argc, char **argv);
} commands[] = {
    {"info", "the backends of this machine; what is in a trace file", cmd_info},
    {"run", "decode tensors from a .safetensors file", cmd_run},
    {"check", "compare a backend with the reference, case by case", cmd_check},
    {"bench", "measure a shape, a serving workload or a recorded trace", cmd_bench},
    {"plan", "show which worker gets which requests", cmd_plan},
};
enum { NUM_COMMANDS = sizeof(commands) / sizeof(*commands) };

static void on_interrupt(int signal_number)
{
	(void)signal_number;
	interrupted = 1;
}

static void print_version(FILE *stream, struct argp_state *state)
{
	(void)state;
	fprintf(stream, "flashmla %s\n", fmla_version_string());
}

static char *help_filter(int key, const char *text, void *input)
{
	(void)input;
	if (key != ARGP_KEY_HELP_POST_DOC)
		return (char *)(uintptr_t)text;
	char *out = NULL;
	size_t size = 0;
	FILE *f = open_memstream(&out, &size);
	if (!f)
		return (char *)(uintptr_t)text;
	fputs("Commands:\n", f);
	for (int i = 0; i < NUM_COMMANDS; i++)
		fprintf(f, "  %-8s %s\n", commands[i].name, commands[i].job);
	fputs("\n`flashmla COMMAND --help` tells more.\n\n"
	      "Exit codes:\n"
	      "  0   fine\n"
	      "  1   a result differs from the reference\n"
	      "  2   wrong arguments, or an input file that breaks a rule\n"
	      "  3   the backend is not available here\n"
	      "  4   out of memory, a device error, or an output that cannot be written\n"
	      "  130 interrupted\n\n"
	      "Environment:\n"
	      "  FMLA_CPU=amx|avx512|avx2|c|ref caps the CPU variant",
	      f);
	fclose(f);
	return out;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	int *command = state->input;
	if (key == ARGP_KEY_NO_ARGS)
		argp_error(state, "a command is needed");
	if (key != ARGP_KEY_ARG)
		return ARGP_ERR_UNKNOWN;
	for (int i = 0; i < NUM_COMMANDS; i++)
		if (strcmp(commands[i].name, arg) == 0)
			*command = i;
	if (*command < 0)
		argp_error(state, "there is no command '%s'", arg);
	state->next--; /* the sub-command parses the rest, its name included */
	return ARGP_KEY_SUCCESS;
}

int main(int argc, char **argv)
{
	static const struct argp argp = {.parser = parse,
	                                 .args_doc = "COMMAND [OPTION...]",
	                                 .doc = "Multi-head latent attention (MLA) decoding over a paged KV cache.\v ",
	                                 .help_filter = help_filter};
	int command = -1, index = 1;
	argp_err_exit_status = EXIT_USAGE;
	argp_program_version_hook = print_version;
	/* Only the first word is parsed here, so that options behind it reach the sub-command. */
	const int status = argp_parse(&argp, argc < 2 ? argc : 2, argv, ARGP_IN_ORDER, &index, &command);
	if (command < 0)
		return status ? EXIT_USAGE : EXIT_OK;

	struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
	sigaction(SIGINT, &action, NULL);

	char name[64];
	snprintf(name, sizeof(name), "flashmla %s", commands[command].name);
	argv[1] = name;
	program_invocation_short_name = program_invocation_name = name;
	const int code = commands[command].run(argc - 1, argv + 1);
	progress_clear();
	if (fflush(stdout) != 0 || ferror(stdout))
		return fail(EXIT_SYSTEM, "the output cannot be written");
	return interrupted ? EXIT_INTERRUPTED : code;
}
