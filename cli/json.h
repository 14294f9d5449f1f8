/* SPDX-License-Identifier: MIT
 *
 * json.h - a pull reader over one JSON text in memory, and string escaping for what we write.
 *
 * The caller asks for what it expects ("an object, a key, an integer") and the reader answers from the text: no tree,
 * no allocation, exact 64-bit integers, bounded depth.  So a hostile file cannot inflate into memory, which a tree
 * library cannot promise, and the command needs no package on a bare GPU machine.
 *
 * Every function returns false at the first error and from then on; json_error() has the sentence.
 *
 *     json_begin(&j, '{');
 *     while (json_more(&j, '}'))
 *             json_key(&j, key, sizeof key) && json_int64(&j, &value);
 *     json_end(&j);
 */
#ifndef CLI_JSON_H
#define CLI_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { JSON_MAX_DEPTH = 16 };

struct json {
	const char *text, *at, *end;
	const char *error; /* NULL: no error so far                             */
	bool fresh;        /* just behind '{' or '[', where no comma is wanted  */
};

void json_open(struct json *j, const char *text, size_t size);

bool json_begin(struct json *j, char open); /* '{' or '['                                                           */
bool json_more(struct json *j, char close); /* true: one more member is next; false: `close` was read, or an error  */
bool json_key(struct json *j, char *buf, size_t size);    /* string and ':', unescaped into buf                      */
bool json_string(struct json *j, char *buf, size_t size); /* error when it needs more than size - 1 bytes            */
bool json_int64(struct json *j, int64_t *value);          /* an integer that fits; 1.0 and 1e3 are not integers here */
bool json_skip(struct json *j);                           /* any value, checked, at most JSON_MAX_DEPTH deep         */
bool json_end(struct json *j);                            /* only white space is left                                */

bool json_fail(struct json *j, const char *error); /* for rules of the caller; keeps the first error */
const char *json_error(const struct json *j);
size_t json_position(const struct json *j); /* bytes read so far, for messages */

/* Writes `text` as a JSON string, quotes included. */
void json_put_string(FILE *file, const char *text);

#endif
