#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# The header in every language it promises, the names that the libraries export, and an installed copy used through
# pkg-config.    tests/header.sh [BUILD]
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0 skipped=0

expect() { # expect NAME COMMAND...: the command succeeds
	local name=$1
	shift
	if "$@" >"$tmp/output" 2>&1; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAIL  $name"
		head -12 "$tmp/output" | sed 's/^/      /'
	fi
}

# ---- languages
strict='-Wall -Wextra -Wpedantic -Wconversion -Werror -Iinclude'
for cc in gcc clang; do
	if ! command -v $cc >/dev/null; then
		echo "SKIP: no $cc"; skipped=$((skipped + 1)); continue
	fi
	for std in c11 c17 c2x; do
		# shellcheck disable=SC2086
		expect "header as $std with $cc" $cc -std=$std $strict tests/test_header.c "$build/libflash_mla.so" -o "$tmp/header" \
			-Wl,-rpath,"$PWD/$build"
		expect "run it" "$tmp/header"
	done
done
for cxx in g++ clang++; do
	if ! command -v $cxx >/dev/null || ! echo 'int main(){}' | $cxx -xc++ - -o "$tmp/probe" 2>/dev/null; then
		echo "SKIP: no working $cxx"; skipped=$((skipped + 1)); continue
	fi
	for std in c++11 c++20; do
		# shellcheck disable=SC2086
		expect "header as $std with $cxx" $cxx -std=$std -xc++ $strict tests/test_header.c -xnone "$build/libflash_mla.so" \
			-o "$tmp/header" -Wl,-rpath,"$PWD/$build"
		expect "run it" "$tmp/header"
	done
	expect "examples/decode.c as C++11 with $cxx" $cxx -std=c++11 -xc++ -Iinclude examples/decode.c -xnone \
		"$build/libflash_mla.so" -lm -o "$tmp/example" -Wl,-rpath,"$PWD/$build"
	expect "run it" "$tmp/example"
done

# ---- exported names: those that the header declares, no other
grep -o '\bfmla_[a-z_]*(' include/flash_mla.h | tr -d '(' | sort -u >"$tmp/declared"
# Names followed by a parenthesis in prose that are no functions would break this list: there are none.
nm -D --defined-only "$build/libflash_mla.so" | awk '$2 ~ /[TDBRVWi]/ { sub(/@.*/, "", $3); print $3 }' | sort -u >"$tmp/shared"
nm --defined-only --extern-only "$build/libflash_mla.a" | awk 'NF == 3 { print $3 }' | sort -u >"$tmp/static"
sed -n '/global:/,/local:/s/^\t\(fmla_.*\);/\1/p' src/flash_mla.map | sort -u >"$tmp/map"
sed -i '/^FMLA_/d' "$tmp/shared"
expect "the header declares functions" test -s "$tmp/declared"
expect "shared library exports the header's functions" diff "$tmp/declared" "$tmp/shared"
expect "version script lists the header's functions" diff "$tmp/declared" "$tmp/map"
expect "static library exports the header's functions" diff "$tmp/declared" "$tmp/static"

# ---- nothing prints, exits or aborts; no state of its own that a program could share by accident
nm -u "$build/libflash_mla.a" | grep -wE 'printf|puts|putchar|fprintf|fwrite|stdout|stderr|exit|_exit|abort|__assert_fail' >"$tmp/bad"
expect "no printing, exiting or aborting" test ! -s "$tmp/bad"
objdump -t "$build/libflash_mla.a" | awk '/ O \.(data|bss|tdata|tbss)[.\t]/ && !/ \.data\.rel\.ro/' | grep -v cuda >"$tmp/state"
expect "no writable global data" sh -c '! grep . "$1"' - "$tmp/state"

# ---- installed
expect "make install" make -s install BUILD="$build" PREFIX=/opt/fmla DESTDIR="$tmp/root"
installed=$tmp/root/opt/fmla
for file in include/flash_mla.h lib/libflash_mla.a lib/libflash_mla.so lib/pkgconfig/flash_mla.pc bin/flashmla; do
	expect "installed $file" test -f "$installed/$file"
done
if command -v pkg-config >/dev/null; then
	export PKG_CONFIG_PATH=$installed/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$tmp/root
	# shellcheck disable=SC2046
	expect "pkg-config, shared" gcc examples/decode.c $(pkg-config --cflags --libs flash_mla) -lm -o "$tmp/example"
	expect "run it" env LD_LIBRARY_PATH="$installed/lib" "$tmp/example"
	# shellcheck disable=SC2046
	expect "pkg-config, static" gcc examples/decode.c $(pkg-config --cflags flash_mla) "$installed/lib/libflash_mla.a" \
		$(PKG_CONFIG_SYSROOT_DIR='' pkg-config --static --libs flash_mla | sed 's/-L[^ ]*fmla[^ ]*//; s/-lflash_mla//') -o "$tmp/example"
	expect "run it" "$tmp/example"
else
	echo "SKIP: no pkg-config"; skipped=$((skipped + 1))
fi

echo "header.sh: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
