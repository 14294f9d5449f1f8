#!/bin/sh
# SPDX-License-Identifier: MIT
#
# run.sh [BUILD] - what `make check-gpu` does once BUILD/check_gpu is built: all GPU tests with each CUDA backend, then the
# brief ones under each tool of compute-sanitizer, then the case table through OpenCL where the driver has it.  Last line: "N passed, N failed"; fails when something failed or nothing ran.
build=${1:-build}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0

# Adds the figures of the last line of $log.
count()
{
	last=$(tail -n 1 "$log")
	p=$(echo "$last" | sed -n 's/.*\<\([0-9][0-9]*\) passed.*/\1/p')
	f=$(echo "$last" | sed -n 's/.*\<\([0-9][0-9]*\) failed.*/\1/p')
	passed=$((passed + ${p:-0}))
	failed=$((failed + ${f:-1})) # no such line: the program died
}

if [ ! -x "$build/check_gpu" ]; then
	echo "SKIP: $build/check_gpu is not built (no nvcc, or CUDA=0): no GPU test ran"
	echo "0 passed, 0 failed"
	exit 1
fi

for backend in cuda portable-cuda; do
	echo "backend $backend"
	"$build/check_gpu" --backend $backend >"$log" 2>&1
	status=$?
	cat "$log"
	count
	[ $status -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
done

if ! command -v compute-sanitizer >/dev/null; then
	echo "SKIP: compute-sanitizer is not installed: memcheck, racecheck, synccheck and initcheck did not run"
elif [ "$passed" -gt 0 ]; then
	for tool in memcheck racecheck synccheck initcheck; do
		for backend in cuda portable-cuda; do
			if compute-sanitizer --tool $tool --error-exitcode 9 "$build/check_gpu" --backend $backend --brief >"$log" 2>&1; then
				echo "ok   compute-sanitizer $tool, $backend"
				passed=$((passed + 1))
			elif grep -q "Device not supported" "$log"; then
				echo "SKIP: compute-sanitizer $tool does not support this device"
			else
				tail -n 40 "$log"
				echo "FAIL compute-sanitizer $tool, $backend"
				failed=$((failed + 1))
			fi
		done
	done
fi

# NVIDIA's driver brings an OpenCL that is often not registered: name it, unless the caller named another.
vendors=$(mktemp -d)
echo libnvidia-opencl.so.1 >"$vendors/nvidia.icd"
OCL_ICD_VENDORS=${OCL_ICD_VENDORS:-$vendors} FMLA_PROGRAM_CACHE=off "$build/flashmla" check --backend opencl >"$log" 2>&1
status=$?
tail -n 5 "$log"
rm -r "$vendors"
if [ ! -x "$build/flashmla" ]; then
	echo "SKIP: $build/flashmla is not built: the case table did not run through OpenCL"
elif [ $status -eq 3 ]; then
	echo "SKIP: no OpenCL here: the case table did not run through it"
else
	count
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
