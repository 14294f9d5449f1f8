# SPDX-License-Identifier: MIT
# Types of the compiled module.  Arguments are positional; tensors are PyTorch, NumPy or DLPack objects.
from typing import Any

version: str
EMPTY_LSE_NEG_INF: int
BATCH_INVARIANT: int
CHECK_PAGES: int

def decode(
    q: Any,
    kv_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    cu_seqlens_q: Any,
    attn_sink: Any,
    plan_parts: Any,
    plan_splits: Any,
    out: Any,
    lse: Any,
    softmax_scale: float | None,
    causal: bool,
    window: int,
    max_seqlen_q: int,
    head_dim_v: int,
    flags: int,
    /,
) -> tuple[Any, Any]: ...
def plan(
    cache_seqlens: Any,
    cu_seqlens_q: Any,
    parts: Any,
    splits: Any,
    total_q: int,
    s_q: int,
    h_q: int,
    h_kv: int,
    head_dim: int,
    dtype: int,
    window: int,
    flags: int,
    /,
) -> None: ...
def plan_parts(
    device_type: int,
    device_id: int,
    s_q: int,
    h_q: int,
    h_kv: int,
    head_dim: int,
    dtype: int,
    window: int,
    flags: int,
    /,
) -> int: ...
def merge(partial_out: Any, partial_lse: Any, attn_sink: Any, out: Any, lse: Any, flags: int, /) -> None: ...
def kv_append(kv_latent: Any, k_rope: Any, slot_mapping: Any, kv_cache: Any, /) -> None: ...
def backends() -> list[dict[str, Any]]: ...
