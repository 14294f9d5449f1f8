#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# `make check`: every test of the CPU side, a line each, the closing lines of the test programs, and what was skipped and
# why.  Logs lie in build/check.    tests/check.sh [STAGE...]     stages: unit cli header portable asan tsan valgrind fuzz nomp
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
jobs=$(nproc)
logs=build/check
stages=${*:-unit cli header portable asan tsan valgrind fuzz nomp}
failed=0 skipped=0
mkdir -p $logs
rm -f $logs/*.log

skip() { skipped=$((skipped + 1)); }

# run NAME COMMAND...: a line with the result, the time and the last line of the output; the log's end on failure
run() {
	local name=$1 log=$logs/${1//[^a-z0-9]/_}.log start=$SECONDS
	shift
	if "$@" >"$log" 2>&1; then
		printf 'ok    %-34s %4d s  %s\n' "$name" $((SECONDS - start)) "$(grep -v '^$' "$log" | tail -1 | cut -c1-90)"
		grep -h '^SKIP' "$log" | sort -u
	else
		failed=$((failed + 1))
		printf 'FAIL  %-34s %4d s  see %s\n' "$name" $((SECONDS - start)) "$log"
		grep -vE '^\[ +(RUN|OK) ' "$log" | tail -25 | sed 's/^/      /'
	fi
}

build() { # build FOLDER MAKE-ARGUMENTS...
	local folder=$1
	shift
	run "build $folder" make -s -j"$jobs" CUDA=0 BUILD="$folder" "$@"
}

programs() { # programs FOLDER [PATTERN]: every test program in it; PATTERN: for test_decode
	local program
	for program in "$1"/tests/test_*; do
		[ -x "$program" ] || continue
		if [ "${program##*/}" = test_decode ] && [ -n "${2:-}" ]; then
			run "$1 test_decode $2" "$program" "$2"
		else
			run "$1 ${program##*/}" "$program"
		fi
	done
}

stage() { case " $stages " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

need cmocka.h libcmocka-dev || { echo 'make check needs cmocka'; exit 1; }
need g++ g++ || { echo 'SKIP: test_portable does not run'; skip; }

if stage unit; then
	build build/cpu tests
	programs build/cpu
	for example in build/cpu/examples/*; do
		[ -x "$example" ] && run "$example" "$example"
	done
fi
if stage cli; then
	build build/cpu lib cli
	run 'cli.sh' tests/cli.sh build/cpu
fi
if stage header; then
	need g++ g++ || skip
	need pkg-config pkg-config || skip
	build build/cpu lib cli
	run 'header.sh' tests/header.sh build/cpu
fi
if stage portable; then
	build build/cpu lib cli
	run 'portable.sh' tests/portable.sh build/cpu
	run 'portable_mutants.sh' tests/portable_mutants.sh
	run 'hip_report.sh' tests/hip_report.sh
fi
if stage nomp; then # complete without OpenMP, and without optimisation
	build build/nomp OPENMP=0 OPT=-O0 EXTRA_CFLAGS=-Wno-sign-conversion build/nomp/tests/test_check build/nomp/tests/test_context build/nomp/tests/test_merge build/nomp/tests/test_append
	programs build/nomp
fi
if stage asan; then
	export UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=detect_stack_use_after_return=0 # test_portable switches stacks
	build build/asan OPT='-O2 -g' EXTRA_CFLAGS='-fsanitize=address,undefined -fno-sanitize-recover=undefined' tests
	programs build/asan '*x[23] *'
	run 'build/asan cli.sh' tests/cli.sh build/asan
fi
if stage tsan; then
	# ThreadSanitizer does not see libgomp's barriers; with clang's OpenMP run-time, archer tells it.
	if need clang clang && need omp.h libomp-dev && need libarcher.so libomp-dev; then
		archer=$(find / -xdev -name libarcher.so -print -quit 2>/dev/null)
		export OMP_TOOL_LIBRARIES=$archer TSAN_OPTIONS='ignore_noninstrumented_modules=1 exitcode=66'
		build build/tsan CC=clang OPT='-O1 -g' EXTRA_CFLAGS=-fsanitize=thread build/tsan/tests/test_decode \
			build/tsan/tests/test_properties build/tsan/tests/test_merge
		run 'archer is in use' sh -c 'ARCHER_OPTIONS=verbose=1 build/tsan/tests/test_merge 2>&1 | grep "Archer detected"'
		run 'build/tsan test_properties' build/tsan/tests/test_properties
		run 'build/tsan test_merge' build/tsan/tests/test_merge
		run 'build/tsan test_decode' build/tsan/tests/test_decode '*x[37] *s_k=[235]00*'
		unset OMP_TOOL_LIBRARIES TSAN_OPTIONS
	else
		skip
	fi
fi
if stage valgrind; then
	if need valgrind valgrind; then
		# valgrind knows no AMX and little AVX-512, so the example runs on the AVX2 variant at most
		build build/cpu examples
		run 'valgrind examples/decode' env FMLA_CPU=avx2 valgrind -q --error-exitcode=9 --leak-check=full \
			--errors-for-leak-kinds=definite --show-leak-kinds=definite build/cpu/examples/decode
		run 'valgrind examples/decode ref' env FMLA_CPU=ref valgrind -q --error-exitcode=9 --leak-check=full \
			--errors-for-leak-kinds=definite --show-leak-kinds=definite build/cpu/examples/decode
	else
		skip
	fi
fi
if stage fuzz; then
	if need clang clang; then
		run 'fuzz' tests/fuzz.sh 10
	else
		skip
	fi
fi

echo
grep -hE '^\[  (PASSED|FAILED)  \] [0-9]+ test' $logs/*.log | awk '{ n[$2] += $4 } END { for (k in n) print "[  " k "  ] " n[k] " test(s)." }'
echo "check: $failed failed, $skipped stages or tools skipped, $SECONDS s"
[ $failed = 0 ]
