#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# `make mutants`: plants one known bug at a time in a copy of the sources and expects the named test to fail.  A mutant
# that survives, or a line that is no longer there to be changed, fails this script.
#     tests/mutants.sh [WORD]     only the mutants whose line contains WORD
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/need.sh
need cmocka.h libcmocka-dev || exit 1
word=${1:-}
tree=build/mutants
rm -rf $tree
mkdir -p $tree
tar -c --exclude=./build --exclude=./.git . | tar -x -C $tree
killed=0 survived=0

# mutant TEST FILE 'OLD' 'NEW': the test program, the source, a string that occurs in it, what it becomes
mutant() {
	local test=$1 file=$2 old=$3 new=$4 result
	case "$*" in *"$word"*) ;; *) return ;; esac
	if ! OLD=$old NEW=$new awk '
		BEGIN { old = ENVIRON["OLD"]; new = ENVIRON["NEW"] }
		!done && (at = index($0, old)) { $0 = substr($0, 1, at - 1) new substr($0, at + length(old)); done = 1 }
		{ print }
		END { exit !done }' "$file" >$tree/mutated; then
		echo "GONE      $file: $old"
		survived=$((survived + 1))
		return
	fi
	cp $tree/mutated "$tree/$file"
	if ! make -s -C $tree CUDA=0 OPT=-O1 build/tests/"$test" >$tree/log 2>&1; then
		result='NO BUILD '
		survived=$((survived + 1))
	elif timeout 120 $tree/build/tests/"$test" ${5:+"$5"} >$tree/log 2>&1; then
		result='SURVIVED '
		survived=$((survived + 1))
	else
		result='killed   '
		killed=$((killed + 1))
	fi
	echo "$result $test  $file:  $old  ->  $new"
	cp "$file" "$tree/$file"
	touch "$tree/$file"
}

make -s -C $tree CUDA=0 OPT=-O1 tests >$tree/log 2>&1 || { tail $tree/log; exit 1; }
for program in $tree/build/tests/test_{check,context,plan,merge,append,properties,value}; do # they pass before anything is planted
	$program >$tree/log 2>&1 || { echo "$program fails by itself"; exit 1; }
done

# 1 check
mutant test_check src/check_tensor.c 'v->stride[d] >= 0' '1'
mutant test_check src/check_tensor.c 'last > INT64_MAX / 16' '0'
mutant test_check src/check_tensor.c 'v->data || num_values(v) == 0' '1'
mutant test_check src/check_tensor.c '(uintptr_t)v->data % align' '(uintptr_t)v->data % 1'
mutant test_check src/check_tensor.c '(size_t)v->at % align' '(size_t)v->at % 1'
mutant test_check src/check_tensor.c 'v->stride[d] >= covered' 'v->stride[d] >= 0'
mutant test_check src/check.c 'p->cache_seqlens[i] <= capacity' 'p->cache_seqlens[i] <= capacity + 1'
mutant test_check src/check.c 'page >= p->num_pages' 'page > p->num_pages'
mutant test_check src/check.c 'if (bytes[i])' 'if (0)'
mutant test_check src/check.c 'p->workspace_size < needed' 'p->workspace_size + 1 < needed'
mutant test_append src/check.c 'slot < p->num_pages * p->page' 'slot <= p->num_pages * p->page'
mutant test_context src/status.c 'ctx->num_threads = status == FMLA_OK ? num_threads : 0' 'ctx->num_threads = num_threads + 1'
mutant test_context src/threads.c 'i <= last && i < cpu' 'i <= last'
mutant test_context src/threads.c 'after == '"'-'"'' '0'
# 2 plan
mutant test_plan src/plan_core.h '(len + BLOCK - 1) / BLOCK' 'len / BLOCK'
mutant test_plan src/plan_core.h 'len - s_q + 1 - window' 'len - s_q + 65 - window'
mutant test_plan src/plan_core.h 'c.max_snap < share / 4 ? c.max_snap : share / 4' 'c.max_snap'
mutant test_plan src/plan_core.h 'c.overhead < share / 2 ? c.overhead : share / 2' 'c.overhead'
mutant test_plan src/plan_core.h 'x.total = total_blocks + b * overhead' 'x.total = total_blocks'
mutant test_plan src/plan_core.h 'n - k < snap || k >= n' 'k >= n'
mutant test_plan src/plan_core.h 'pieces <= min_blocks' 'pieces <= max_blocks'
mutant test_plan src/plan_core.h '(max_blocks + pieces - 1, plan' '(max_blocks, plan'
mutant test_plan src/plan_core.h 'more > c.whole ? more : c.whole' 'more + c.whole'
mutant test_plan src/plan_core.h 'S + x.overhead + n - near + 1' 'S + x.overhead + n - near'
mutant test_plan src/plan_core.h '(r.begin + k) / x.chunk * x.chunk - r.begin' 'k / x.chunk * x.chunk'
mutant test_plan src/plan_core.h 'from.block > 0 || (inside && from.req == last)' 'from.block > 0'
mutant test_plan src/plan.c 'to.req == w->from.req ? w->split : 0) + 1' 'w->split) + 1'
mutant test_plan src/plan.c '2 * part_no + !(is_first && row->begin_split > 0)' '2 * part_no'
mutant test_plan src/plan.c 'memcmp(row, &want, sizeof(want)) != 0' '0'
mutant test_plan src/plan.c 'splits[checked + 1] != splits[checked] + n' '0'
# 3 decode
mutant test_decode src/plan.h 'self + 1 < len ? self + 1 : len' 'self < len ? self : len' 'naive*'
mutant test_decode src/plan.h 'k.begin = self + 1 - p->window' 'k.begin = self - p->window' 'naive*'
mutant test_decode src/ref/decode.c 'row->weight *= shrink' 'row->weight *= 1' 'naive*'
mutant test_decode src/ref/decode.c 'row->sum[d] *= shrink' 'row->sum[d] *= 1' 'naive*'
mutant test_decode src/ref/decode.c '(first + r) / p->group, h' '(first + r) % p->s_q, h' 'naive*s_q=*'
mutant test_decode src/ref/decode.c 't % p->page * p->kv_token' 't % 64 * p->kv_token' 'naive*page=*'
mutant test_decode src/ref/decode.c '+ kv_head * p->kv_head' '' 'naive*h_kv=*'
mutant test_decode src/ref/backend.c 'factor /= 1 + exp(*to.sink - lse)' 'factor /= 1 + exp(*to.sink)' 'naive*sink*'
mutant test_decode src/ref/backend.c '*to.lse = empty ? to.empty_lse' '*to.lse = empty ? INFINITY' 'naive*neg_inf*'
mutant test_value src/value.h '0x7fff + (u >> 16 & 1)' '0x8000'
mutant test_value src/value.h 'a < 0x38800000' 'a < 0x38000000'
mutant test_decode src/cpu/combine.c 'row % p->h_q, sum.m' '0, sum.m' 'c x3*'
# 4 combine, merge, append
mutant test_decode src/ref/combine.c 'return j == 0 ? first : second + (j - 1) * step' 'return j == 0 ? first : second + j * step' 'ref*'
mutant test_decode src/ref/combine.c 'sum[d] += w * ref_load' 'sum[d] += ref_load' 'ref*'
mutant test_merge src/ref/combine.c '!isinf(lse) && !(lse <= max)' '!(lse <= max)'
mutant test_merge src/ref/combine.c 'to.at += n' 'to.at += 0'
mutant test_append src/ref/append.c 'slot >= 0' 'slot > 0'
mutant test_append src/ref/append.c 'slot % p->page' 'slot % (p->page + 1)'
mutant test_append src/ref/append.c 'at + p->d_latent' 'at'
# between runs
mutant test_properties src/cpu/backend.c '.chunk = p->batch_invariant ? PLAN_CHUNK : 0' '.chunk = 0'
mutant test_properties src/ref/decode.c 'const struct plan_costs costs = ref_costs(p);' 'const struct plan_costs costs = ref_costs(p); extern void *malloc(size_t); extern void free(void *); void *volatile m = malloc(8); free(m);'

echo "mutants: $killed killed, $survived survived or not applicable"
[ $survived = 0 ]
