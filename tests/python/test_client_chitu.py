# SPDX-License-Identifier: MIT
"""Chitu: everything positional, fixed-shape static tensors, num_splits as long as the largest batch."""

import flash_mla
import pytest
import torch
from reference import Captured, check, make_batch


@pytest.mark.parametrize("mtp", [1, 2])
def test_positional(mtp, device):
    batch = make_batch([300, 5, 64], s_q=mtp, device=device)
    kv = batch.kv_cache.squeeze(2)
    meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens, mtp * 16, 1)
    static_meta = torch.empty(meta.shape, dtype=torch.int32, device=device)
    static_splits = torch.zeros(9, dtype=torch.int32, device=device)

    def forward():
        out, _ = flash_mla.flash_mla_with_kvcache(
            batch.q, kv.unsqueeze(2), batch.block_table, batch.cache_seqlens, 512, static_meta, static_splits[:4],
            causal=True, softmax_scale=batch.scale,
        )  # fmt: skip
        return (out,)

    graph = None
    for shorter in (0, 40):
        batch.cache_seqlens.sub_(shorter).clamp_(min=mtp)
        meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens, mtp * 16, 1)
        static_meta.copy_(meta)
        static_splits[:4].copy_(splits)
        graph = graph or Captured(forward, device)
        check(graph.replay()[0], None, batch.reference(causal=True))
