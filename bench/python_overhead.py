# SPDX-License-Identifier: MIT
"""What one flash_mla_with_kvcache call costs the host.

    make bench-python                  (or: python bench/python_overhead.py, with flash_mla installed)

A row is the median over rounds of the mean of many calls.  On the CPU the batch is empty, so that the time is that of
the Python layer, the argument checks and two torch.empty, on one thread; on a GPU the batch is tiny and calls are only enqueued,
so the time includes the kernel launches, and the queue is drained outside of the window.
"""

import os
import statistics
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import flash_mla
import torch

CALLS, ROUNDS = 2000, 15


def measure(call, drain):
    for _ in range(100):
        call()
    drain()
    rounds = []
    for _ in range(ROUNDS):
        calls = CALLS
        begin = time.perf_counter_ns()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter_ns() - begin) / calls / 1e3)
        drain()
    return statistics.median(rounds), min(rounds)


def main():
    gpu = torch.cuda.is_available()
    device, b = torch.device("cuda" if gpu else "cpu"), 1 if gpu else 0
    q = torch.zeros(b, 1, 16, 576, dtype=torch.bfloat16, device=device)
    cache = torch.zeros(4, 64, 1, 576, dtype=torch.bfloat16, device=device)
    table = torch.zeros(b, 4, dtype=torch.int32, device=device)
    lens = torch.ones(b, dtype=torch.int32, device=device)
    out = torch.empty(b, 1, 16, 512, dtype=torch.bfloat16, device=device)
    lse = torch.empty(b, 16, 1, device=device)
    meta, splits = flash_mla.get_mla_metadata(lens, 16, 1)
    lazy, _ = flash_mla.get_mla_metadata()
    tensor = meta.tile_scheduler_metadata
    compatible, decode, low = flash_mla.flash_mla_with_kvcache, flash_mla.decode, flash_mla._C.decode
    a = (q, cache, table, lens)
    none = (None, None, None, None)
    cases = {
        "torch.empty of out and lse": lambda: (
            torch.empty(b, 1, 16, 512, dtype=torch.bfloat16, device=device), torch.empty(b, 16, 1, device=device)),
        "_C.decode": lambda: low(*a, *none, out, lse, 0.1, True, 0, 0, 512, 0),
        "decode": lambda: decode(*a, softmax_scale=0.1, causal=True),
        "decode, out= and lse=": lambda: decode(*a, softmax_scale=0.1, causal=True, out=out, lse=lse),
        "flash_mla_with_kvcache, tensors": lambda: compatible(*a, 512, tensor, splits, 0.1, True),
        "flash_mla_with_kvcache, hybrid": lambda: compatible(*a, 512, meta, splits, 0.1, True),
        "flash_mla_with_kvcache, object": lambda: compatible(*a, 512, lazy, None, 0.1, True),
        "torch.ops.flash_mla.decode": lambda: torch.ops.flash_mla.decode(*a, *none, 0.1, True, 0, 0, 512, 0),
    }  # fmt: skip
    where = torch.cuda.get_device_name() if gpu else "the CPU, empty batch"
    print(f"flash_mla {flash_mla.__version__}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}, {where}")
    print(f"{'call':34} {'us':>7} {'min us':>7}")
    for name, call in cases.items():
        median, least = measure(call, torch.cuda.synchronize if gpu else lambda: None)
        print(f"{name:34} {median:7.2f} {least:7.2f}")


if __name__ == "__main__":
    main()
