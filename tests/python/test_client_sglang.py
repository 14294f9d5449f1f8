# SPDX-License-Identifier: MIT
"""SGLang: tensors everywhere, wide static buffers with old contents, a fresh int32 copy of the lengths per layer, a
block table that is a slice of a wider one, multi-token verification."""

import importlib
import sys

import flash_mla.adapters.sglang
import pytest
import torch
from reference import Captured, check, make_batch

NUM_SMS, MAX_BATCH, HEADS = 192, 8, 16


@pytest.fixture(params=["flash_mla", "sgl_kernel.flash_mla"])
def interface(request, monkeypatch):
    """2025 imports flash_mla, 2026 sgl_kernel.flash_mla."""
    if request.param == "flash_mla":
        yield flash_mla
        return
    monkeypatch.setitem(sys.modules, "sgl_kernel", type(sys)("sgl_kernel"))
    flash_mla.adapters.sglang.install()
    yield importlib.import_module("sgl_kernel.flash_mla")
    del sys.modules["sgl_kernel.flash_mla"]


@pytest.mark.parametrize("s_q", [1, 4], ids=["decode", "verify"])
def test_graph_replay(interface, s_q, device):
    static_meta = torch.empty(NUM_SMS, 8, dtype=torch.int32, device=device).random_()
    static_splits = torch.empty(MAX_BATCH + 1, dtype=torch.int32, device=device).random_()
    wide_table = torch.full((MAX_BATCH, 40), 1, dtype=torch.int32, device=device)
    seq_lens = torch.ones(MAX_BATCH, dtype=torch.int64, device=device)
    batch = make_batch([300, 64, 131], s_q=s_q, device=device)
    bs, real, pages = 4, 3, batch.block_table.shape[1]  # one padded request of length 1 in page 1
    pool = batch.kv_cache.clone()
    pool[1] = torch.where(pool[1].isnan(), torch.ones_like(pool[1]), pool[1])
    q = torch.cat([batch.q, torch.randn_like(batch.q[:1])])

    def plan(lens):
        return interface.get_mla_metadata(lens.to(torch.int32), s_q * HEADS, 1, is_fp8_kvcache=False)

    meta, splits = plan(seq_lens[:bs])
    parts = meta.shape[0]

    def forward():
        out, _ = interface.flash_mla_with_kvcache(
            q=q.view(bs, s_q, HEADS, 576), k_cache=pool.view(-1, 64, 1, 576), block_table=wide_table[:bs, :pages],
            cache_seqlens=seq_lens[:bs].to(torch.int32), head_dim_v=512, tile_scheduler_metadata=static_meta[:parts],
            num_splits=static_splits[: bs + 1], softmax_scale=batch.scale, causal=True,
        )  # fmt: skip
        return (out,)

    graph = None
    for shorter in (0, 50):
        lens = torch.clamp(batch.cache_seqlens - shorter, min=s_q)
        seq_lens[:real].copy_(lens)
        seq_lens[real:] = s_q
        used = batch.block_table.clone()
        used[used >= len(pool)] = 1
        wide_table[:real, :pages].copy_(used)
        meta, splits = plan(seq_lens[:bs])
        assert meta.shape[0] == parts, "the number of parts must not change"
        static_meta[: meta.shape[0]].copy_(meta)
        static_splits[: bs + 1].copy_(splits)
        graph = graph or Captured(forward, device)
        (out,) = graph.replay()
        step = type(batch)(q, pool, wide_table[:bs], seq_lens[:bs], batch.scale)
        check(out, None, step.reference(causal=True))


def test_plain_tensors_at_the_kernel_path(interface, device):
    meta, splits = interface.get_mla_metadata(torch.ones(3, dtype=torch.int32, device=device), HEADS, 1)
    assert isinstance(splits, torch.Tensor)
    if interface is not flash_mla:
        assert isinstance(meta, torch.Tensor)


def test_sparse_metadata_and_call(interface, device):
    """Generation 2 with all six arguments by keyword; the result is sliced and copied; the kernel call raises."""
    lens = torch.full((6,), 2048, dtype=torch.int32, device=device)
    meta, splits = interface.get_mla_metadata(
        cache_seqlens=lens, num_q_tokens_per_head_k=64, num_heads_k=1, num_heads_q=64, is_fp8_kvcache=True, topk=2048
    )
    torch.empty_like(splits)[slice(0, 7)].copy_(splits[slice(0, 7)])
    torch.empty_like(meta[:]).copy_(meta)
    with pytest.raises(NotImplementedError, match="sparse decoding"):
        interface.flash_mla_with_kvcache(
            q=torch.zeros(6, 1, 64, 576, dtype=torch.bfloat16, device=device),
            k_cache=torch.zeros(4, 64, 1, 656, dtype=torch.uint8, device=device),
            block_table=torch.empty((6, 0), dtype=torch.int32, device=device), cache_seqlens=lens, head_dim_v=512,
            tile_scheduler_metadata=meta, num_splits=splits, softmax_scale=0.1, is_fp8_kvcache=True,
            indices=torch.zeros(6, 1, 2048, dtype=torch.int32, device=device),
        )  # fmt: skip
