#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# `make coverage`: which lines of the host code in src/ the tests run, by gcov; fails below 90 %.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
need cmocka.h libcmocka-dev || exit 1
build=build/coverage
make -s -j"$(nproc)" CUDA=0 BUILD=$build OPT='-O1 -g' EXTRA_CFLAGS='--coverage -fprofile-update=single' tests || exit 1
find $build -name '*.gcda' -delete
rm -f $build/tests/*.log
for program in $build/tests/test_*; do
	pattern=()
	[ "${program##*/}" = test_decode ] && pattern=('*x[23] | *s_[kq]=[0-9]*')
	"$program" ${pattern[@]+"${pattern[@]}"} >"$program.log" 2>&1 || { echo "FAIL: $program"; tail -5 "$program.log"; exit 1; }
done
[ -x $build/flashmla ] && { tests/cli.sh $build >$build/cli.log 2>&1 || { echo 'FAIL: cli.sh'; tail -5 $build/cli.log; exit 1; }; }

# The OpenCL backend, on PoCL: a program compiled, the same from the cache, one case of each kind.
work=$PWD/$build/opencl
rm -rf "$work"
mkdir -p "$work/icd"
if need libOpenCL.so.1 ocl-icd-libopencl1 && need libpocl-devices-pthread.so pocl-opencl-icd; then
	find / -xdev -name 'libpocl.so.*' -print -quit 2>/dev/null >"$work/icd/pocl.icd"
	mkdir -m 700 "$work/programs"
	export OCL_ICD_VENDORS=$work/icd POCL_CACHE_DIR=$work/pocl FMLA_PROGRAM_CACHE=$work/programs
	for run in compiled cached; do
		$build/flashmla check --backend opencl --case 's_k=65' >"$work/$run.log" 2>&1 || { echo "FAIL: OpenCL, $run"; tail -5 "$work/$run.log"; exit 1; }
	done
fi
find $build/obj/src -name '*.gcda' -exec gcov -n -o {} {} \; 2>/dev/null | awk '
	/^File .src\// { file = $2; gsub(/\047/, "", file) }
	/^Lines executed:/ && file != "" {
		split($0, x, /[:% ]+/)
		lines = x[5]; ran = x[3] / 100 * lines
		if (ran > best[file]) best[file] = ran
		if (lines > size[file]) size[file] = lines
		file = ""
	}
	END {
		for (f in size) { printf "%-28s %5.1f %% of %4d lines\n", f, 100 * best[f] / size[f], size[f] | "sort"; all += size[f]; run += best[f] }
		close("sort")
		printf "coverage: %.1f %% of %d lines of src/\n", 100 * run / all, all
		exit 100 * run / all < 90
	}'
