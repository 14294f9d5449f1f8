#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# hip_report.sh [OUT] - what clang makes of the portable kernels for AMD's gfx90a and gfx942; needs no ROCm, no GPU.
# Fails on a compile error, a register spill or scratch memory, more than 64 KiB of shared memory, or when a decode_wave
# kernel does not have its MFMA instructions.  The last line is "N passed, N failed".
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
out=${1:-build/hip_report}
passed=0 failed=0
mfma=68 # two types; 18 for Q K^T and 2 * 8 for P V each
mkdir -p "$out"

good() { passed=$((passed + 1)); echo "ok   $*"; }
bad() { failed=$((failed + 1)); echo "FAIL $*"; }

report() { # report CLANG LLVM-SUFFIX ARCH
	local object=$out/$3.co notes=$out/$3.notes count line
	if ! "$1" -x hip --offload-arch="$3" --cuda-device-only --no-gpu-bundle-output -nogpuinc -nogpulib -O3 -DPK_HIP_BARE \
		-DPK_WAVES -Isrc src/portable/kernels.h -o "$object" 2>"$out/$3.log"; then
		head -20 "$out/$3.log"
		bad "$1, $3: does not compile"
		return
	fi
	count=$("llvm-objdump$2" -d "$object" | grep -c v_mfma)
	if [ "$count" = $mfma ]; then good "$1, $3: $count MFMA"; else bad "$1, $3: $count MFMA, must be $mfma"; fi
	"llvm-readelf$2" --notes "$object" >"$notes"
	# one line per kernel: name, shared memory, scratch, registers, spills
	awk '/\.group_segment_fixed_size:/ { shared = $2 } / \.name: +fmla_/ { name = $2 } /\.private_segment_fixed_size:/ { scratch = $2 }
		/\.vgpr_count:/ { registers = $2 } /\.vgpr_spill_count:/ { print name, shared, scratch, registers, $2 }' "$notes" >"$out/$3.kernels"
	[ "$(wc -l <"$out/$3.kernels")" = 9 ] || bad "$1, $3: $(wc -l <"$out/$3.kernels") kernels, must be 9"
	while read -r name shared scratch registers spills; do
		line="$3 $name: $registers VGPR, $shared B shared, $scratch B scratch, $spills spills"
		if [ "$shared" -le 65536 ] && [ "$scratch" = 0 ] && [ "$spills" = 0 ]; then good "$line"; else bad "$line"; fi
	done <"$out/$3.kernels"
}

if need clang-19 clang-19 && need ld.lld-19 lld-19 && need llvm-objdump-19 llvm-19; then
	report clang-19 -19 gfx90a
	report clang-19 -19 gfx942
elif need clang-14 clang-14 && need ld.lld-14 lld-14 && need llvm-objdump-14 llvm-14; then
	report clang-14 -14 gfx90a
	echo 'SKIP: gfx942 needs clang-17 or newer'
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ]
