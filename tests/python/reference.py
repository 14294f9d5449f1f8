# SPDX-License-Identifier: MIT
"""The answer computed by PyTorch in fp32, input data with poison in every unused place, and the accuracy bars."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

D_QK, D_V = 576, 512
# Upstream's tolerances for dense decoding: (abs, rel) per element, either suffices, and the cosine distance of it all.
# They are made for upstream's inputs, queries and keys with a standard deviation of 0.1.  The wide queries that most tests
# take make scores 40 times as large, and fp32 rounds a score near 0 (a row of one key has lse = its score, a sum of 576
# products that cancel) 40 times as coarsely: there fp32 in another order is off by 2e-6, fp16 split for AMX by 6e-6.
OUT_BAR, LSE_BAR, COSINE_BAR = (8e-4, 2.01 / 128), (1e-6, 8.01 / 65536), 5e-6
WIDE_LSE_BAR = (1e-5, 8.01 / 65536)
UPSTREAM_Q, WIDE_Q = 0.1, 4.0  # standard deviations of q
GARBAGE_PAGE = 2147480000


def decode(q, kv_cache, block_table, cache_seqlens, scale, causal=False, window=0, sink=None, empty=math.inf):
    """fp32 attention, request by request.  Works on the tensors' device."""
    b, s_q, h_q, _ = q.shape
    page, h_kv = kv_cache.shape[1:3]
    out = torch.zeros(b, s_q, h_q, D_V, device=q.device)
    lse = torch.full((b, h_q, s_q), empty, device=q.device)
    for i, length in enumerate(cache_seqlens.tolist()):
        if length == 0:
            continue
        pages = block_table[i, : -(-length // page)].long()
        k = kv_cache[pages].reshape(-1, h_kv, kv_cache.shape[3])[:length].float()
        k = k.repeat_interleave(h_q // h_kv, dim=1)
        score = torch.einsum("shd,thd->hst", q[i].float(), k) * scale
        t = torch.arange(length, device=q.device)
        last = length - s_q + torch.arange(s_q, device=q.device)[:, None] if causal else torch.full_like(t[:1], length)
        hidden = (t > last) | (t <= last - window) if window else t > last
        score = score.masked_fill(hidden, -math.inf)
        row_lse = torch.logsumexp(score, -1)
        weight = torch.exp(score - row_lse[..., None]).nan_to_num(0.0)
        if sink is not None:
            weight = weight / (1 + torch.exp(sink[:, None, None] - row_lse[..., None]))
        out[i] = torch.einsum("hst,thd->shd", weight.nan_to_num(0.0), k[..., :D_V])
        lse[i] = torch.where(row_lse == -math.inf, torch.full_like(row_lse, empty), row_lse)
    return out, lse


def _close(name, got, want, bar):
    got, want = got.float(), want.float()
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    special = ~torch.isfinite(want)
    assert torch.equal(torch.isfinite(got), ~special), f"{name}: finite in different places"
    assert torch.equal(got[special], want[special]), f"{name}: different infinities"
    got, want = got[~special], want[~special]
    error = (got - want).abs()
    bad = (error > bar[0]) & (error > bar[1] * want.abs())
    if bad.any():
        i = int(torch.where(bad, error, torch.zeros_like(error)).argmax())
        raise AssertionError(f"{name}: {int(bad.sum())} values off, worst {got[i].item()} instead of {want[i].item()}")
    if got.numel():
        x, y = got.double(), want.double()
        norm = (x * x + y * y).sum().item()
        distance = 1 - 2 * (x * y).sum().item() / norm if norm else 0.0
        assert distance < COSINE_BAR, f"{name}: cosine distance {distance}"


def check(out, lse, want, lse_bar=WIDE_LSE_BAR):
    """The acceptance bars for out and lse (None: not looked at)."""
    _close("out", out, want[0], OUT_BAR)
    if lse is not None:
        assert lse.dtype == torch.float32
        _close("lse", lse, want[1], lse_bar)


@dataclass
class Batch:
    q: torch.Tensor
    kv_cache: torch.Tensor
    block_table: torch.Tensor
    cache_seqlens: torch.Tensor
    scale: float

    def reference(self, **options):
        return decode(self.q, self.kv_cache, self.block_table, self.cache_seqlens, self.scale, **options)


def make_batch(
    lengths, s_q=1, h_q=16, h_kv=1, page=64, dtype=torch.bfloat16, device="cpu", max_pages=None, d_qk=D_QK, q_std=WIDE_Q
):
    """Shuffled pages; NaN in every cache row that no request uses, garbage in every unused table entry.

    Keys have a standard deviation of 0.1, for which upstream's absolute bar of 8e-4 is made: it is what rounding the
    weights to bf16 costs.  The wide q spreads the scores of one row by about 0.7, upstream's by 0.02.
    """
    needed = [-(-n // page) for n in lengths]
    width = max_pages or max([*needed, 1]) + 1
    num_pages = sum(needed) + 3
    kv = (torch.randn(num_pages, page, h_kv, d_qk, device=device) / 10).to(dtype)
    order = torch.randperm(num_pages).tolist()
    table = torch.full((len(lengths), width), GARBAGE_PAGE, dtype=torch.int32)
    for i, n in enumerate(needed):
        mine, order = order[:n], order[n:]
        table[i, :n] = torch.tensor(mine, dtype=torch.int32)
        if n and lengths[i] % page:
            kv[mine[-1], lengths[i] % page :] = math.nan
    for p in order:
        kv[p] = math.nan
    q = (torch.randn(len(lengths), s_q, h_q, d_qk, device=device) * q_std).to(dtype)
    lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    return Batch(q, kv, table.to(device), lens, 192**-0.5)


class Captured:
    """A step recorded once and replayed: a CUDA graph on the GPU; on the CPU the same calls on the same buffers."""

    def __init__(self, step, device):
        self.step, self.graph = step, None
        if device.type == "cuda":
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = step()
        else:
            self.result = [x.clone() for x in step()]

    def replay(self):
        if self.graph is not None:
            self.graph.replay()
        else:
            for old, new in zip(self.result, self.step()):
                old.copy_(new)
        return self.result
