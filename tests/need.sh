# shellcheck shell=bash
# SPDX-License-Identifier: MIT
#
# Sourced by the test scripts: need COMMAND|HEADER PACKAGE...  makes a tool or header available, with apt-get where that is
# possible, and otherwise says what is missing and returns 1.
need_updated=0

have() {
	case $1 in
	*.h) echo "#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <$1>" | ${CC:-cc} -E - >/dev/null 2>&1 ;;
	*.so | *.so.[0-9]*) [ -n "$(find / -xdev -name "$1" -path '*/lib/*' -print -quit 2>/dev/null)" ] ;;
	*) command -v "$1" >/dev/null 2>&1 ;;
	esac
}

need() {
	local what=$1
	shift
	have "$what" && return 0
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		echo "installing $*"
		[ "$need_updated" = 1 ] || apt-get -qq update >/dev/null 2>&1
		need_updated=1
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null 2>&1
		have "$what" && return 0
	fi
	echo "SKIP: $what is missing; on Debian it is in: $*"
	return 1
}
