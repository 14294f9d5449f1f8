#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Plants the five bugs that kernels of this kind get into a copy of the sources, and expects each runner that can see a
# bug to see it: emulator (three orders), emulator with ASan, PoCL, oclgrind.  A runner that is not here is a SKIP line.
# Then some bugs of decode_mma.cu, which the emulator of its instructions must see.
#     tests/portable_mutants.sh
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
need cmocka.h libcmocka-dev || exit 1
tree=$PWD/build/portable_mutants
passed=0 failed=0
rm -rf "$tree"
mkdir -p "$tree"
tar -c --exclude=./build --exclude=./.git . | tar -x -C "$tree"
mkdir -p "$tree/pocl" "$tree/oclgrind"

pocl=0 oclgrind=0
if need libOpenCL.so.1 ocl-icd-libopencl1; then
	need libpocl-devices-pthread.so pocl-opencl-icd && pocl=1
	need liboclgrind-rt-icd.so oclgrind && oclgrind=1
fi
find / -xdev -name 'libpocl.so.*' -print -quit 2>/dev/null >"$tree/pocl/v.icd"
find / -xdev -name liboclgrind-rt-icd.so -print -quit 2>/dev/null >"$tree/oclgrind/v.icd"

build() {
	make -s -C "$tree" -j"$(nproc)" CUDA=0 OPT=-O1 BUILD=build/plain build/plain/tests/test_portable build/plain/flashmla &&
		make -s -C "$tree" -j"$(nproc)" CUDA=0 OPT=-O1 BUILD=build/asan EXTRA_CFLAGS=-fsanitize=address build/asan/tests/test_portable
}

# Each fails when it sees something wrong.
run_emulator() { timeout 120 "$tree/build/plain/tests/test_portable" '* | h_q=3 s_k=65'; }
run_mma() { timeout 240 "$tree/build/plain/tests/test_portable" 'mma | *page=*'; }
run_splits() { timeout 240 "$tree/build/plain/tests/test_portable" 'several, *'; } # split requests, even and uneven batches
run_pieces() { timeout 240 "$tree/build/plain/tests/test_portable" 'random | s_k=1000'; } # combine of merge.h
run_asan() { ASAN_OPTIONS=detect_stack_use_after_return=0 timeout 240 "$tree/build/asan/tests/test_portable" '* | h_q=3 s_k=65'; }
run_opencl() { # FOLDER-WITH-ICD
	OCL_ICD_VENDORS=$tree/$1 FMLA_PROGRAM_CACHE=off POCL_KERNEL_CACHE=0 OCLGRIND_DATA_RACES=1 \
		OCLGRIND_LOCAL_MEM_SIZE=65536 OCLGRIND_LOG=$tree/races \
		timeout 240 "$tree/build/plain/flashmla" check --backend opencl --case 'h_q=3 s_k=65'
}
run_pocl() { run_opencl pocl; }
run_oclgrind() {
	rm -f "$tree/races"
	run_opencl oclgrind && [ ! -s "$tree/races" ]
}

# runner NAME: 0 when it is here
here() {
	case $1 in
	emulator | asan | mma | splits | pieces) return 0 ;;
	pocl) [ $pocl = 1 ] ;;
	oclgrind) [ $oclgrind = 1 ] ;;
	esac
}

expect() { # expect MUTANT RUNNER pass|fail
	here "$2" || { echo "SKIP: $2 is not here: $1"; return; }
	if "run_$2" >"$tree/log" 2>&1; then result=pass; else result=fail; fi
	if [ $result = "$3" ]; then
		passed=$((passed + 1))
		echo "ok   $1: $2 says $result"
	else
		failed=$((failed + 1))
		tail -5 "$tree/log"
		echo "FAIL $1: $2 says $result, must be $3"
	fi
}

kernel=src/portable/decode.h
mutant() { # mutant NAME OLD NEW RUNNER...: the first line with OLD in $kernel; every runner named must fail
	local name=$1 old=$2 new=$3 runner
	shift 3
	if ! OLD=$old NEW=$new awk '
		BEGIN { old = ENVIRON["OLD"]; new = ENVIRON["NEW"] }
		!done && (at = index($0, old)) { $0 = substr($0, 1, at - 1) new substr($0, at + length(old)); done = 1 }
		{ print }
		END { exit !done }' "$kernel" >"$tree/$kernel"; then
		failed=$((failed + 1))
		echo "FAIL $name: the line to change is gone: $old"
		return
	fi
	build >"$tree/log" 2>&1 || { failed=$((failed + 1)); tail "$tree/log"; echo "FAIL $name does not compile"; return; }
	for runner; do
		expect "$name" "$runner" fail
	done
	cp "$kernel" "$tree/$kernel"
}

build >"$tree/log" 2>&1 || { tail "$tree/log"; exit 1; }
for runner in emulator asan pocl oclgrind mma splits pieces; do
	expect 'no bug' $runner pass
done
mutant 'A, no barrier before K is overwritten' 'PK_SYNC(); /* K, S, P and scaling are free' '; /*' emulator asan oclgrind
mutant 'B, no barrier after P' 'PK_SYNC(); /* P is there */' ';' emulator asan pocl oclgrind
mutant 'C, reads past the end of Q' 'w < words; w += PK_TILE_KEYS)' 'w <= words; w += PK_TILE_KEYS)' emulator asan oclgrind
mutant 'D, writes past a local array' 'scaling[my_row] = pk_settle' 'scaling[my_row + (my_row == PK_TILE_ROWS - 1 || rows == 3 ? PK_TILE_ROWS : 0)] = pk_settle' emulator asan oclgrind
mutant 'E, a barrier in a branch' 'PK_SYNC(); /* P is there */' 'if (t < 100) PK_SYNC();' emulator asan oclgrind

# decode_mma.cu: only the plain build of the emulator
build() { make -s -C "$tree" -j"$(nproc)" CUDA=0 OPT=-O1 BUILD=build/plain build/plain/tests/test_portable; }
kernel=src/portable/decode_mma.cu
mutant 'mma, waits for one tile less' 'copy_wait<T::SLOTS - 2>()' 'copy_wait<T::SLOTS - 1>()' mma
mutant 'mma, no barrier before a slot is filled' '__syncthreads(); /* the next tile is there' '; /*' mma
mutant 'mma, no barrier before P is read' 'moved = __syncthreads_or(softmax<T, FP16>(x, r, &sh, c, p.scale_log2, start + T::KEYS, P, rg, dg));' \
	'moved = softmax<T, FP16>(x, r, &sh, c, p.scale_log2, start + T::KEYS, P, rg, dg);' mma
mutant 'mma, no barrier in the exchange' 'barrier_of(1 + rg, 32 * T::DG);' '' mma
kernel=src/portable/mma_tile.cuh
mutant 'mma, a slot is filled again too early' 'load_tile<T, PLAIN>(p, g, sh, c, start, slot, page);' 'load_tile<T, PLAIN>(p, g, sh, c, start, slot + T::SLOT_BYTES, page);' mma
mutant 'mma, keys past the end are read' 'start) * LINES;' 'start + 1) * LINES;' splits
kernel=src/portable/mma_combine.cuh
mutant 'mma, combine does not wait for the team' 'barrier_of(1 + warp / TEAM, 32 * TEAM); /* the team' '; /* the team' mma
mutant 'mma, combine adds the team without its weights' 'add_weighed(all.x[0], values[warp + w][lane], weight)' 'add_weighed(all.x[0], values[warp + w][lane], 1)' mma
kernel=src/portable/mma_plan.cuh
mutant 'plan in a CTA, no barrier after the sums' '__syncthreads(); /* the sums are there' '; /*' splits
mutant 'plan in a CTA, the list names the wrong part' 'pieces.first}' 'pieces.first + 1}' splits
mutant 'plan in a CTA, the first part starts late' 'cut[0] = {0, 0}' 'cut[0] = {0, 1}' splits
kernel=src/portable/merge.h
mutant 'combine, lanes added without their weights' 'PK_EXP2(tops[l] - base), values' 'PK_EXP2(tops[leader] - base), values' pieces
mutant 'combine, no barrier before the lanes are added' 'PK_SYNC();' ';' pieces

echo "$passed passed, $failed failed"
[ $failed = 0 ]
