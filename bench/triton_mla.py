#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""portable-cuda beside an MLA decode kernel in Triton, on the rows of bench/baselines/h200_dense_decode.csv:

    python3 bench/triton_mla.py [--library build/libflash_mla.so] [--rows TEXT] [--csv FILE]

The Triton kernel was written for this comparison: paged, bf16, split-KV with a combine kernel, the heads of a request
as rows of tl.dot, K read once for both products.  It gets every chance: for each row the fastest of its tile sizes,
warps, pipeline stages and numbers of splits is searched first, and only that one is compared; our backend gets no
search.  Method as in bench/peers.py: a CUDA graph of 2-48 layers with distinct KV caches (at least 600 MB), random
normal data, pages in random order; then both graphs in turn, five rounds, the median counts, per layer.  The outputs of
both are compared before.  Needs PyTorch and Triton."""
import argparse
import concurrent.futures
import csv
import ctypes
import math
import multiprocessing
import pathlib
import statistics
import sys

import peers
from peers import BASELINES, D_QK, D_V, PAGE

try:
    import torch
    import triton
    import triton.language as tl
except ImportError as missing:
    sys.exit(f"SKIP: {missing}")


# ---- the kernels --------------------------------------------------------------------------------------------------
# Program (tile, request, split): ROWS query rows (token s, head h: row s * h_q + h) of one request over one of `splits`
# equal runs of its keys.  Scores are in base 2.  lse and out of a run go to part_lse [b, splits, rows] and part
# [b, splits, rows, 512]; a run without keys has lse -inf.


@triton.jit(do_not_specialize=["width", "h_q", "s_q", "splits"])  # one compilation serves every shape
def decode_kernel(
    q, kv, table, lengths, part, part_lse, scale_log2, width, h_q, s_q, splits,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PAGE: tl.constexpr, D_V: tl.constexpr, D_ROPE: tl.constexpr,
):  # fmt: skip
    tile, request, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    all_rows = s_q * h_q
    length = tl.load(lengths + request)
    run = tl.cdiv(tl.cdiv(length, KEYS), splits) * KEYS
    start = split * run
    stop = tl.minimum(start + run, length)
    row = tile * ROWS + tl.arange(0, ROWS)
    there = row < all_rows
    visible = length - s_q + row // h_q + 1  # causal
    v_dims = tl.arange(0, D_V)
    rope_dims = D_V + tl.arange(0, D_ROPE)
    keys = tl.arange(0, KEYS)
    q_row = q + (request * all_rows + row).to(tl.int64)[:, None] * (D_V + D_ROPE)
    q_latent = tl.load(q_row + v_dims[None, :], mask=there[:, None], other=0)
    q_rope = tl.load(q_row + rope_dims[None, :], mask=there[:, None], other=0)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, D_V], tl.float32)
    for first in range(start, stop, KEYS):
        page = tl.load(table + request * width + first // PAGE).to(tl.int64)
        key = first + keys
        k_row = kv + (page * PAGE + first % PAGE + keys)[:, None] * (D_V + D_ROPE)
        k_latent = tl.load(k_row + v_dims[None, :], mask=(key < stop)[:, None], other=0)
        k_rope = tl.load(k_row + rope_dims[None, :], mask=(key < stop)[:, None], other=0)
        s = tl.dot(q_latent, tl.trans(k_latent))
        s = tl.dot(q_rope, tl.trans(k_rope), s) * scale_log2
        s = tl.where((key < stop)[None, :] & (key[None, :] < visible[:, None]), s, -float("inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp2(top - base)
        p = tl.exp2(s - base[:, None])
        total = total * shrink + tl.sum(p, 1)
        out = tl.dot(p.to(k_latent.dtype), k_latent, out * shrink[:, None])
        top = higher
    at = (request * splits + split).to(tl.int64) * all_rows + row
    safe = tl.where(total == 0, 1.0, total)
    tl.store(part_lse + at, tl.where(total == 0, -float("inf"), top + tl.log2(safe)), mask=there)
    tl.store(part + at[:, None] * D_V + v_dims[None, :], out / safe[:, None], mask=there[:, None])


# Program (row, request): the weighted sum of the runs, in rounds of ROUND.
@triton.jit(do_not_specialize=["h_q", "s_q", "splits"])
def combine_kernel(
    part, part_lse, out, lse, h_q, s_q, splits,
    ROUND: tl.constexpr, D_V: tl.constexpr,
):  # fmt: skip
    row, request = tl.program_id(0), tl.program_id(1)
    all_rows = s_q * h_q
    dims = tl.arange(0, D_V)
    top = -float("inf")
    total = 0.0
    x = tl.zeros([D_V], tl.float32)
    for first in range(0, splits, ROUND):
        split = first + tl.arange(0, ROUND)
        at = (request * splits + split).to(tl.int64) * all_rows + row
        part_top = tl.load(part_lse + at, mask=split < splits, other=-float("inf"))
        values = tl.load(part + at[:, None] * D_V + dims[None, :], mask=(split < splits)[:, None], other=0)
        higher = tl.maximum(top, tl.max(part_top, 0))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp2(part_top - base)
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weight, 0)
        x = x * shrink + tl.sum(weight[:, None] * values, 0)
        top = higher
    safe = tl.where(total == 0, 1.0, total)
    tl.store(out + (request * all_rows + row).to(tl.int64) * D_V + dims, (x / safe).to(out.dtype.element_ty))
    s, h = row // h_q, row % h_q
    natural = (top + tl.log2(safe)) * 0.6931471805599453
    tl.store(lse + (request * h_q + h) * s_q + s, tl.where(total == 0, float("inf"), natural))


# ---- Triton's side --------------------------------------------------------------------------------------------------

# rows of a tile, keys of a tile, warps, stages.  K hangs on the page table, so its loads run ahead by one tile with 3
# stages and by two with 5.
FEW_ROWS = [(16, 32, 4, 3), (16, 32, 4, 5), (16, 64, 4, 3), (16, 64, 4, 5), (16, 64, 8, 5)]
MANY_ROWS = [(64, 64, 8, 2), (64, 32, 8, 2), (32, 32, 4, 5), (32, 64, 4, 3), (16, 64, 4, 3)]
ROUND = 8


def configs_of(row):
    return FEW_ROWS if row["s_q"] * row["h_q"] <= 16 else MANY_ROWS


class Triton:
    """One layer after the other of a batch, with one configuration."""

    def __init__(self, batch, row, config, splits):
        self.batch, self.row, self.config, self.splits = batch, row, config, splits
        rows = row["s_q"] * row["h_q"]
        device = batch.q.device
        self.part = torch.empty(row["b"] * splits * rows * D_V, dtype=torch.float32, device=device)
        self.part_lse = torch.empty(row["b"] * splits * rows, dtype=torch.float32, device=device)
        self.out = torch.empty(row["b"], row["s_q"], row["h_q"], D_V, dtype=torch.bfloat16, device=device)
        self.lse = torch.empty(row["b"], row["h_q"], row["s_q"], dtype=torch.float32, device=device)

    def __call__(self, layer):
        batch, row = self.batch, self.row
        rows_of, keys, warps, stages = self.config
        rows = row["s_q"] * row["h_q"]
        decode_kernel[(triton.cdiv(rows, rows_of), row["b"], self.splits)](
            batch.q, batch.kv[layer], batch.table, batch.lengths, self.part, self.part_lse, batch.scale * math.log2(math.e),
            batch.table.shape[1], row["h_q"], row["s_q"], self.splits,
            ROWS=rows_of, KEYS=keys, PAGE=PAGE, D_V=D_V, D_ROPE=D_QK - D_V, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        combine_kernel[(rows, row["b"])](
            self.part, self.part_lse, self.out, self.lse, row["h_q"], row["s_q"], self.splits,
            ROUND=ROUND, D_V=D_V, num_warps=4,
        )  # fmt: skip


def splits_for(batch, row, config, share):
    """So many that there are about `share` programs for each multiprocessor; not more than tiles of keys."""
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    tiles = row["b"] * math.ceil(row["s_q"] * row["h_q"] / config[0])
    most = math.ceil(int(batch.lengths.max()) / config[1])
    return min(max(round(sms * share / tiles), 1), most)


def compile_one(config):
    """In a process of its own: fills Triton's cache on disk."""
    rows, keys, warps, stages = config
    pointer = torch.empty(1, dtype=torch.bfloat16, device="cuda")
    ints, floats = pointer.int(), pointer.float()
    decode_kernel.warmup(
        pointer, pointer, ints, ints, floats, floats, 0.1, 64, 16, 1, 2,
        ROWS=rows, KEYS=keys, PAGE=PAGE, D_V=D_V, D_ROPE=D_QK - D_V, num_warps=warps, num_stages=stages,
        grid=(1, 1, 1),
    )  # fmt: skip


# ---- our side -------------------------------------------------------------------------------------------------------


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]  # fmt: skip


TENSORS = ("q", "kv_cache", "block_table", "cache_seqlens", "cu_seqlens_q", "attn_sink", "out", "lse")


class DecodeArgs(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), *((name, ctypes.POINTER(Tensor)) for name in TENSORS),
                ("softmax_scale", ctypes.c_double), ("causal", ctypes.c_int32), ("max_seqlen_q", ctypes.c_int32),
                ("window", ctypes.c_int64), ("flags", ctypes.c_uint32), ("head_dim_v", ctypes.c_int32),
                ("plan_parts", ctypes.POINTER(Tensor)), ("plan_splits", ctypes.POINTER(Tensor)),
                ("workspace", ctypes.c_void_p), ("workspace_size", ctypes.c_size_t),
                ("stream", ctypes.c_void_p)]  # fmt: skip


class CtxOptions(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("backend", ctypes.c_char_p), ("num_threads", ctypes.c_int32)]


CODES = {torch.bfloat16: (4, 16), torch.float32: (2, 32), torch.int32: (0, 32)}


def describe(x):
    code, bits = CODES[x.dtype]
    shape = (ctypes.c_int64 * x.ndim)(*x.shape)
    return Tensor(x.data_ptr(), 2, x.device.index or 0, x.ndim, code, bits, 1, shape, None, 0)


class Library:
    def __init__(self, path, backend):
        self.lib = ctypes.CDLL(path)
        self.lib.fmla_last_error.restype = ctypes.c_char_p
        self.lib.fmla_last_error.argtypes = [ctypes.c_void_p]
        self.ctx = ctypes.c_void_p()
        options = CtxOptions(ctypes.sizeof(CtxOptions), backend.encode(), 0)
        self.check(self.lib.fmla_ctx_create(ctypes.byref(self.ctx), ctypes.byref(options)))

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.lib.fmla_last_error(self.ctx).decode())


class Ours:
    def __init__(self, library, batch, row):
        self.library = library
        self.out = torch.empty(row["b"], row["s_q"], row["h_q"], D_V, dtype=torch.bfloat16, device=batch.q.device)
        self.lse = torch.empty(row["b"], row["h_q"], row["s_q"], dtype=torch.float32, device=batch.q.device)
        self.kv = [describe(kv) for kv in batch.kv]
        given = {"q": batch.q, "block_table": batch.table, "cache_seqlens": batch.lengths, "out": self.out, "lse": self.lse}
        self.tensors = {name: describe(x) for name, x in given.items()}
        self.args = DecodeArgs(struct_size=ctypes.sizeof(DecodeArgs), softmax_scale=batch.scale, causal=1)
        for name, x in self.tensors.items():
            setattr(self.args, name, ctypes.pointer(x))
        self.args.kv_cache = ctypes.pointer(self.kv[0])
        size = ctypes.c_size_t()
        library.check(library.lib.fmla_workspace_size(library.ctx, ctypes.byref(self.args), ctypes.byref(size)))
        self.workspace = torch.empty(size.value + 256, dtype=torch.uint8, device=batch.q.device)
        self.args.workspace = (self.workspace.data_ptr() + 255) // 256 * 256
        self.args.workspace_size = size.value

    def __call__(self, layer):
        self.args.kv_cache = ctypes.pointer(self.kv[layer])
        self.args.stream = torch.cuda.current_stream().cuda_stream
        self.library.check(self.library.lib.fmla_decode(self.library.ctx, ctypes.byref(self.args)))


# ---- the comparison -------------------------------------------------------------------------------------------------


def replays(graph, layers, count):
    """Microseconds of a layer in each of `count` replays, after one that does not count."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    graph.replay()
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) * 1e3 / layers for a, b in zip(events, events[1:])]


def fastest(batch, row):
    """Configuration and splits of a short search: all configurations, then more and fewer splits for the best two."""

    def time(config, splits):
        try:
            graph = peers.capture(torch, Triton(batch, row, config, splits), batch.layers)
        except triton.runtime.errors.OutOfResources:
            return math.inf, config, splits
        return statistics.median(replays(graph, batch.layers, 3)), config, splits

    found = sorted(time(config, splits_for(batch, row, config, 2)) for config in configs_of(row))
    for _, config, first in found[:2]:
        others = {splits_for(batch, row, config, share) for share in (0.5, 1, 4)} - {first}
        found += [time(config, splits) for splits in others]
    return min(found)[1:]


def compare(batch, row, library):
    config, splits = fastest(batch, row)
    sides = {"triton": Triton(batch, row, config, splits), "ours": Ours(library, batch, row)}
    graphs = {name: peers.capture(torch, side, batch.layers) for name, side in sides.items()}
    times = {name: [] for name in sides}
    for _ in range(5):
        for name, graph in graphs.items():
            times[name] += replays(graph, batch.layers, 5)
    pairs = ((sides["triton"].out.float(), sides["ours"].out.float(), 2e-3, 2e-2),
             (sides["triton"].lse, sides["ours"].lse, 1e-3, 0))  # fmt: skip
    for a, b, absolute, relative in pairs:
        if not torch.allclose(a, b, atol=absolute, rtol=relative):
            sys.exit(f"the two disagree, by {(a - b).abs().max().item()}")
    return {name: statistics.median(t) for name, t in times.items()}, config, splits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="build/libflash_mla.so")
    parser.add_argument("--backend", default="portable-cuda")
    parser.add_argument("--rows", default="", help='only rows whose "b=1 s_q=1 h_q=16 s_k=4096 varlen=0 " holds this')
    parser.add_argument("--csv", help="append the figures to this file")
    parser.add_argument("--compile", action="store_true", help="only fill Triton's cache, all kernels at a time")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("SKIP: no CUDA device")
    if args.compile:
        configs = FEW_ROWS + MANY_ROWS
        with concurrent.futures.ProcessPoolExecutor(len(configs), multiprocessing.get_context("spawn")) as pool:
            list(pool.map(compile_one, configs))
        return
    library = Library(args.library, args.backend)
    print(f"{args.backend} and Triton {triton.__version__} (torch {torch.__version__}), {torch.cuda.get_device_name()}")
    print("   b s_q  h_q     s_k var   tokens     ours   triton  ratio   rows keys warps stages splits")
    with open(BASELINES, newline="") as file:
        rows = [{k: int(v) for k, v in row.items() if k in ("b", "s_q", "h_q", "s_k", "varlen", "kv_tokens")}
                for row in csv.DictReader(file)]  # fmt: skip
    ratios = []
    for row in rows:
        if args.rows not in "b={b} s_q={s_q} h_q={h_q} s_k={s_k} varlen={varlen} ".format(**row):
            continue
        batch = peers.Batch(torch, row)
        us, config, splits = compare(batch, row, library)
        ratios.append(us["triton"] / us["ours"])
        print("{b:4d} {s_q:3d} {h_q:4d} {s_k:7d} {varlen:3d}".format(**row), f"{batch.tokens:8d} {us['ours']:8.2f}",
              f"{us['triton']:8.2f} {ratios[-1]:6.2f}  ", *(f"{x:4d}" for x in config), f"{splits:6d}", flush=True)  # fmt: skip
        if args.csv:
            with open(args.csv, "a", newline="") as file:
                csv.writer(file).writerow([*(row[k] for k in ("b", "s_q", "h_q", "s_k", "varlen")), batch.tokens,
                                           f"{us['ours']:.2f}", f"{us['triton']:.2f}", f"{ratios[-1]:.3f}", *config,
                                           splits])  # fmt: skip
        del batch
        torch.cuda.empty_cache()
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"Triton's time over ours: geometric mean {mean:.2f}, least {min(ratios):.2f}, {len(ratios)} rows")


if __name__ == "__main__":
    main()
