#!/bin/sh
# SPDX-License-Identifier: MIT
#
# cuda_report.sh [OUT] - what the compiler made of the kernels; needs nvcc, no GPU.
# Compiles every src/cuda/*.cu for sm_90a into OUT (default build/cuda_report) and fails on
#   - a compile error, a register spill, or a stack frame in a decode kernel
#   - C7508 (setmaxnreg ignored) and C7510 - C7520 (wgmma serialised)
#   - a decode kernel whose shared memory exceeds an SM's
#   - a decode kernel without wgmma (HGMMA) or tensor-map loads (UTMALDG)
# and every src/portable/*.cu for the architectures of the portable-cuda backend, and fails on
#   - a compile error, a register spill
#   - a decode kernel without mma.sync and cp.async (a static assertion keeps it within 99 KB of shared memory)
# Prints a line per kernel; the last line is "N passed, N failed".
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/cuda_report}
nvcc=${NVCC:-$(command -v nvcc)}
passed=0
failed=0

if [ -z "$nvcc" ]; then
	echo "SKIP: nvcc is not installed, no kernel was compiled"
	echo "0 passed, 0 failed"
	exit 0
fi

good()
{
	passed=$((passed + 1))
	echo "ok   $*"
}

bad()
{
	failed=$((failed + 1))
	echo "FAIL $*"
}

# One line per kernel of a ptxas -v log: name, stack bytes, spill bytes, registers, static shared memory.
kernels()
{
	awk '
	/Compiling entry function/ { split($0, q, "\047"); name = q[2]; stack = spill = regs = smem = 0 }
	/bytes stack frame/ { stack = $1; spill = $5 + $9 }
	/Used [0-9]+ registers/ {
		for (i = 1; i <= NF; i++) {
			if ($i ~ /^registers/) regs = $(i - 1)
			if ($i ~ /^smem/) smem = $(i - 2)
		}
		if (name != "") print name, stack, spill, regs, smem
		name = ""
	}' "$1"
}

# The part of a listing that belongs to one kernel: SASS sections start with "Function :", PTX ones with ".entry".
uses()
{
	awk -v name="$2" -v what="$3" '
	/Function :/ { inside = ($NF == name) }
	/\.entry/ { inside = (index($0, " " name "(") > 0) }
	inside && $0 ~ what { found = 1 }
	END { exit !found }' "$1"
}

# Dynamic shared memory of a decode kernel, as its launcher asks for it: tiles of KV and q, P of the swapped ones.
dynamic()
{
	rows=$(echo "$1" | sed -n 's/.*swap\([0-9]*\).*/\1/p')
	[ -n "$rows" ] || { echo $((3 * 73728)); return; }
	echo $((2 * (73728 + 1152 * rows + (rows < 8 ? 1024 : 128 * rows))))
}

mkdir -p "$out"
for file in src/cuda/*.cu; do
	base=$out/$(basename "$file" .cu)
	if ! "$nvcc" -Iinclude -Isrc -O3 -std=c++17 -gencode arch=compute_90a,code=sm_90a -Xptxas -v -keep -keep-dir "$out" \
		-c -o "$base.o" "$file" >"$base.log" 2>&1; then
		cat "$base.log"
		bad "$file does not compile"
		continue
	fi
	if grep -E 'C7508|C751[0-9]|C7520' "$base.log"; then
		bad "$file: ptxas ignores setmaxnreg or serialises wgmma"
	else
		good "$file: no wgmma or setmaxnreg warning"
	fi
	listing=$base.ptx
	if command -v cuobjdump >/dev/null; then
		listing=$base.sass
		cuobjdump --dump-sass "$base.o" >"$listing"
	fi
	kernels "$base.log" >"$base.kernels"
	while read -r name stack spill regs smem; do
		line="$name: $regs registers, $smem B static shared memory, stack $stack B, spills $spill B"
		case $name in
		fmla_decode_*)
			if [ "$spill" -gt 0 ] || [ "$stack" -gt 0 ]; then
				bad "$line"
			elif [ $((smem + $(dynamic "$name"))) -gt 232448 ]; then
				bad "$line and $(dynamic "$name") B dynamic: more than the 232448 B of a CTA"
			elif ! uses "$listing" "$name" 'HGMMA|wgmma\.mma_async'; then
				bad "$line; no wgmma in $listing"
			elif ! uses "$listing" "$name" 'UTMALDG|cp\.async\.bulk\.tensor'; then
				bad "$line; no tensor-map load in $listing"
			else
				good "$line; wgmma, tensor-map loads"
			fi
			;;
		*)
			if [ "$spill" -gt 0 ]; then
				bad "$line"
			else
				good "$line"
			fi
			;;
		esac
	done <"$base.kernels"
	[ -s "$base.kernels" ] || bad "$file: the log names no kernel"
done
# ---- portable-cuda: the same PTX for every architecture, see PORTABLE_CUDA in the Makefile
arches='sm_80 sm_86 sm_89 sm_90 sm_100 sm_120'
for file in src/portable/*.cu; do
	base=$out/portable_$(basename "$file" .cu)
	list=$(echo "$arches" | tr ' ' ,)
	[ "$(basename "$file")" = generic.cu ] && older='-gencode arch=compute_75,code=sm_75' || older=
	# shellcheck disable=SC2086
	if ! "$nvcc" -Iinclude -Isrc -O3 -std=c++17 -gencode "arch=compute_80,code=[compute_80,$list]" $older -Xptxas -v \
		-keep -keep-dir "$out" -c -o "$base.o" "$file" >"$base.log" 2>&1; then
		cat "$base.log"
		bad "$file does not compile"
		continue
	fi
	for arch in $arches ${older:+sm_75}; do
		grep -A3 "for '$arch'" "$base.log" >"$base.$arch"
		spills=$(awk '/bytes spill/ { n += $5 + $9 } END { print n + 0 }' "$base.$arch")
		count=$(grep -c 'Compiling entry' "$base.$arch")
		registers=$(grep -o 'Used [0-9]* reg' "$base.$arch" | awk '$2 > n { n = $2 } END { print n }')
		line="$file, $arch: $count kernels of at most $registers registers, spills $spills B"
		if [ "$count" -gt 0 ] && [ "$spills" = 0 ]; then
			good "$line"
		else
			bad "$line"
		fi
	done
done
ptx=$out/decode_mma.ptx
if grep -q 'mma.sync.aligned.m16n8k16' "$ptx" && grep -q 'cp.async.cg.shared' "$ptx"; then
	good "src/portable/decode_mma.cu: mma.sync and cp.async in its PTX"
else
	bad "src/portable/decode_mma.cu: no mma.sync or no cp.async in $ptx"
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
