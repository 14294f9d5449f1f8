/* SPDX-License-Identifier: MIT */
#include "program_cache.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_PATH = 1024, MOST_BYTES = 256 << 20 };

/* The start of a file; behind it the key and the program. */
struct header {
	char magic[8];
	uint64_t key_bytes, bytes, hash;
};
static const char magic[8] = "FMLACL1";

uint64_t cache_hash(const void *data, size_t bytes)
{
	const unsigned char *c = data;
	uint64_t h = 0xcbf29ce484222325u;
	for (size_t i = 0; i < bytes; i++)
		h = (h ^ c[i]) * 0x100000001b3u;
	return h;
}

static bool only_ours(const struct stat *s)
{
	return s->st_uid == geteuid() && (s->st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

static bool usable_folder(const char *path)
{
	struct stat s;
	return (mkdir(path, 0700) == 0 || access(path, F_OK) == 0) && stat(path, &s) == 0 && S_ISDIR(s.st_mode) &&
	       only_ours(&s);
}

static bool fits(int length)
{
	return length > 0 && length < MOST_PATH;
}

/* The folder, made when it is not there; false: no cache. */
static bool find_folder(char folder[MOST_PATH])
{
	const char *own = getenv("FMLA_PROGRAM_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	if (own && *own)
		return strcmp(own, "off") != 0 && fits(snprintf(folder, MOST_PATH, "%s", own)) && usable_folder(folder);
	if (xdg && *xdg == '/') {
		if (!fits(snprintf(folder, MOST_PATH, "%s", xdg)))
			return false;
	} else if (!home || *home != '/' || !fits(snprintf(folder, MOST_PATH, "%s/.cache", home))) {
		return false;
	}
	if (!usable_folder(folder))
		return false;
	const size_t used = strlen(folder);
	return fits(snprintf(folder + used, MOST_PATH - used, "/flash_mla") + (int)used) && usable_folder(folder);
}

bool cache_is_on(void)
{
	char folder[MOST_PATH];
	return find_folder(folder);
}

static bool find_file(const char *key, char path[MOST_PATH])
{
	char folder[MOST_PATH];
	return find_folder(folder) && fits(snprintf(path, MOST_PATH, "%.900s/opencl-%016llx.bin", folder,
	                                            (unsigned long long)cache_hash(key, strlen(key))));
}

static bool read_all(int fd, void *to, size_t bytes)
{
	for (size_t at = 0; at < bytes;) {
		const ssize_t n = read(fd, (char *)to + at, bytes - at);
		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	return true;
}

static bool write_all(int fd, const void *from, size_t bytes)
{
	for (size_t at = 0; at < bytes;) {
		const ssize_t n = write(fd, (const char *)from + at, bytes - at);
		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	return true;
}

static unsigned char *read_program(int fd, const char *key, size_t *bytes)
{
	struct stat s;
	struct header h;
	if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode) || !only_ours(&s) || !read_all(fd, &h, sizeof(h)) ||
	    memcmp(h.magic, magic, sizeof(magic)) != 0 || h.key_bytes != strlen(key) || h.bytes == 0 ||
	    h.bytes > MOST_BYTES || (uint64_t)s.st_size != sizeof(h) + h.key_bytes + h.bytes)
		return NULL;
	char *stored_key = malloc((size_t)h.key_bytes + 1);
	unsigned char *program = malloc((size_t)h.bytes);
	const bool good = stored_key && program && read_all(fd, stored_key, (size_t)h.key_bytes) &&
	                  memcmp(stored_key, key, (size_t)h.key_bytes) == 0 && read_all(fd, program, (size_t)h.bytes) &&
	                  cache_hash(program, (size_t)h.bytes) == h.hash;
	free(stored_key);
	if (!good) {
		free(program);
		return NULL;
	}
	*bytes = (size_t)h.bytes;
	return program;
}

unsigned char *cache_load(const char *key, size_t *bytes)
{
	char path[MOST_PATH];
	if (!find_file(key, path))
		return NULL;
	const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return NULL;
	unsigned char *program = read_program(fd, key, bytes);
	close(fd);
	return program;
}

void cache_store(const char *key, const unsigned char *program, size_t bytes)
{
	char path[MOST_PATH], fresh[MOST_PATH + 16];
	if (bytes > MOST_BYTES || !find_file(key, path))
		return;
	snprintf(fresh, sizeof(fresh), "%s.XXXXXX", path);
	const int fd = mkostemp(fresh, O_CLOEXEC); /* mode 0600 */
	if (fd < 0)
		return;
	struct header h = {.key_bytes = strlen(key), .bytes = bytes, .hash = cache_hash(program, bytes)};
	memcpy(h.magic, magic, sizeof(magic));
	const bool whole =
	    write_all(fd, &h, sizeof(h)) && write_all(fd, key, (size_t)h.key_bytes) && write_all(fd, program, bytes);
	if (close(fd) != 0 || !whole || rename(fresh, path) != 0)
		unlink(fresh);
}
