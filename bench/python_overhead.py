# SPDX-License-Identifier: MIT
"""What one flash_mla_with_kvcache call costs the host, and how much of it is not fmla_decode.

    make bench-python        (or: python bench/python_overhead.py [libflash_mla.so], with flash_mla installed)

A row is the median over rounds of the mean of many calls; the rounds of all rows are interleaved.  On the CPU the batch
is empty, so that the time is that of the Python layer, the argument checks and the two results, on one thread.  On a GPU
the batch is tiny and calls are only enqueued, fewer a round than the launch queue holds, and the queue is drained outside
of the window.  fmla_decode itself is called in the same process through ctypes, less what ctypes costs.
"""

import ctypes
import os
import statistics
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import flash_mla
import torch


class Tensor(ctypes.Structure):
    """struct fmla_tensor"""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip

    def __init__(self, x):
        code = {torch.bfloat16: 4, torch.float32: 2, torch.int32: 0}[x.dtype]
        self.sizes = (ctypes.c_int64 * x.ndim)(*x.shape)
        super().__init__(x.data_ptr(), 2 if x.is_cuda else 1, 0, x.ndim, code, 8 * x.itemsize, 1)
        self.shape = ctypes.addressof(self.sizes)


class DecodeArgs(ctypes.Structure):
    """struct fmla_decode_args"""

    _fields_ = [
        ("struct_size", ctypes.c_size_t), *((name, ctypes.POINTER(Tensor)) for name in
        ("q", "kv_cache", "block_table", "cache_seqlens", "cu_seqlens_q", "attn_sink", "out", "lse")),
        ("softmax_scale", ctypes.c_double), ("causal", ctypes.c_int32), ("max_seqlen_q", ctypes.c_int32),
        ("window", ctypes.c_int64), ("flags", ctypes.c_uint32), ("head_dim_v", ctypes.c_int32),
        ("plan_parts", ctypes.POINTER(Tensor)), ("plan_splits", ctypes.POINTER(Tensor)),
        ("workspace", ctypes.c_void_p), ("workspace_size", ctypes.c_size_t), ("stream", ctypes.c_void_p),
    ]  # fmt: skip


def bare_calls(path, q, cache, table, lens, out, lse):
    """fmla_decode on these tensors, and a call that does nothing, both through ctypes."""
    library = ctypes.CDLL(path)
    context = ctypes.c_void_p()
    assert library.fmla_ctx_create(ctypes.byref(context), None) == 0
    args = DecodeArgs(struct_size=ctypes.sizeof(DecodeArgs), softmax_scale=0.1, causal=1)
    tensors = {"q": q, "kv_cache": cache, "block_table": table, "cache_seqlens": lens, "out": out, "lse": lse}
    for name, tensor in tensors.items():
        setattr(args, name, ctypes.pointer(Tensor(tensor)))
    pointer, size = ctypes.byref(args), ctypes.c_size_t()
    assert library.fmla_workspace_size(context, pointer, ctypes.byref(size)) == 0
    scratch = torch.empty(size.value + 256, dtype=torch.uint8, device=q.device)
    args.workspace, args.workspace_size = (scratch.data_ptr() + 255) // 256 * 256, size.value
    args.stream = torch.cuda.current_stream().cuda_stream if q.is_cuda else None
    decode, nothing = library.fmla_decode, library.fmla_last_error
    assert decode(context, pointer) == 0
    keep = (args, scratch)
    return (lambda keep=keep: decode(context, pointer)), (lambda: nothing(context, pointer))


def measure(cases, calls, rounds, drain):
    """{name: (median, minimum)} in us."""
    times = {name: [] for name in cases}
    for number in range(rounds + 1):  # the first warms up
        for name, call in cases.items():
            begin = time.perf_counter_ns()
            for _ in range(calls):
                call()
            end = time.perf_counter_ns()
            drain()
            if number:
                times[name].append((end - begin) / calls / 1e3)
    return {name: (statistics.median(t), min(t)) for name, t in times.items()}


def main():
    gpu = torch.cuda.is_available()
    device, b = torch.device("cuda", 0) if gpu else torch.device("cpu"), 1 if gpu else 0
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
        "_C.decode, out and lse given": lambda: low(*a, *none, out, lse, 0.1, True, 0, 0, 512, 0),
        "_C.decode": lambda: low(*a, *none, None, None, 0.1, True, 0, 0, 512, 0),
        "decode": lambda: decode(*a, softmax_scale=0.1, causal=True),
        "decode, out= and lse=": lambda: decode(*a, softmax_scale=0.1, causal=True, out=out, lse=lse),
        "flash_mla_with_kvcache, tensors": lambda: compatible(*a, 512, tensor, splits, 0.1, True),
        "flash_mla_with_kvcache, hybrid": lambda: compatible(*a, 512, meta, splits, 0.1, True),
        "flash_mla_with_kvcache, object": lambda: compatible(*a, 512, lazy, None, 0.1, True),
        "torch.ops.flash_mla.decode": lambda: torch.ops.flash_mla.decode(*a, *none, 0.1, True, 0, 0, 512, 0),
    }  # fmt: skip
    library = sys.argv[1] if len(sys.argv) > 1 else None
    if library:
        cases["fmla_decode"], cases["nothing, through ctypes"] = bare_calls(library, *a, out, lse)
    times = measure(cases, 200 if gpu else 1000, 60 if gpu else 30, torch.cuda.synchronize if gpu else lambda: None)
    bare = None
    if library:
        bare = times["fmla_decode"] = tuple(
            x - y for x, y in zip(times["fmla_decode"], times.pop("nothing, through ctypes"))
        )
    where = torch.cuda.get_device_name() if gpu else "the CPU, empty batch"
    print(f"flash_mla {flash_mla.__version__}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}, {where}")
    print(f"{'call':34} {'us':>7} {'min us':>7}" + (f" {'us more than fmla_decode':>26}" if bare else ""))
    for name, (median, least) in times.items():
        more = f" {median - bare[0]:26.2f}" if bare and "decode" in name.replace("kvcache", "decode") else ""
        print(f"{name:34} {median:7.2f} {least:7.2f}{more}")


if __name__ == "__main__":
    main()
