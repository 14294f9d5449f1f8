#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times the peers on this card with the method of bench/gpu/bench.c: python3 bench/peers.py [--rows TEXT] [--csv FILE]

Needs PyTorch and at least one of `flash_mla` (upstream, or this project's drop-in under the same name: the version is
printed) and `flash_attn_interface` (FlashAttention-3, `qv` path).  A peer that cannot be imported is left out, loudly.
Per row of bench/baselines/h200_dense_decode.csv: a CUDA graph of 2-48 layers with distinct KV caches (at least 600 MB),
random normal data, pages in random order, the plan made once outside of the graph; median over replays, per layer."""
import argparse
import csv
import math
import pathlib
import statistics
import sys

D_QK, D_V, PAGE = 576, 512, 64
BASELINES = pathlib.Path(__file__).parent / "baselines" / "h200_dense_decode.csv"


def lengths_of(torch, row):
    if not row["varlen"]:
        return torch.full((row["b"],), row["s_k"], dtype=torch.int32)
    for seed in range(1, 2001):  # the first batch whose sum is within 0.5 % of the baseline's
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(row["b"], generator=generator)
        lengths = (row["s_k"] + normal * row["s_k"] / 2).clamp(1, 4 * row["s_k"]).int()
        if abs(lengths.sum().item() / row["kv_tokens"] - 1) <= 0.005:
            break
    return lengths


class Batch:
    def __init__(self, torch, row):
        lengths = lengths_of(torch, row)
        self.tokens = int(lengths.sum())
        pages = (lengths + PAGE - 1) // PAGE
        total, width = int(pages.sum()), int(pages.max())
        self.layers = min(max(math.ceil(600e6 / (total * PAGE * D_QK * 2)), 2), 48)
        order = torch.randperm(total, dtype=torch.int32)
        table = torch.zeros(row["b"], width, dtype=torch.int32)
        start = 0
        for i, n in enumerate(pages.tolist()):
            table[i, :n] = order[start : start + n]
            start += n
        self.q = torch.randn(row["b"], row["s_q"], row["h_q"], D_QK, dtype=torch.bfloat16, device="cuda")
        self.kv = [
            torch.randn(total, PAGE, 1, D_QK, dtype=torch.bfloat16, device="cuda") for _ in range(self.layers)
        ]
        self.table, self.lengths = table.cuda(), lengths.cuda()
        self.scale = D_QK**-0.5


def flash_mla_layer(batch, row):
    import flash_mla

    plan, splits = flash_mla.get_mla_metadata(batch.lengths, row["s_q"] * row["h_q"], 1)

    def layer(i):
        return flash_mla.flash_mla_with_kvcache(
            batch.q, batch.kv[i], batch.table, batch.lengths, D_V, plan, splits,
            softmax_scale=batch.scale, causal=True,
        )  # fmt: skip

    return layer


def fa3_layer(batch, row):
    import flash_attn_interface as fa3

    rope = [kv[..., D_V:] for kv in batch.kv]
    latent = [kv[..., :D_V] for kv in batch.kv]
    q_rope, q_latent = batch.q[..., D_V:], batch.q[..., :D_V]
    plan = fa3.get_scheduler_metadata(
        row["b"], row["s_q"], int(batch.lengths.max()), row["h_q"], 1, D_QK - D_V, batch.lengths, batch.q.dtype,
        headdim_v=D_V, page_size=PAGE, causal=True, has_softcap=False,
    )  # fmt: skip

    def layer(i):
        return fa3.flash_attn_with_kvcache(
            q_rope, rope[i], latent[i], qv=q_latent, cache_seqlens=batch.lengths, page_table=batch.table,
            softmax_scale=batch.scale, causal=True, scheduler_metadata=plan,
        )  # fmt: skip

    return layer


def capture(torch, layer, layers):
    """A CUDA graph of `layers` calls of layer(i)."""
    layer(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(layers):
            layer(i)
    return graph


def time_graph(torch, layer, layers):
    graph = capture(torch, layer, layers)
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(26)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) * 1e3 / layers for a, b in zip(events, events[1:])]
    return statistics.median(times), min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help='only rows whose "b=1 s_q=1 h_q=16 s_k=4096 varlen=0 " holds this')
    parser.add_argument("--csv", help="append the figures to this file")
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("SKIP: PyTorch is not installed")
    if not torch.cuda.is_available():
        sys.exit("SKIP: no CUDA device")
    peers = {}
    for name, module, make in (("flashmla", "flash_mla", flash_mla_layer), ("fa3", "flash_attn_interface", fa3_layer)):
        try:
            imported = __import__(module)
            print(f"{name}: {imported.__file__}, version {getattr(imported, '__version__', 'unknown')}")
            peers[name] = make
        except ImportError as error:
            print(f"SKIP {name}: {error}")
    if not peers:
        sys.exit("SKIP: no peer can be imported")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with open(BASELINES, newline="") as file:
        rows = [{k: int(v) if k in ("b", "s_q", "h_q", "s_k", "varlen", "kv_tokens") else float(v)
                 for k, v in row.items()} for row in csv.DictReader(file)]  # fmt: skip
    for row in rows:
        name = "b={b} s_q={s_q} h_q={h_q} s_k={s_k} varlen={varlen} ".format(**row)
        if args.rows not in name:
            continue
        batch = Batch(torch, row)
        for peer, make in peers.items():
            try:
                median, fastest = time_graph(torch, make(batch, row), batch.layers)
            except (RuntimeError, TypeError) as error:
                print(f"{name}{peer}: {str(error).splitlines()[0]}")
                continue
            stored = row[f"{peer}_us"]
            print(f"{name}{peer}: {median:.2f} us (min {fastest:.2f}), {batch.tokens} tokens; stored {stored:.2f}")
            if args.csv:
                with open(args.csv, "a", newline="") as out:
                    csv.writer(out).writerow([peer, *(row[k] for k in ("b", "s_q", "h_q", "s_k", "varlen")),
                                              batch.tokens, f"{median:.2f}", f"{fastest:.2f}"])  # fmt: skip
        del batch
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
