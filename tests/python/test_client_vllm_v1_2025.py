# SPDX-License-Identifier: MIT
"""vLLM, V1 engine in 2025 (generations 1 and 2): wide static buffers, the tail of num_splits filled with its last
value, so that padded requests have no splits at all."""

import flash_mla
import pytest
import torch
from reference import Captured, check, make_batch

HEADS, MAX_BATCH, NUM_SMS = 16, 8, 192


@pytest.mark.parametrize("fp8_keyword", [{}, {"is_fp8_kvcache": False}], ids=["generation 1", "generation 2"])
@pytest.mark.parametrize("padded", [0, 3])
def test_step(padded, fp8_keyword, device):
    static_meta = torch.zeros(NUM_SMS, 8, dtype=torch.int32, device=device)
    static_splits = torch.empty(MAX_BATCH + 1, dtype=torch.int32, device=device)
    static_splits.fill_(-7)
    # Padded requests: length 0 and a table of garbage; the graph was captured for the padded batch.
    batch = make_batch([300, 1, 65, 128] + [0] * padded, h_q=HEADS, device=device)
    size, real = 4 + padded, 4

    def forward():
        return flash_mla.flash_mla_with_kvcache(
            q=batch.q, k_cache=batch.kv_cache, block_table=batch.block_table, cache_seqlens=batch.cache_seqlens,
            head_dim_v=512, tile_scheduler_metadata=meta_view, num_splits=static_splits[: size + 1],
            softmax_scale=batch.scale, causal=True,
        )  # fmt: skip

    graph = None
    for shorter in (0, 60):
        batch.cache_seqlens[:real] = torch.clamp(batch.cache_seqlens[:real] - shorter, min=1)
        meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens[:real], HEADS, 1, **fp8_keyword)
        parts = meta.size(0)
        assert parts <= NUM_SMS
        meta_view = static_meta[:parts]
        meta_view.copy_(meta)
        n = splits.size(0)
        static_splits[:n].copy_(splits)
        static_splits[n:].fill_(static_splits[n - 1])
        graph = graph or Captured(forward, device)
        out, lse = graph.replay()
        check(out, lse, batch.reference())
        assert (out[real:] == 0).all(), "padding must not leave NaN behind"


def test_prompts_of_up_to_128_tokens_arrive_as_decode(device):
    batch = make_batch([128, 200], s_q=128, h_q=4, device=device)
    meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens, 128 * 4, 1)
    assert meta.shape[0] >= 1
    out, lse = flash_mla.flash_mla_with_kvcache(
        batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, 512, meta, splits, batch.scale, causal=True
    )
    check(out, lse, batch.reference(causal=True))
