# SPDX-License-Identifier: MIT
"""TensorRT-LLM style: the plan is written into static buffers handed over as out-parameters."""

import flash_mla
import pytest
import torch
from reference import Captured, check, make_batch

MAX_BATCH, HEADS = 8, 16


@pytest.mark.parametrize("s_q", [1, 3])
def test_plan_into_static_buffers(s_q, device):
    kind = (2, 0) if device.type == "cuda" else (1, 0)
    rows = flash_mla.plan_parts(h_q=HEADS, s_q=s_q, device=kind)
    meta_out = torch.full((rows, 8), -1, dtype=torch.int32, device=device)
    splits_out = torch.full((MAX_BATCH + 1,), -1, dtype=torch.int32, device=device)
    batch = make_batch([300, 5, 64], s_q=s_q, device=device)
    out = torch.zeros(3, s_q, HEADS, 512, dtype=torch.bfloat16, device=device)

    def step():
        plan = flash_mla.plan(batch.cache_seqlens, h_q=HEADS, s_q=s_q, h_kv=1, parts=meta_out, splits=splits_out[:4])
        assert plan.parts.data_ptr() == meta_out.data_ptr() and plan.splits.data_ptr() == splits_out.data_ptr()
        flash_mla.decode(
            batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, softmax_scale=batch.scale, causal=True,
            plan=plan, out=out,
        )  # fmt: skip
        return (out,)

    graph = Captured(step, device)
    for shorter in (0, 40):
        batch.cache_seqlens.sub_(shorter).clamp_(min=s_q)
        check(graph.replay()[0], None, batch.reference(causal=True))
        assert splits_out[0] == 0 and splits_out[3] >= 3 and (splits_out[4:] == -1).all()
    with pytest.raises(ValueError, match="plan_splits"):
        flash_mla.plan(batch.cache_seqlens, h_q=HEADS, parts=meta_out, splits=splits_out)
    with pytest.raises(ValueError, match="plan_parts"):
        flash_mla.plan(batch.cache_seqlens, h_q=HEADS, parts=meta_out[:0], splits=splits_out[:4])
