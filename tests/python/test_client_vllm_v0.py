# SPDX-License-Identifier: MIT
"""vLLM, V0 engine (early 2025, generation 1): tensors in static buffers, plan copied in before each graph replay."""

import flash_mla
import torch
from reference import Captured, check, make_batch

HEADS, MAX_BATCH = 16, 8


class Backend:
    """One model runner: buffers made for the largest batch, a dummy plan at start-up."""

    def __init__(self, device):
        ones = torch.ones(MAX_BATCH, dtype=torch.int32, device=device)
        meta, splits = flash_mla.get_mla_metadata(ones, HEADS, 1)
        self.meta = torch.zeros_like(meta.tile_scheduler_metadata)
        self.meta.copy_(meta)
        self.splits = splits.clone()
        self.lens = ones
        self.table = torch.zeros(MAX_BATCH, 16, dtype=torch.int32, device=device)
        self.q = torch.zeros(MAX_BATCH, HEADS, 576, dtype=torch.bfloat16, device=device)

    def forward(self, cache, bs, scale):
        q = torch.cat([self.q[:bs, :, :512], self.q[:bs, :, 512:]], dim=-1)
        out, _ = flash_mla.flash_mla_with_kvcache(
            q=q.unsqueeze(1),
            k_cache=cache.unsqueeze(-2),
            block_table=self.table[:bs],
            cache_seqlens=self.lens[:bs],
            head_dim_v=512,
            tile_scheduler_metadata=self.meta,
            num_splits=self.splits[: bs + 1],
            softmax_scale=scale,
            causal=True,
        )
        return (out,)


def test_eager_decode(device):
    batch = make_batch([100, 5, 640], h_q=HEADS, device=device)
    meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens, HEADS, 1)
    out, _ = flash_mla.flash_mla_with_kvcache(
        q=batch.q, k_cache=batch.kv_cache, block_table=batch.block_table, cache_seqlens=batch.cache_seqlens,
        head_dim_v=512, tile_scheduler_metadata=meta, num_splits=splits, softmax_scale=batch.scale, causal=True,
    )  # fmt: skip
    check(out, None, batch.reference())


def test_graph_with_static_buffers(device):
    backend = Backend(device)
    batch = make_batch([300, 1, 65, 128], h_q=HEADS, device=device, max_pages=16)
    cache = batch.kv_cache[:, :, 0]
    graph = Captured(lambda: backend.forward(cache, 4, batch.scale), device)
    for lens in (batch.cache_seqlens, torch.clamp(batch.cache_seqlens - 60, min=1)):
        meta, splits = flash_mla.get_mla_metadata(lens, HEADS, 1)
        assert meta.shape == backend.meta.shape, "P must not depend on the batch"
        backend.meta.copy_(meta)
        backend.splits[:5].copy_(splits)
        backend.lens[:4].copy_(lens)
        backend.table[:4].copy_(batch.block_table)
        backend.q[:4].copy_(batch.q[:, 0])
        batch.cache_seqlens = lens
        check(graph.replay()[0], None, batch.reference())
