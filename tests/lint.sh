#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# `make lint`: format, warnings as errors with gcc and clang, cppcheck, and the small rules of CONTRIBUTING.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
failed=0
mkdir -p build

check() { # check NAME COMMAND...: the command succeeds
	local name=$1
	shift
	if "$@" >build/lint.log 2>&1; then
		echo "ok    $name"
	else
		failed=$((failed + 1))
		echo "FAIL  $name"
		head -40 build/lint.log | sed 's/^/      /'
	fi
}

if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
	mapfile -t files < <(git ls-files --cached --others --exclude-standard)
else
	mapfile -t files < <(find . -type f -not -path './build/*' -not -path './.git/*' | sed 's|^\./||')
fi
mapfile -t sources < <(printf '%s\n' "${files[@]}" | grep -E '\.(c|h|cu|cuh)$')
mapfile -t scripts < <(printf '%s\n' "${files[@]}" | grep -E '\.sh$|^\.ci/run$')
mapfile -t texts < <(printf '%s\n' "${files[@]}" | grep -E '\.(c|h|cu|cuh|sh|py|md|toml)$|^Makefile$|^\.ci/run$' | grep -v '^tests/lint.sh$')

if need clang-format clang-format; then
	check 'clang-format' clang-format --dry-run --Werror "${sources[@]}"
fi
need cmocka.h libcmocka-dev
check 'no warnings, gcc' make -s -j"$(nproc)" CUDA=0 BUILD=build/lint EXTRA_CFLAGS=-Werror lib cli tests
if need clang clang; then
	check 'no warnings, clang' make -s -j"$(nproc)" CC=clang CUDA=0 OPENMP=0 BUILD=build/lint-clang \
		EXTRA_CFLAGS=-Werror lib cli tests
fi
if need cppcheck cppcheck; then
	check 'cppcheck' cppcheck --quiet --error-exitcode=1 --std=c11 --enable=warning,performance,portability \
		--inline-suppr --suppress=missingIncludeSystem --suppressions-list=tests/cppcheck.txt -D__x86_64__ -D_GNU_SOURCE \
		-Iinclude -Isrc -Itests -Icli src cli tests examples
fi
if need shellcheck shellcheck; then
	check 'shellcheck' shellcheck -S warning "${scripts[@]}"
fi

missing_spdx() {
	local f bad=0
	for f in "${sources[@]}" "${scripts[@]}"; do
		head -3 "$f" | grep -q 'SPDX-License-Identifier: MIT' || { echo "$f has no SPDX line"; bad=1; }
	done
	return $bad
}
too_long() { awk 'length > 130 { print FILENAME ": " FNR ": " length " columns"; bad = 1 } END { exit bad }' "${sources[@]}"; }
check 'SPDX line in every source' missing_spdx
check 'no leftovers' sh -c '! grep -nwE "TODO|FIXME|XXX|HACK" "$@"' - "${texts[@]}"
check 'no trailing blanks' sh -c '! grep -nE "[ 	]+$" "$@"' - "${texts[@]}"
check 'lines of at most 130 columns' too_long

echo "lint: $failed failed"
[ $failed = 0 ]
