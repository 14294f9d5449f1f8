/* SPDX-License-Identifier: MIT
 *
 * What every cmocka test here starts with. */
#ifndef FMLA_TESTS_HARNESS_H
#define FMLA_TESTS_HARNESS_H

/* cmocka.h wants these four first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "flash_mla.h"

#include <stdio.h>
#include <string.h>

#define assert_ok(ctx, call)                                                                  \
	do {                                                                                      \
		const fmla_status status_ = (call);                                                   \
		if (status_ != FMLA_OK)                                                               \
			fail_msg("%s: %s: %s", #call, fmla_status_string(status_), fmla_last_error(ctx)); \
	} while (0)

/* All of `words`, separated by '|', are in the sentence. */
static inline void assert_words(const char *what, const char *sentence, const char *words)
{
	char copy[256];
	snprintf(copy, sizeof(copy), "%s", words);
	for (char *word = strtok(copy, "|"); word; word = strtok(NULL, "|"))
		if (!strstr(sentence, word))
			fail_msg("%s: '%s' does not say '%s'", what, sentence, word);
}

#endif
