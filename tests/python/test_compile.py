# SPDX-License-Identifier: MIT
"""PyTorch's own tools: torch.library.opcheck, torch.compile, export, CUDA graphs."""

import importlib.util
import os
import shutil
import subprocess
import sys

import flash_mla
import pytest
import torch
from reference import Captured, check, make_batch

COMPILER = importlib.util.find_spec("triton") if torch.cuda.is_available() else shutil.which("g++")
BACKENDS = ["aot_eager", *(["inductor"] if COMPILER else [])]
# PyTorch without opcheck also lacks what torch.compile and torch.export need for operators of a library.
library_tools = pytest.mark.skipif(
    not hasattr(torch.library, "opcheck"),
    reason=f"PyTorch {torch.__version__} has no torch.library.opcheck, its compiler takes no library operators",
)


def decode_arguments(batch, sink=None):
    return (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, None, sink, None, None)


@library_tools
def test_opcheck(device):
    batch = make_batch([100, 5], s_q=2, device=device)
    op = torch.ops.flash_mla
    scalars = (batch.scale, True, 0, 0, 512, 0)
    sink = torch.zeros(16, device=device)
    out = torch.zeros(2, 2, 16, 512, dtype=batch.q.dtype, device=device)
    lse = torch.zeros(2, 16, 2, device=device)
    torch.library.opcheck(op.decode, decode_arguments(batch, sink) + scalars)
    torch.library.opcheck(op.decode_out, decode_arguments(batch) + (out, lse) + scalars)
    torch.library.opcheck(op.plan, (batch.cache_seqlens, None, -1, 1, 16, 1, 576, 4, 0, 0))
    torch.library.opcheck(op.merge, (torch.stack([out, out]), torch.stack([lse, lse]), None, 0))
    torch.library.opcheck(op.merge_out, (torch.stack([out, out]), torch.stack([lse, lse]), sink, out.clone(), lse, 0))
    rows = batch.q[:, 0, 0]
    slots = torch.tensor([3, -1], device=device)
    torch.library.opcheck(op.kv_append, (rows[:, :512], rows[:, 512:], slots, torch.zeros_like(batch.kv_cache)))


@library_tools
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_a_layer(backend, device):
    """Append, plan, decode and merge in one graph, for changing batches."""

    @torch.compile(fullgraph=True, backend=backend, dynamic=True)
    def layer(q, rows, slots, cache, table, lens, scale):
        flash_mla.kv_append(rows[:, :512], rows[:, 512:], slots, cache)
        plan = flash_mla.plan(lens, h_q=16)
        out, lse = flash_mla.decode(q * 1, cache, table, lens, softmax_scale=scale, plan=plan, empty_lse=float("-inf"))
        both, _ = flash_mla.merge(torch.stack([out, out]), torch.stack([lse, lse]))
        return out + 0, lse, both

    for lengths in ([100, 5], [64, 200, 1]):
        batch = make_batch(lengths, device=device)
        last = batch.cache_seqlens.long() - 1
        pages = batch.block_table.gather(1, last[:, None] // 64)[:, 0].long()
        rows = torch.randn(len(lengths), 576, device=device).bfloat16()
        out, lse, both = layer(
            batch.q, rows, pages * 64 + last % 64, batch.kv_cache, batch.block_table, batch.cache_seqlens, batch.scale
        )
        assert torch.equal(batch.kv_cache[pages, last % 64, 0], rows)
        check(out, lse, batch.reference())
        check(both, None, batch.reference())


@library_tools
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_the_compatible_calls(backend, device):
    batch = make_batch([100, 5], device=device)

    @torch.compile(fullgraph=True, backend=backend)
    def step(q, cache, table, lens):
        meta, splits = flash_mla.get_mla_metadata(lens, 16, 1)
        first, lse = flash_mla.flash_mla_with_kvcache(q, cache, table, lens, 512, meta, splits, batch.scale, True)
        lazy, _ = flash_mla.get_mla_metadata()
        out = torch.empty_like(first)
        second, _ = flash_mla.flash_mla_with_kvcache(q, cache, table, lens, 512, lazy, None, batch.scale, out=out)
        return first, lse, second

    first, lse, second = step(batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)
    check(first, lse, batch.reference())
    check(second, None, batch.reference())


@library_tools
def test_export(device):
    batch = make_batch([100, 5], device=device)

    class Layer(torch.nn.Module):
        def forward(self, q, cache, table, lens):
            return flash_mla.decode(q, cache, table, lens, softmax_scale=0.1)

    a = (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)
    program = torch.export.export(Layer(), a)
    assert "flash_mla.decode" in str(program.graph)
    batch.scale = 0.1
    check(*program.module()(*a), batch.reference())


def test_replays_follow_live_lengths(device):
    """A captured step is replayed with other lengths, other pages and other queries in the same buffers."""
    batch = make_batch([100, 5, 1, 1], device=device, max_pages=6)
    meta, _ = flash_mla.get_mla_metadata()
    a = (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)

    def step():
        layers = [flash_mla.flash_mla_with_kvcache(*a, 512, meta, None, batch.scale, True) for _ in range(3)]
        return layers[0][0], layers[0][1], layers[2][0]

    captured = Captured(step, device)
    for lengths in ([100, 5, 1, 1], [300, 0, 64, 2], [1, 1, 1, 290]):
        new = make_batch(lengths, device=device, max_pages=6)
        pages = min(len(batch.kv_cache), len(new.kv_cache))
        new.block_table[new.block_table != 2147480000] %= pages
        new.kv_cache[:pages] = torch.randn_like(new.kv_cache[:pages]) / 10
        batch.q.copy_(new.q)
        batch.kv_cache[:pages].copy_(new.kv_cache[:pages])
        batch.block_table.copy_(new.block_table)
        batch.cache_seqlens.copy_(new.cache_seqlens)
        first, lse, third = captured.replay()
        check(first, lse, batch.reference())
        check(third, lse, batch.reference())


FIRST_CALL = """
import sys, torch, flash_mla
from reference import check, make_batch
batch = make_batch([300, 5, 4000], h_q=int(sys.argv[1]), device="cuda")
want = batch.reference(causal=True)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens, int(sys.argv[1]), 1)
    out, lse = flash_mla.flash_mla_with_kvcache(
        batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, 512, meta, splits, batch.scale, True)
    both, _ = flash_mla.merge(out[None], lse[None])
out.zero_()
graph.replay()
check(out, lse, want)
check(both, None, want)
"""


@pytest.mark.parametrize("h_q", [16, 128])
def test_the_first_call_of_a_process_is_captured(h_q, device):
    """Nothing of the library was loaded before: loading its kernels must not disturb the capture."""
    if device.type != "cuda":
        pytest.skip("graphs need a GPU")
    here = os.path.dirname(os.path.abspath(__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", FIRST_CALL, str(h_q)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_streams(device):
    """Work goes to the current stream: every call queued behind a slow copy of its inputs on a side stream sees them."""
    if device.type != "cuda":
        pytest.skip("streams need a GPU")
    batch = make_batch([300, 5], device=device)
    last = batch.cache_seqlens.long() - 1
    pages = batch.block_table.gather(1, last[:, None] // 64)[:, 0].long()
    rows, slots = batch.kv_cache[pages, last % 64, 0].clone(), pages * 64 + last % 64
    batch.kv_cache[pages, last % 64] = 0  # to be appended
    want_cache = batch.kv_cache.clone()
    want_cache[pages, last % 64, 0] = rows
    want = type(batch)(batch.q, want_cache, batch.block_table, batch.cache_seqlens, batch.scale).reference()
    late_q, late_rows, late_lens = torch.zeros_like(batch.q), torch.zeros_like(rows), torch.zeros_like(batch.cache_seqlens)

    def step():
        flash_mla.kv_append(late_rows[:, :512], late_rows[:, 512:], slots, batch.kv_cache)
        plan = flash_mla.plan(late_lens, h_q=16)
        out, lse = flash_mla.decode(
            late_q, batch.kv_cache, batch.block_table, late_lens, softmax_scale=batch.scale, plan=plan
        )
        return out, lse, flash_mla.merge(torch.stack([out, out]), torch.stack([lse, lse]))[0], plan.splits

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # loads the kernels and fills the allocator's pool
        torch.cuda.synchronize()
        torch.cuda._sleep(50_000_000)
        late_q.copy_(batch.q)
        late_rows.copy_(rows)
        late_lens.copy_(batch.cache_seqlens)
        out, lse, both, splits = step()
    assert not stream.query(), "a call waited for the device"
    stream.synchronize()
    check(out, lse, want)
    check(both, None, want)
    assert torch.equal(splits, flash_mla.plan(batch.cache_seqlens, h_q=16).splits)


def test_another_gpu():
    """Tensors decide the device and its stream, not torch.cuda.current_device()."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    with torch.cuda.device(0):
        batch = make_batch([300, 5], device=other)
        want = batch.reference()
        a = (batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens)
        meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens, 16, 1)
        out, lse = flash_mla.flash_mla_with_kvcache(*a, 512, meta, splits, batch.scale)
        assert out.device == lse.device == splits.device == other and torch.cuda.current_device() == 0
        check(out, lse, want)
        both, _ = flash_mla.merge(torch.stack([out, out]), torch.stack([lse, lse]))
        check(both, None, want)
        check(*torch.ops.flash_mla.decode(*a, None, None, None, None, batch.scale, False, 0, 0, 512, 0), want)
        row, page = torch.randn(1, 576, device=other).bfloat16(), int(batch.block_table[0, 0])
        flash_mla.kv_append(row[:, :512], row[:, 512:], torch.tensor([page * 64], device=other), batch.kv_cache)
        assert torch.equal(batch.kv_cache[page, 0], row)
        want = batch.reference()
        side = torch.cuda.Stream(other)
        late = torch.zeros_like(batch.q)
        torch.cuda.synchronize(other)
        with torch.cuda.stream(side):  # also makes the other device current
            flash_mla.decode(late, *a[1:], softmax_scale=batch.scale)
            torch.cuda._sleep(50_000_000)
            late.copy_(batch.q)
            with torch.cuda.device(0):  # the other device's current stream is still `side`
                out, lse = flash_mla.decode(late, *a[1:], softmax_scale=batch.scale)
                assert torch.cuda.current_device() == 0
        side.synchronize()
        check(out, lse, want)
