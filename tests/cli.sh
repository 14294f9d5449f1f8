#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# The command from outside: exit codes, messages, output against tests/golden, and files that lie.
#     tests/cli.sh [BUILD] [--update]     --update rewrites tests/golden
# No test here may pass because the command did not start: every line expects an exit code and a text.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build} # holds flashmla and libflash_mla.so
update=${2:-}
flashmla=$build/flashmla
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0

pass() { passed=$((passed + 1)); }
fail() {
	failed=$((failed + 1))
	printf 'FAIL  %s\n' "$1"
	sed 's/^/      /' "$tmp/output" | head -12
}

# expect CODE REGEX ARGUMENTS...: the exit code and a line of the output, stderr included
expect() {
	local code=$1 regex=$2 got
	shift 2
	"$flashmla" "$@" >"$tmp/output" 2>&1
	got=$?
	if [ "$got" != "$code" ]; then
		fail "flashmla $*: exit code $got instead of $code"
	elif ! grep -Eq -- "$regex" "$tmp/output"; then
		fail "flashmla $*: no line matches: $regex"
	else
		pass
	fi
}

# golden NAME ARGUMENTS...: stdout is tests/golden/NAME
golden() {
	local name=$1
	shift
	if ! "$flashmla" "$@" >"$tmp/output"; then
		fail "flashmla $*: failed"
	elif [ "$update" = --update ]; then
		mkdir -p tests/golden && cp "$tmp/output" "tests/golden/$name" && pass
	elif ! diff -u "tests/golden/$name" "$tmp/output" >"$tmp/diff"; then
		cp "$tmp/diff" "$tmp/output"
		fail "flashmla $*: differs from tests/golden/$name"
	else
		pass
	fi
}

# little-endian u64
u64() {
	local v=$1
	for _ in 1 2 3 4 5 6 7 8; do
		printf "\\x$(printf %02x $((v & 255)))"
		v=$((v >> 8))
	done
}

# safetensors NAME HEADER DATA_BYTES: a file of zeros behind a header
safetensors() {
	{ u64 ${#2}; printf %s "$2"; head -c "$3" /dev/zero; } >"$tmp/$1"
}

# AddressSanitizer itself needs terabytes of address space.
limit=262144
if grep -q __asan_init "$flashmla"; then limit=unlimited; fi
export ASAN_OPTIONS=allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}

# refused NAME REGEX: the file is refused with exit code 2 and within 256 MB of address space
refused() {
	(
		ulimit -v $limit
		failed=0
		expect 2 "$2" run --backend ref "$tmp/$1" -o "$tmp/out.safetensors"
		[ "$failed" = 0 ]
	)
	if [ $? = 0 ]; then pass; else failed=$((failed + 1)); fi
	if [ -e "$tmp/out.safetensors" ]; then : >"$tmp/output"; fail "$1: an output was written"; fi
}

test_usage() {
	expect 2 'a command is needed'
	expect 2 "there is no command 'nope'" nope
	expect 2 'unrecognized option' --nope
	expect 2 "unrecognized option '--nope'" bench --nope
	expect 2 'one argument too many' info this
	expect 2 "there is no workload 'azure'" bench --workload azure
	expect 2 '--h-q takes an integer from 1' bench --h-q 0
	expect 2 '--h-q takes an integer from 1' bench --h-q 16,
	expect 2 '--h-q must be a multiple of --h-kv' plan --h-q 5 --h-kv 2
	expect 2 '--dtype takes bf16 or fp16' plan --dtype fp32
	expect 2 '--d-qk takes 576 or 512' plan --d-qk 560
	expect 2 'exclude each other' plan --workload mooncake --trace x
	expect 2 'no meaning with --trace' plan --b 3 --trace x
	expect 2 'no meaning with --workload' plan --workload mooncake --s-k 5
	expect 2 'an input file and -o OUTPUT are needed' run
	expect 2 'softmax-scale takes a number' run a -o b --softmax-scale x
	expect 2 'not a known key=value' check --backend ref --case 'b=1 nope=2'
	expect 0 'flashmla [0-9]+\.[0-9]+\.[0-9]+$' --version
	expect 0 '130 +interrupted' --help
	for command in info run check bench plan; do
		expect 0 "^Usage: flashmla $command " "$command" --help
	done
	FMLA_CPU=nope expect 3 'FMLA_CPU' info
	expect 3 'nope' bench --backend nope
	OCL_ICD_VENDORS=/nowhere expect 3 'opencl' run --backend opencl a -o b
}

# The C example of the README compiles as it stands, warnings included.
test_readme() {
	{
		sed -n '/^```c$/,/^```$/p' README.md | grep -m1 '#include <flash_mla.h>'
		printf '#include <stdio.h>\n#include <stdlib.h>\nvoid f(fmla_ctx *ctx, void *q, void *kv, int32_t *table, int32_t len,'
		printf ' int64_t num_pages, int64_t max_pages, double scale, void *out, float *lse);\n'
		printf 'void f(fmla_ctx *ctx, void *q, void *kv, int32_t *table, int32_t len,'
		printf ' int64_t num_pages, int64_t max_pages, double scale, void *out, float *lse) {\n'
		sed -n '/^```c$/,/^```$/p' README.md | grep -v '^```\|#include'
		printf '}\n'
	} >"$tmp/readme.c"
	if ${CC:-gcc} -std=c11 -Wall -Wextra -Werror -Iinclude -c -o "$tmp/readme.o" "$tmp/readme.c" >"$tmp/output" 2>&1; then pass; else
		fail 'the C example of the README does not compile'
	fi
}

# The example, linked as a user would, as C and as C++.
test_example() {
	local compiler
	if [ $limit = unlimited ]; then
		echo 'SKIP  the example: not with a sanitized library'
		return
	fi
	for compiler in "${CC:-gcc} -std=c11" "${CXX:-g++} -std=c++11 -x c++"; do
		if ! command -v "${compiler%% *}" >/dev/null; then
			echo "SKIP  the example with ${compiler%% *}: not installed"
		elif ! $compiler -Wall -Wextra -Werror -Iinclude -o "$tmp/example" examples/decode.c -L"$build" -lflash_mla -lm \
			-Wl,-rpath,"$(cd "$build" && pwd)" >"$tmp/output" 2>&1; then
			fail "examples/decode.c with $compiler does not compile"
		elif "$tmp/example" >"$tmp/output" 2>&1 && grep -q 'was asked for and found' "$tmp/output"; then
			pass
		else
			fail "examples/decode.c with $compiler gives a wrong answer"
		fi
	done
}

test_info() {
	expect 0 '^ref +yes' info
	expect 0 '"backend": "ref".*"available": true' info --json
	expect 0 '^AMD gfx90a, gfx942 +hip +compiled and instruction-checked only' info
	expect 0 '"label": "not possible"' info --json
	while IFS='|' read -r gpu label; do # what it says of a GPU is what the document says
		if grep -qF "| $gpu |" docs/gpus.md && grep -F "| $gpu |" docs/gpus.md | grep -qF "**$label**"; then pass; else
			fail "docs/gpus.md does not say '$label' of '$gpu', as info does"
		fi
	done < <($flashmla info --json | sed -n 's/^{"gpu": "\([^"]*\)".*"label": "\([^"]*\)".*/\1|\2/p')
	golden info_azure.txt info --trace tests/traces/azure_llm_2023_conv_400.csv
	golden info_mooncake.json info --json --trace tests/traces/mooncake_conversation_40.jsonl
	expect 2 'No such file' info --trace "$tmp/none"
}

test_traces() {
	local lines='{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}'
	printf 'a,b\n1,2\n' >"$tmp/t"
	expect 2 'line 1 is neither' info --trace "$tmp/t"
	printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n' >"$tmp/t"
	expect 2 'no requests' info --trace "$tmp/t"
	printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3\n' >"$tmp/t"
	expect 2 'line 2: two numbers' info --trace "$tmp/t"
	printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n2023-13-16 18:15:46,3,4\n' >"$tmp/t"
	expect 2 'line 2: a time' info --trace "$tmp/t"
	printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,99999999,4\n' >"$tmp/t"
	expect 2 'line 2: a request of more than' info --trace "$tmp/t"
	printf '%s\n%s\n' "$lines" '{"timestamp": 1, "input_length": 600}' >"$tmp/t"
	expect 2 'line 2: .*missing' info --trace "$tmp/t"
	printf '%s\n%s\n' "$lines" '{"timestamp": 1, "input_length": -1, "output_length": 1}' >"$tmp/t"
	expect 2 'line 2.*negative' info --trace "$tmp/t"
	printf '%s\n' '{"timestamp": 1, "input_length": 512, "output_length": 5, "hash_ids": [1, 2]}' >"$tmp/t"
	expect 2 'line 1: 2 hash_ids for 512 tokens' info --trace "$tmp/t"
	{ printf '{"timestamp": 1, "x": '; head -c 100000 /dev/zero | tr '\0' '['; } >"$tmp/t"
	expect 2 'nested too deeply' info --trace "$tmp/t"
	printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,3,1\n' >"$tmp/t"
	expect 2 'no request decodes more than one token' plan --backend ref --trace "$tmp/t"
}

test_plan() {
	golden plan.txt plan --backend ref --threads 4 --b 8
	golden plan.json plan --backend ref --threads 2 --b 3 --s-k 500 --json
	golden plan_trace.txt plan --backend ref --threads 4 --trace tests/traces/mooncake_conversation_40.jsonl --max-batch 16
	expect 0 "picture: $tmp/plan.svg" plan --backend ref --threads 4 --b 8 --svg "$tmp/plan.svg"
	cp "$tmp/plan.svg" "$tmp/output"
	if [ "$update" = --update ]; then cp "$tmp/plan.svg" tests/golden/; fi
	if cmp -s "$tmp/plan.svg" tests/golden/plan.svg; then pass; else fail 'the Gantt chart differs from tests/golden/plan.svg'; fi
	expect 4 'cannot be written' plan --backend ref --svg "$tmp/none/plan.svg"
}

test_check() {
	expect 0 '^1 passed, 0 failed$' check --backend ref --case 's_k=65'
	expect 0 '^3 passed, 0 failed$' check --backend ref --random 3 --seed 5
	expect 0 'b=3 s_q=2 h_q=128.*# --full' check --list
}

test_bench() {
	expect 0 'azure-conv .* all 3 right$' bench --backend ref --workload azure-conv --b 3 --h-q 2 --layers 1 --seconds 0 \
		--verify --svg "$tmp/roof.svg"
	cp "$tmp/roof.svg" "$tmp/output"
	if grep -q '<circle' "$tmp/roof.svg" && grep -q '^</svg>$' "$tmp/roof.svg"; then pass; else fail 'no roofline'; fi
	expect 0 '"b": 2, "s_q": 3, "h_q": 4, .*"dtype": "fp16", .*"wrong": 0' bench --backend ref --b 2 --s-q 3 --h-q 4 \
		--s-k 100 --dtype fp16 --layers 2 --seconds 0 --json --verify
	expect 0 'steps of the trace' bench --backend ref --trace tests/traces/azure_llm_2023_conv_400.csv --steps 2 --h-q 1 \
		--layers 1 --seconds 0 --max-batch 4
	# Of 1105 + 705 tokens, the first 512 have the same hash: 8 pages of 64 tokens are shared.
	cp tests/corpus/fuzz_trace/shared_prefix "$tmp/t"
	expect 0 '"kv_tokens": 1810, "kv_distinct": 1298,.*"wrong": 0' bench --backend ref --trace "$tmp/t" --steps 1 --h-q 1 \
		--layers 1 --seconds 0 --json --verify --step-ms 0
	expect 0 '"kv_tokens": 1810, "kv_distinct": 1810,' bench --backend ref --trace "$tmp/t" --steps 1 --h-q 1 --layers 1 \
		--seconds 0 --json --step-ms 0 --page 1024
	if grep -q $'\r' "$tmp/output"; then fail 'a progress bar without a terminal'; else pass; fi
	"$flashmla" bench --backend ref --b 2 --s-k 50 --h-q 1,2 --layers 1 --seconds 0 --json >"$tmp/output"
	if [ "$(wc -l <"$tmp/output")" = 2 ] && [ "$(grep -c '^{.*}$' "$tmp/output")" = 2 ]; then pass; else
		fail 'bench --json: two lines, each an object, are expected'
	fi
	timeout --preserve-status -s INT 1 "$flashmla" bench --backend ref --b 8 --s-k 1024 --h-q 4 --layers 4 --seconds 60 \
		>"$tmp/output" 2>&1
	if [ $? = 130 ]; then pass; else fail 'Ctrl-C: exit code 130 is expected'; fi
	expect 4 'cannot be written' bench --backend ref --svg "$tmp/none/x.svg" --b 1 --s-k 64 --h-q 1
	expect 4 'GiB' bench --backend ref --b 64 --s-k 16000000 --page 65536 --h-q 1 --layers 4096 --seconds 0
}

# One request of 5 tokens, 2 heads, everything 0: out is 0 and lse is ln 5.
q='"q":{"dtype":"BF16","shape":[1,1,2,576],"data_offsets":[0,2304]}'
kv='"kv_cache":{"dtype":"BF16","shape":[2,4,1,576],"data_offsets":[2304,11520]}'
table='"block_table":{"dtype":"I32","shape":[1,2],"data_offsets":[11520,11528]}'
lens='"cache_seqlens":{"dtype":"I32","shape":[1],"data_offsets":[11528,11532]}'

test_run() {
	{ u64 $((${#q} + ${#kv} + ${#table} + ${#lens} + 5)); printf '{%s,%s,%s,%s}' "$q" "$kv" "$table" "$lens"
	  head -c 11520 /dev/zero; printf '\1\0\0\0\0\0\0\0\5\0\0\0'; } >"$tmp/good"
	expect 0 'out and lse of 2 query rows' run --backend ref "$tmp/good" -o "$tmp/result"
	tail -c 8 "$tmp/result" | od -An -f >"$tmp/output"
	if grep -Eq '1\.609438 +1\.609438' "$tmp/output"; then pass; else fail 'lse is not ln 5'; fi
	head -c 400 "$tmp/result" >"$tmp/output"
	if grep -aq '"out":{"dtype":"BF16","shape":\[1,1,2,512\],"data_offsets":\[0,2048\]}' "$tmp/output"; then pass; else
		fail 'the result has no tensor out [1, 1, 2, 512]'
	fi
	expect 2 'no tensor named q' run --backend ref "$tmp/result" -o "$tmp/x"
	expect 4 'No such file' run --backend ref "$tmp/good" -o "$tmp/none/x"
	expect 2 'No such file' run --backend ref "$tmp/none" -o "$tmp/x"
	{ head -c -12 "$tmp/good"; printf '\7\0\0\0\0\0\0\0\5\0\0\0'; } >"$tmp/page"
	expect 2 'page' run --backend ref "$tmp/page" -o "$tmp/x"
}

test_lying_files() {
	printf 'abc' >"$tmp/f"
	refused f 'shorter than the 8 bytes'
	{ u64 100000000; printf '{'; } >"$tmp/f"
	refused f 'claims 100000000 bytes'
	{ u64 100000000; printf '{"a":[['; } >"$tmp/f"
	truncate -s 100000008 "$tmp/f"
	refused f 'at most 1048576'
	{ u64 -1; printf '{}'; } >"$tmp/f"
	refused f 'claims 18446744073709551615 bytes'
	safetensors f "{\"__metadata__\":$(head -c 60000 /dev/zero | tr '\0' '[')}" 0
	refused f 'nested too deeply'
	safetensors f '["q"]' 0
	refused f "does not start with '{'"
	safetensors f '{"q":{"dtype":"BF16","shape":[4294967296,4294967296,576],"data_offsets":[0,8]}}' 8
	refused f 'its shape overflows'
	safetensors f '{"q":{"dtype":"BF16","shape":[1000000000000],"data_offsets":[0,8]}}' 8
	refused f 'its shape needs 2000000000000'
	safetensors f '{"q":{"dtype":"BF16","shape":[4],"data_offsets":[0,8000000]}}' 8
	refused f 'outside of the 8 bytes of data'
	safetensors f '{"q":{"dtype":"BF16","shape":[4],"data_offsets":[8,0]}}' 8
	refused f 'outside of'
	safetensors f '{"q":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},"r":{"dtype":"BF16","shape":[4],"data_offsets":[4,12]}}' 12
	refused f 'overlapping its neighbour'
	safetensors f '{"q":{"dtype":"BF16","shape":[4],"data_offsets":[4,12]}}' 12
	refused f 'leaving a hole'
	safetensors f '{"q":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}' 12
	refused f '4 bytes behind the last tensor'
	safetensors f '{"q":{"dtype":"BF16","shape":[-4],"data_offsets":[0,8]}}' 8
	refused f 'negative'
	safetensors f '{"q":{"dtype":"BF17","shape":[4],"data_offsets":[0,8]}}' 8
	refused f 'unknown dtype'
	safetensors f '{"q":{"dtype":"BF16","shape":[4]}}' 8
	refused f 'lacks dtype, shape or data_offsets'
	safetensors f '{"q":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"q":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}' 0
	refused f 'appears twice'
	safetensors f '{"q":{"dtype":"I8","shape":[1e3],"data_offsets":[0,1000]}}' 1000
	refused f 'an integer is expected'
	safetensors f "{$q,$kv,$table,${lens/I32/U32}}" 11532
	refused f 'dtype U32'
	safetensors f "{$q,${kv/\[2,4,1,576]/[2,2304,1,2]},$table,$lens}" 11532
	refused f 'kv_cache'
}

for t in usage readme example info traces plan check bench run lying_files; do
	"test_$t"
done
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
