# SPDX-License-Identifier: MIT
"""UCM (a patch of vLLM for sparse caches): its own lengths after selecting blocks, the plan kept in a triple."""

import flash_mla
import torch
from reference import check, make_batch


def test_selected_blocks(device):
    batch = make_batch([64 * 6, 64 * 4, 40], device=device)
    keep = {0: [0, 2, 5], 1: [1, 3], 2: [0]}
    table = torch.ones_like(batch.block_table)
    topk_lens = torch.tensor([192, 128, 40], dtype=torch.int32, device=device)
    for i, blocks in keep.items():
        table[i, : len(blocks)] = batch.block_table[i, blocks]
    saved = (*flash_mla.get_mla_metadata(topk_lens, 16, 1), topk_lens)
    batch.block_table, batch.cache_seqlens = table, topk_lens
    for _ in range(2):
        meta, splits, lens = saved
        out, lse = flash_mla.flash_mla_with_kvcache(
            q=batch.q, k_cache=batch.kv_cache, block_table=table, cache_seqlens=lens, head_dim_v=512,
            tile_scheduler_metadata=meta, num_splits=splits, softmax_scale=batch.scale, causal=True,
        )  # fmt: skip
        check(out, lse, batch.reference())
