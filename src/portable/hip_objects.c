/* SPDX-License-Identifier: MIT
 *
 * AMD code objects in the library: what the Makefile compiled, PK_GFX942_FILE and PK_GFX90A_FILE, where it had clang-19. */
#include "hip_objects.h"

#include <stddef.h>

#ifdef PK_GFX942_FILE
#define EMBED(name, file)                      \
	__asm__(".pushsection .rodata\n"           \
	        ".global " #name "\n"              \
	        ".hidden " #name "\n"              \
	        ".type " #name ", %object\n"       \
	        ".balign 4096\n" #name ":\n"       \
	        ".incbin \"" file "\"\n"           \
	        ".size " #name ", . - " #name "\n" \
	        ".popsection\n");                  \
	extern const char name[] __attribute__((visibility("hidden")))

EMBED(fmla_gfx942_object, PK_GFX942_FILE);
EMBED(fmla_gfx90a_object, PK_GFX90A_FILE);

const struct hip_object hip_objects[] = {{"gfx942", fmla_gfx942_object}, {"gfx90a", fmla_gfx90a_object}, {NULL, NULL}};
#else
const struct hip_object hip_objects[] = {{NULL, NULL}};
#endif
