#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# libFuzzer with ASan and UBSan on every target tests/fuzz_*.c.    tests/fuzz.sh SECONDS [TARGET...]
# Inputs that were worth keeping lie in build/fuzz/corpus/TARGET; a crash leaves its input in build/fuzz and fails.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
seconds=${1:-60}
shift $(($# > 0))
[ $# = 0 ] && set -- tests/fuzz_*.c
need clang clang || exit 1
sanitize=fuzzer-no-link,address,undefined
make -s -j"$(nproc)" CC=clang CUDA=0 OPENMP=0 BUILD=build/fuzz OPT='-O1 -g' \
	EXTRA_CFLAGS="-fsanitize=$sanitize -fno-sanitize-recover=undefined" fuzzers || exit 1
status=0
for target in "$@"; do
	name=$(basename "$target" .c)
	mkdir -p "build/fuzz/corpus/$name"
	seeds=()
	[ -d "tests/corpus/$name" ] && seeds=("tests/corpus/$name")
	echo "== $name, $seconds s"
	build/fuzz/tests/"$name" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -close_fd_mask=1 \
		-artifact_prefix="build/fuzz/$name-" -print_final_stats=1 "build/fuzz/corpus/$name" ${seeds[@]+"${seeds[@]}"} \
		>"build/fuzz/$name.log" 2>&1
	result=$?
	grep -E 'cov: ' "build/fuzz/$name.log" | tail -1
	grep -E 'number_of_executed_units|slowest' "build/fuzz/$name.log"
	if [ $result != 0 ]; then
		status=1
		echo "FAIL: $name"
		grep -vE '^#' "build/fuzz/$name.log" | tail -40
	fi
done
[ $status = 0 ] && echo "fuzz: $seconds s a target, nothing found"
exit $status
