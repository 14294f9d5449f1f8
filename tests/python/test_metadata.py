# SPDX-License-Identifier: MIT
"""The object that is a schedule of three generations at once."""

import flash_mla
import pytest
import torch
from flash_mla import FlashMLASchedMeta, get_mla_metadata
from reference import check, make_batch


def decode(batch, meta, splits=None, **options):
    return flash_mla.flash_mla_with_kvcache(
        batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, 512, meta, splits, batch.scale, **options
    )


@pytest.mark.parametrize(
    "arguments, keywords",
    [
        (["lens"], {"num_heads_per_head_k": 16, "num_heads_k": 1}),
        (["lens", 16], {}),
        (["lens", 16, 1], {}),
        (["lens", 16], {"num_heads_k": 1, "num_heads_q": None, "is_fp8_kvcache": False, "topk": None}),
        (["lens", 16, 1, 16, False, None], {}),
        ([], {"cache_seqlens": "lens", "num_q_tokens_per_head_k": 16, "num_heads_k": 1, "from_the_future": 1}),
    ],
)
def test_every_way_to_call_it(arguments, keywords, device):
    batch = make_batch([100, 5], device=device)
    known = lambda x: batch.cache_seqlens if isinstance(x, str) else x
    result = get_mla_metadata(*map(known, arguments), **{k: known(v) for k, v in keywords.items()})
    assert isinstance(result, tuple) and len(result) == 2
    meta, splits = result
    assert isinstance(meta, FlashMLASchedMeta) and not isinstance(meta, torch.Tensor)
    assert splits.shape == (3,) and splits.dtype == torch.int32
    check(*decode(batch, meta, splits), batch.reference())


def test_without_lengths(device):
    meta, nothing = get_mla_metadata()
    assert nothing is None and not meta.have_initialized and meta.config is None
    assert meta.tile_scheduler_metadata is None and meta.num_splits is None
    with pytest.raises(RuntimeError, match="no tensor yet"):
        meta.shape
    batch = make_batch([100, 5], device=device)
    check(*decode(batch, meta), batch.reference())
    assert meta.have_initialized
    assert (meta.config.b, meta.config.s_q, meta.config.h_q, meta.config.page_block_size) == (2, 1, 16, 64)
    want = flash_mla.plan(batch.cache_seqlens, h_q=16)
    assert torch.equal(meta.tile_scheduler_metadata, want.parts) and torch.equal(meta.num_splits, want.splits)
    other = make_batch([64, 1, 200], s_q=2, device=device)  # other shapes: planned again, not rejected
    check(*decode(other, meta, causal=True), other.reference(causal=True))
    assert meta.config.b == 3 and meta.num_splits.shape == (4,)


def test_every_way_to_pass_it(device):
    """Generation 3 positionally, all keywords, and no schedule at all."""
    batch = make_batch([100, 5], device=device)
    want = batch.reference(causal=True)
    meta, splits = get_mla_metadata(batch.cache_seqlens, 16, 1)
    a = {"q": batch.q, "k_cache": batch.kv_cache, "block_table": batch.block_table, "cache_seqlens": batch.cache_seqlens}
    options = {"softmax_scale": batch.scale, "causal": True}
    call = flash_mla.flash_mla_with_kvcache
    check(*call(*a.values(), 512, meta, None, batch.scale, True, False, *[None] * 6), want)
    for schedule in (meta, meta.tile_scheduler_metadata, None):
        for second in (splits, splits.clone()):
            check(*call(**a, head_dim_v=512, tile_scheduler_metadata=schedule, num_splits=second, **options), want)
    check(*call(**a, head_dim_v=512, **options), want)


def test_missing_row_count(device):
    lens = torch.ones(2, dtype=torch.int32, device=device)
    with pytest.raises(TypeError, match="num_q_tokens_per_head_k"):
        get_mla_metadata(lens)
    with pytest.raises(ValueError, match="num_q_tokens_per_head_k is 0"):
        get_mla_metadata(lens, 0, 1)
    with pytest.raises(TypeError, match="cache_seqlens"):
        get_mla_metadata([1, 2], 16, 1)


def test_hybrid_is_a_tensor_to_torch(device):
    lens = torch.tensor([4000, 5], dtype=torch.int32, device=device)
    meta, _ = get_mla_metadata(lens, 16, 1)
    tensor = meta.tile_scheduler_metadata
    rows = tensor.shape[0]
    assert meta.shape == tensor.shape and meta.size(0) == rows and meta.dtype == torch.int32 and len(meta) == rows
    assert meta.device == tensor.device and meta.data_ptr() == tensor.data_ptr() and meta.is_contiguous()
    assert torch.equal(meta[:1], tensor[:1])
    buffer = torch.zeros(rows + 3, 8, dtype=torch.int32, device=device)
    buffer[:rows].copy_(meta)
    assert torch.equal(buffer[:rows], tensor)
    buffer[:rows] = meta
    assert torch.equal(torch.cat([meta, buffer[rows:]]), buffer)
    assert torch.equal(meta, tensor) and torch.zeros_like(meta).shape == tensor.shape
    other, _ = get_mla_metadata(lens // 2, 16, 1)
    meta.copy_(other)
    assert torch.equal(tensor, other.tile_scheduler_metadata)
    meta[0] = 7
    assert (tensor[0] == 7).all()
    with pytest.raises(AttributeError):
        meta.no_such_attribute


def test_assigned_tensors_are_used_in_place(device, monkeypatch):
    batch = make_batch([100, 5], device=device)
    plan = flash_mla.plan(batch.cache_seqlens, h_q=16)
    meta, _ = get_mla_metadata()
    meta.tile_scheduler_metadata, meta.num_splits = plan
    used, native = [], flash_mla._C.decode
    monkeypatch.setattr(flash_mla._C, "decode", lambda *a: used.append(a[6:8]) or native(*a))
    check(*decode(batch, meta), batch.reference())
    assert used[-1][0] is plan.parts and used[-1][1] is plan.splits
    assert meta.tile_scheduler_metadata is plan.parts and meta.num_splits is plan.splits and meta.have_initialized
    other = make_batch([64, 1, 200], device=device)  # does not fit: the call plans for itself
    check(*decode(other, meta), other.reference())
    assert used[-1] == (None, None) and meta.num_splits is plan.splits


@pytest.mark.parametrize("mode", ["tensor", "object", "auto"])
def test_override(mode, device, monkeypatch):
    monkeypatch.setenv("FLASH_MLA_METADATA", mode)
    batch = make_batch([100, 5], device=device)
    meta, splits = get_mla_metadata(batch.cache_seqlens, 16, 1)
    assert isinstance(meta, torch.Tensor) == (mode == "tensor")
    assert (splits is None) == (mode == "object")
    check(*decode(batch, meta, splits), batch.reference())
    monkeypatch.setenv("FLASH_MLA_METADATA", "sometimes")
    with pytest.raises(ValueError, match="FLASH_MLA_METADATA is 'sometimes'"):
        get_mla_metadata(batch.cache_seqlens, 16, 1)
