#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# The portable kernels through the real OpenCL path: the whole case table on PoCL, the program cache, and short cases
# under oclgrind, which finds data races and invalid accesses.    tests/portable.sh [BUILD]
# Installs what it needs where it may; what is missing is named on a SKIP line.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
build=${1:-build/cpu}
work=$build/portable
failed=0 passed=0
rm -rf "$work"
mkdir -p "$work/icd"

good() { passed=$((passed + 1)); echo "ok   $*"; }
bad() { failed=$((failed + 1)); echo "FAIL $*"; }

flashmla=$build/flashmla
export FMLA_PROGRAM_CACHE=off POCL_CACHE_DIR=$PWD/$work/pocl
packages='pocl-opencl-icd ocl-icd-libopencl1'

# ---- the whole table on PoCL
if need libOpenCL.so.1 ocl-icd-libopencl1 && need libpocl-devices-pthread.so pocl-opencl-icd; then
	find / -xdev -name 'libpocl.so.*' -print -quit 2>/dev/null >"$work/icd/pocl.icd"
	export OCL_ICD_VENDORS=$PWD/$work/icd
	if $flashmla check --backend opencl >"$work/table.log" 2>&1; then
		good "PoCL: $(tail -1 "$work/table.log")"
	else
		tail -5 "$work/table.log"
		bad 'PoCL: the case table'
	fi
	if $flashmla check --backend opencl --random 40 --seed 100 >"$work/random.log" 2>&1; then
		good "PoCL, random cases: $(tail -1 "$work/random.log")"
	else
		tail -5 "$work/random.log"
		bad 'PoCL: random cases'
	fi

	# The cache: a program is kept under a hash, found again, and never believed when it was touched.
	cache=$work/cache
	one() { FMLA_PROGRAM_CACHE=$PWD/$cache $flashmla check --backend opencl --case 's_k=65' >"$work/cache.log" 2>&1; }
	mkdir -m 700 "$cache"
	if one && [ "$(find "$cache" -type f -name 'opencl-????????????????.bin' | wc -l)" = 1 ]; then
		good 'cache: a program is kept'
	else
		bad 'cache: no program was kept'
	fi
	file=$(find "$cache" -type f -print -quit)
	before=$(stat -c %i "$file")
	one && [ "$(stat -c %i "$file")" = "$before" ] && good 'cache: it is used again' || bad 'cache: it was compiled again'
	printf 'x' | dd of="$file" bs=1 seek=5000 conv=notrunc 2>/dev/null
	one && [ "$(stat -c %i "$file")" != "$before" ] && good 'cache: a damaged file is replaced' || bad 'cache: damage goes unseen'
	truncate -s 100 "$file"
	one && [ "$(stat -c %s "$file")" -gt 100 ] && good 'cache: a short file is replaced' || bad 'cache: a short file is kept'
	rm -f "$file"
	chmod 777 "$cache"
	one && [ -z "$(ls "$cache")" ] && good 'cache: not in a folder that others may write' || bad 'cache: a shared folder is used'
	rm -rf "$cache"
	one && [ -d "$cache" ] && good 'cache: the folder is made' || bad 'cache: the folder is not made'
else
	echo "SKIP: PoCL: the OpenCL path did not run ($packages)"
fi

# ---- short cases under oclgrind
if need libOpenCL.so.1 ocl-icd-libopencl1 && need liboclgrind-rt-icd.so oclgrind; then
	find / -xdev -name liboclgrind-rt-icd.so -print -quit 2>/dev/null >"$work/icd/pocl.icd"
	for case in 's_k=40 h_q=3 sink=1' 'b=2 varlen=1 s_k=66 dtype=fp16 page=16' 's_k=200 h_q=17 s_q=2 window=70'; do
		log=$work/oclgrind.log
		rm -f "$log.errors"
		if env OCL_ICD_VENDORS="$PWD/$work/icd" OCLGRIND_DATA_RACES=1 OCLGRIND_CHECK_API=1 OCLGRIND_LOCAL_MEM_SIZE=65536 \
			OCLGRIND_LOG="$PWD/$log.errors" $flashmla check --backend opencl --case "$case" >"$log" 2>&1 &&
			grep -q 'Oclgrind Simulator' "$log" && [ ! -s "$log.errors" ]; then
			good "oclgrind: $case"
		else
			head -5 "$log.errors"
			tail -5 "$log"
			bad "oclgrind: $case"
		fi
	done
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ]
