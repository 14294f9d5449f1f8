# SPDX-License-Identifier: MIT
"""vLLM, V1 engine in 2026 (generation 3): a new object each step, shared by all layers, imported from vLLM's own path;
context parallelism merges partial results through lse."""

import importlib
import sys

import flash_mla.adapters.vllm
import pytest
import torch
from reference import Captured, check, make_batch

PATH = "vllm.third_party.flashmla.flash_mla_interface"


@pytest.fixture
def interface(monkeypatch):
    for depth in range(1, 4):
        name = ".".join(PATH.split(".")[:depth])
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.delitem(sys.modules, PATH, raising=False)
    flash_mla.adapters.vllm.install()
    yield importlib.import_module(PATH)
    del sys.modules[PATH]


def test_names(interface):
    from vllm.third_party.flashmla import flash_mla_interface
    from vllm.third_party.flashmla.flash_mla_interface import (
        FlashMLASchedMeta,
        flash_attn_varlen_func,
        flash_mla_sparse_fwd,
        flash_mla_with_kvcache,
        get_mla_metadata,
    )

    assert flash_mla_interface is interface and FlashMLASchedMeta is flash_mla.FlashMLASchedMeta
    assert all(map(callable, (flash_attn_varlen_func, flash_mla_sparse_fwd, flash_mla_with_kvcache, get_mla_metadata)))


@pytest.mark.parametrize("s_q", [1, 3])
def test_steps_with_one_object_for_all_layers(interface, s_q, device):
    for lengths in ([300, 5], [301, 6, 64], [1]):
        batch = make_batch(lengths, s_q=s_q, device=device)
        meta, _ = interface.get_mla_metadata(batch.cache_seqlens, s_q * 16, 1, is_fp8_kvcache=False)
        assert isinstance(meta, interface.FlashMLASchedMeta)
        for _ in range(3):
            out, lse = interface.flash_mla_with_kvcache(
                q=batch.q, k_cache=batch.kv_cache[:, :, 0].unsqueeze(-2), block_table=batch.block_table,
                cache_seqlens=batch.cache_seqlens, head_dim_v=512, tile_scheduler_metadata=meta,
                softmax_scale=batch.scale, causal=True,
            )  # fmt: skip
        check(out, lse, batch.reference(causal=True))


def test_graph_keeps_no_plan(interface, device):
    """The object of the capture, warm or not, must not freeze the plan: later replays have other lengths."""
    batch = make_batch([290, 5, 1], device=device, max_pages=6)
    meta, _ = interface.get_mla_metadata(batch.cache_seqlens, 16, 1)

    def step():
        return interface.flash_mla_with_kvcache(
            q=batch.q, k_cache=batch.kv_cache, block_table=batch.block_table, cache_seqlens=batch.cache_seqlens,
            head_dim_v=512, tile_scheduler_metadata=meta, softmax_scale=batch.scale, causal=True,
        )  # fmt: skip

    graph = Captured(step, device)
    for lengths in ([290, 5, 1], [64, 1, 1], [1, 0, 1]):
        batch.cache_seqlens.copy_(torch.tensor(lengths, dtype=torch.int32))
        out, lse = graph.replay()
        check(out, lse, batch.reference())


def test_context_parallel_merge(interface, device):
    """Each rank holds some pages; a rank without keys reports an empty row; ranks are merged through lse."""
    batch = make_batch([256, 64], dtype=torch.float16, device=device)
    partial = []
    for pages, lens in (([0, 2], [128, 64]), ([1, 3], [128, 0])):
        table = batch.block_table[:, pages].contiguous()
        lens = torch.tensor(lens, dtype=torch.int32, device=device)
        meta, _ = interface.get_mla_metadata(lens, 16, 1)
        out, lse = interface.flash_mla_with_kvcache(
            q=batch.q, k_cache=batch.kv_cache, block_table=table, cache_seqlens=lens, head_dim_v=512,
            tile_scheduler_metadata=meta, softmax_scale=batch.scale, causal=True, empty_lse=-float("inf"),
        )  # fmt: skip
        partial.append((out, lse.permute(0, 2, 1).contiguous()))  # token-major, as this client keeps it
    assert (partial[1][1][1] == -float("inf")).all()
    out, lse = flash_mla.merge(
        torch.stack([p[0] for p in partial]), torch.stack([p[1] for p in partial]).permute(0, 1, 3, 2)
    )
    check(out, lse, batch.reference())
