# SPDX-License-Identifier: MIT
"""LMDeploy runs on every generation: isinstance(metadata, torch.Tensor) decides between copying tensors into static
buffers (1, 2) and putting a fresh object into place right before the capture (3)."""

import flash_mla
import pytest
import torch
from reference import Captured, check, make_batch


def metadata(lens, s_q):
    return flash_mla.get_mla_metadata(
        lens.to(torch.int32), 16 * s_q, num_heads_k=1, num_heads_q=None, is_fp8_kvcache=False, topk=None
    )


@pytest.mark.parametrize("mode", ["tensor", "object", "auto"])
@pytest.mark.parametrize("s_q", [1, 2])
def test_graph(mode, s_q, device, monkeypatch):
    monkeypatch.setenv("FLASH_MLA_METADATA", mode)
    batch = make_batch([300, 5, 64], s_q=s_q, device=device)
    static = {"meta": None, "splits": torch.zeros(9, dtype=torch.int32, device=device)}

    def fill():
        meta, splits = metadata(batch.cache_seqlens, s_q)
        if isinstance(meta, torch.Tensor):
            if static["meta"] is None:
                static["meta"] = torch.zeros_like(meta)
            static["meta"].copy_(meta)
            static["splits"][:4].copy_(splits)
        elif static["meta"] is None:  # generation 3: a fresh object, planned inside the capture
            static["meta"] = metadata(batch.cache_seqlens, s_q)[0]

    def forward():
        splits = static["splits"][:4] if isinstance(static["meta"], torch.Tensor) else None
        out, _ = flash_mla.flash_mla_with_kvcache(
            batch.q, k_cache=batch.kv_cache, block_table=batch.block_table, cache_seqlens=batch.cache_seqlens,
            head_dim_v=512, softmax_scale=batch.scale, tile_scheduler_metadata=static["meta"], num_splits=splits,
            causal=True, is_fp8_kvcache=False, indices=None,
        )  # fmt: skip
        return (out,)

    fill()
    graph = Captured(forward, device)
    for shorter in (0, 40):
        batch.cache_seqlens.sub_(shorter).clamp_(min=s_q)
        fill()
        check(graph.replay()[0], None, batch.reference(causal=True))
