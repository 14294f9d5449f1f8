# SPDX-License-Identifier: MIT
"""vLLM with an FP8 cache, and its sparse models: not built yet, so every entry raises cleanly and names it, while the
metadata call and the assignment of plan tensors into the object work."""

import flash_mla.adapters.sglang
import flash_mla.adapters.vllm as interface
import pytest
import torch
from reference import check, make_batch


def test_dense_fp8_adapters(device):
    batch = make_batch([100], device=device)
    one = torch.ones(1, device=device)
    with pytest.raises(NotImplementedError, match="get_mla_metadata_dense_fp8.*FP8"):
        interface.get_mla_metadata_dense_fp8(batch.cache_seqlens, 16, 1)
    meta, _ = interface.get_mla_metadata(batch.cache_seqlens, 16, 1, is_fp8_kvcache=True)
    with pytest.raises(NotImplementedError, match="flash_mla_with_kvcache_fp8.*FP8"):
        interface.flash_mla_with_kvcache_fp8(
            q=batch.q, k_cache=batch.kv_cache, block_table=batch.block_table, cache_seqlens=batch.cache_seqlens,
            head_dim_v=512, tile_scheduler_metadata=meta.tile_scheduler_metadata, num_splits=meta.num_splits,
            softmax_scale=batch.scale, causal=True, descale_q=one, descale_k=one,
        )  # fmt: skip
    with pytest.raises(NotImplementedError, match="FP8"):
        flash_mla.adapters.sglang.flash_mla_with_kvcache(
            q=batch.q, k_cache=batch.kv_cache, block_table=batch.block_table, cache_seqlens=batch.cache_seqlens,
            head_dim_v=512, tile_scheduler_metadata=None, num_splits=None, descale_q=one, descale_k=one,
        )  # fmt: skip


def test_plan_assigned_into_the_object(device):
    """The FP8 path replaces the object's tensors by views of static buffers; a bf16 call with it must still be right."""
    batch = make_batch([300, 5], device=device)
    meta, _ = interface.get_mla_metadata(batch.cache_seqlens, 16, 1)
    static_meta = torch.zeros(200, 8, dtype=torch.int32, device=device)
    static_splits = torch.zeros(9, dtype=torch.int32, device=device)
    rows = meta.tile_scheduler_metadata.shape[0]
    static_meta[:rows].copy_(meta.tile_scheduler_metadata)
    static_splits[:3].copy_(meta.num_splits)
    meta.tile_scheduler_metadata, meta.num_splits = static_meta[:rows], static_splits[:3]
    out, lse = interface.flash_mla_with_kvcache(
        q=batch.q, k_cache=batch.kv_cache, block_table=batch.block_table, cache_seqlens=batch.cache_seqlens,
        head_dim_v=512, tile_scheduler_metadata=meta, softmax_scale=batch.scale, causal=True,
    )  # fmt: skip
    check(out, lse, batch.reference())
    assert meta.num_splits.data_ptr() == static_splits.data_ptr()


@pytest.mark.parametrize("dummies", [True, False])
def test_sparse_decode(dummies, device):
    """V3.2 passes a dummy table and lengths, V4 passes None; both pass indices."""
    meta, nothing = interface.get_mla_metadata()
    assert nothing is None
    cache = torch.zeros(4, 64, 1, 656, dtype=torch.uint8, device=device)
    q = torch.zeros(2, 1, 64, 576, dtype=torch.bfloat16, device=device)
    with pytest.raises(NotImplementedError, match="sparse decoding"):
        interface.flash_mla_with_kvcache(
            q=q, k_cache=cache,
            block_table=torch.zeros(2, 1, dtype=torch.int32, device=device) if dummies else None,
            cache_seqlens=torch.full((2,), 4096, dtype=torch.int32, device=device) if dummies else None,
            head_dim_v=512, tile_scheduler_metadata=meta, softmax_scale=0.1, is_fp8_kvcache=True,
            indices=torch.zeros(2, 1, 128, dtype=torch.int32, device=device), out=torch.empty_like(q[..., :512]),
        )  # fmt: skip
    with pytest.raises(NotImplementedError, match="sparse prefill"):
        interface.flash_mla_sparse_fwd(q[:, 0], q[:1, :, :1], torch.zeros(2, 1, 128, dtype=torch.int32), 0.1)
