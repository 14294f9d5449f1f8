# SPDX-License-Identifier: MIT
"""The calls as PyTorch operators `torch.ops.flash_mla.*`, with shape functions for tracing.

torch.compile, export and fake tensors see these; eager calls skip the dispatcher, which would cost more than the call.
Written with torch.library.Library, which every PyTorch >= 2.0 has.
"""

from __future__ import annotations

from typing import Any, Callable

import torch

from . import _C

_CALL = (
    "Tensor q, Tensor kv_cache, Tensor block_table, Tensor cache_seqlens, Tensor? cu_seqlens_q, Tensor? attn_sink, "
    "Tensor? plan_parts, Tensor? plan_splits, "
)
_SCALARS = "float softmax_scale, bool causal, int window, int max_seqlen_q, int head_dim_v, int flags"

_library = torch.library.Library("flash_mla", "DEF")


def _register(schema: str, kernel: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    try:
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    except (TypeError, AttributeError):  # PyTorch 2.0 has neither the argument nor the tag
        _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)
    fake = getattr(torch.library, "register_fake", None) or getattr(torch.library, "impl_abstract", None)
    if fake is not None:
        fake(f"flash_mla::{name}", shapes, lib=_library)
    else:
        _library.impl(name, shapes, "Meta")


def _decode(
    q: Any, kv: Any, table: Any, lens: Any, cu_q: Any, sink: Any, parts: Any, splits: Any, *scalars: Any
) -> Any:
    out, lse = _decode_shapes(q, kv, table, lens, cu_q, sink, parts, splits, *scalars)
    _decode_out(q, kv, table, lens, cu_q, sink, parts, splits, out, lse, *scalars)
    return out, lse


def _decode_shapes(
    q: Any,
    kv: Any,
    table: Any,
    lens: Any,
    cu_q: Any,
    sink: Any,
    parts: Any,
    splits: Any,
    scale: Any,
    causal: Any,
    window: Any,
    max_q: Any,
    head_dim_v: Any,
    flags: Any,
) -> Any:
    *batch, s_q, h_q, _ = q.shape
    return q.new_empty((*batch, s_q, h_q, head_dim_v)), q.new_empty((*batch, h_q, s_q), dtype=torch.float32)


def _decode_out(
    q: Any,
    kv: Any,
    table: Any,
    lens: Any,
    cu_q: Any,
    sink: Any,
    parts: Any,
    splits: Any,
    out: Any,
    lse: Any,
    *scalars: Any,
) -> Any:
    _C.decode(q, kv, table, lens, cu_q, sink, parts, splits, out, lse, *scalars)


def _plan(
    lens: Any,
    cu_q: Any,
    total_q: Any,
    s_q: Any,
    h_q: Any,
    h_kv: Any,
    head_dim: Any,
    dtype: Any,
    window: Any,
    flags: Any,
) -> Any:
    parts, splits = _plan_shapes(lens, cu_q, total_q, s_q, h_q, h_kv, head_dim, dtype, window, flags)
    _C.plan(lens, cu_q, parts, splits, total_q, s_q, h_q, h_kv, head_dim, dtype, window, flags)
    return parts, splits


def _plan_shapes(
    lens: Any,
    cu_q: Any,
    total_q: Any,
    s_q: Any,
    h_q: Any,
    h_kv: Any,
    head_dim: Any,
    dtype: Any,
    window: Any,
    flags: Any,
) -> Any:
    device = (2, lens.device.index or 0) if lens.device.type == "cuda" else (1, 0)
    rows = _C.plan_parts(*device, s_q, h_q, h_kv, head_dim, dtype, window, flags)
    return lens.new_empty((rows, 8), dtype=torch.int32), lens.new_empty((lens.shape[0] + 1,), dtype=torch.int32)


def _merge(partial_out: Any, partial_lse: Any, sink: Any, flags: Any) -> Any:
    out, lse = _merge_shapes(partial_out, partial_lse, sink, flags)
    _merge_out(partial_out, partial_lse, sink, out, lse, flags)
    return out, lse


def _merge_shapes(partial_out: Any, partial_lse: Any, sink: Any, flags: Any) -> Any:
    _, b, s_q, h_q, d_v = partial_out.shape
    return partial_out.new_empty((b, s_q, h_q, d_v)), partial_out.new_empty((b, h_q, s_q), dtype=torch.float32)


def _merge_out(partial_out: Any, partial_lse: Any, sink: Any, out: Any, lse: Any, flags: Any) -> Any:
    _C.merge(partial_out, partial_lse, sink, out, lse, flags)


def _kv_append(kv_latent: Any, k_rope: Any, slot_mapping: Any, kv_cache: Any) -> Any:
    _C.kv_append(kv_latent, k_rope, slot_mapping, kv_cache)


def _nothing(*args: Any) -> Any:
    return None


_register(f"decode({_CALL}{_SCALARS}) -> (Tensor, Tensor)", _decode, _decode_shapes)
_register(f"decode_out({_CALL}Tensor(a!) out, Tensor(b!) lse, {_SCALARS}) -> ()", _decode_out, _nothing)
_register(
    "plan(Tensor cache_seqlens, Tensor? cu_seqlens_q, int total_q, int s_q, int h_q, int h_kv, int head_dim, "
    "int dtype, int window, int flags) -> (Tensor, Tensor)",
    _plan,
    _plan_shapes,
)
_register(
    "merge(Tensor partial_out, Tensor partial_lse, Tensor? attn_sink, int flags) -> (Tensor, Tensor)",
    _merge,
    _merge_shapes,
)
_register(
    "merge_out(Tensor partial_out, Tensor partial_lse, Tensor? attn_sink, Tensor(a!) out, Tensor(b!) lse, int flags) "
    "-> ()",
    _merge_out,
    _nothing,
)
_register(
    "kv_append(Tensor kv_latent, Tensor? k_rope, Tensor slot_mapping, Tensor(a!) kv_cache) -> ()", _kv_append, _nothing
)
