# SPDX-License-Identifier: MIT
"""vLLM's batch-invariant mode: the plan is overwritten by one row of the generation 2 field order (begin request, begin
block, end request, end block) and zero splits, inside buffers of any generation.  It is no plan of ours: ignored."""

import flash_mla
import pytest
import torch
from reference import check, make_batch


@pytest.mark.parametrize("into_object", [False, True])
def test_overwritten_plan(into_object, device):
    batch = make_batch([300, 5, 700, 0], device=device)
    meta, splits = flash_mla.get_mla_metadata(batch.cache_seqlens, 16, 1)
    row = torch.zeros(1, 8, dtype=torch.int32, device=device)
    row[0, 2], row[0, 3] = 4 - 1, -(-int(batch.cache_seqlens[-1]) // 64)
    none = torch.zeros(5, dtype=torch.int32, device=device)
    if into_object:
        meta.tile_scheduler_metadata, meta.num_splits = row, none
        plan = (meta, None)
    else:
        plan = (row, none)
    out, lse = flash_mla.flash_mla_with_kvcache(
        batch.q, batch.kv_cache, batch.block_table, batch.cache_seqlens, 512, *plan, batch.scale, True
    )
    check(out, lse, batch.reference())
