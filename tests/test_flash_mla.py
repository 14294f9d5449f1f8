# SPDX-License-Identifier: MIT
"""Correctness and performance of the installed flash_mla package, on the GPU, or on the CPU where there is none.

    python tests/test_flash_mla.py [--quick] [--seed N] [--device cpu|cuda]

Needs PyTorch only.  Correctness: PyTorch in fp32 on fresh random inputs, at the accuracy bars of FlashMLA's own tests.
Performance: median time of a call, with the bytes of the cache it reads and the arithmetic it does.  On a GPU 48 calls
with caches of their own are captured into a CUDA graph, so that the L2 is cold and Python is out of the picture.
Exit status 1 when a case fails.
"""

import argparse
import itertools
import os
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "python"))

import flash_mla
from reference import LSE_BAR, UPSTREAM_Q, WIDE_LSE_BAR, WIDE_Q, check, make_batch


def correctness(device, quick, seed):
    lengths = [0, 1, 63, 64, 65, 200, 517] if device.type == "cpu" else [0, 1, 63, 64, 65, 517, 4097, 9000]
    heads = (
        [(16, 1), (128, 1)] if quick else [(1, 1), (3, 1), (4, 1), (9, 1), (16, 1), (63, 1), (128, 1), (16, 2), (6, 3)]
    )
    inputs = ((UPSTREAM_Q, LSE_BAR), (WIDE_Q, WIDE_LSE_BAR))
    dtypes, tokens = (torch.bfloat16, torch.float16), (1, 2) if quick else (1, 2, 4)
    base, passed, failed = int.from_bytes(os.urandom(3), "little") if seed is None else seed, 0, 0
    for number, case in enumerate(itertools.product(dtypes, heads, tokens, (False, True), inputs)):
        dtype, (h_q, h_kv), s_q, causal, (q_std, lse_bar) = case
        torch.manual_seed(base + number)
        batch = make_batch(lengths, s_q=s_q, h_q=h_q, h_kv=h_kv, dtype=dtype, device=device, q_std=q_std)
        meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens, s_q * h_q // h_kv, h_kv)
        out, lse = flash_mla.flash_mla_with_kvcache(
            batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, 512, meta, splits, batch.scale, causal
        )
        name = f"{str(dtype)[6:]} h_q={h_q} h_kv={h_kv} s_q={s_q} causal={int(causal)} q of {q_std} lengths={lengths}"
        try:
            check(out, lse, batch.reference(causal=causal), lse_bar)
            passed += 1
        except AssertionError as error:
            failed += 1
            print(f"FAILED {name}: {error}")
    print(f"correctness: {passed} passed, {failed} failed (--seed {base})")
    return failed == 0


def time_on_gpu(calls):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(20):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times)[len(times) // 2]


def time_on_cpu(calls):
    times, until = [], time.perf_counter() + 0.5
    while len(times) < 5 or (time.perf_counter() < until and len(times) < 200):
        begin = time.perf_counter()
        calls[len(times) % len(calls)]()
        times.append((time.perf_counter() - begin) * 1e6)
    return sorted(times)[len(times) // 2]


def performance(device, quick):
    gpu = device.type == "cuda"
    if gpu:
        cases = [
            (b, s_k, h_q, s_q)
            for h_q in (16, 128)
            for s_q in (1, 2)
            for b, s_k in ((1, 8192), (128, 1024), (128, 4096))
        ]
    else:
        cases = [(1, 512, 16, 1), (4, 256, 16, 1)] if quick else [(1, 4096, 16, 1), (8, 1024, 16, 1), (1, 4096, 128, 1)]
    print(f"{'b':>4} {'s_k':>6} {'h_q':>4} {'s_q':>4} {'us':>10} {'GB/s':>8} {'TFLOP/s':>8}")
    for b, s_k, h_q, s_q in cases:
        calls = []
        for layer in range(48 if gpu and b * s_k <= 128 * 1024 else 8 if gpu else 1):
            torch.manual_seed(layer)
            kv = torch.randn(b * s_k // 64, 64, 1, 576, device=device).bfloat16()
            table = torch.randperm(len(kv), device=device).int().view(b, -1)
            lens = torch.full((b,), s_k, dtype=torch.int32, device=device)
            q = torch.randn(b, s_q, h_q, 576, device=device).bfloat16()
            calls.append(lambda q=q, kv=kv, table=table, lens=lens: flash_mla.decode(q, kv, table, lens, causal=True))
        us = (time_on_gpu if gpu else time_on_cpu)(calls)
        flop, size = 2 * b * s_q * h_q * s_k * (576 + 512), 2 * b * (s_k * 576 + s_q * h_q * (576 + 512))
        print(f"{b:4} {s_k:6} {h_q:4} {s_q:4} {us:10.1f} {size / us / 1e3:8.1f} {flop / us / 1e6:8.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--seed", type=int, help="of the random inputs; default: a new one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    kind = 2 if device.type == "cuda" else 1
    backend = next((b for b in flash_mla.backends() if b["available"] and b["device_type"] == kind), None)
    if backend is None:
        reasons = "; ".join(f"{b['name']}: {b['reason'] or 'serves another device'}" for b in flash_mla.backends())
        print(f"no backend for {device}: {reasons}")
        return 1
    where = torch.cuda.get_device_name() if kind == 2 else "the CPU"
    print(f"flash_mla {flash_mla.__version__} on {where}, backend {backend['name']} ({backend['variant']})")
    ok = correctness(device, options.quick, options.seed)
    performance(device, options.quick)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
