# SPDX-License-Identifier: MIT
"""The names that clients of FlashMLA import, all three generations of their signatures at once.

    generation 1   get_mla_metadata(cache_seqlens, num_heads_per_head_k, num_heads_k) -> two tensors
    generation 2   second argument renamed num_q_tokens_per_head_k; num_heads_q, is_fp8_kvcache, topk added
    generation 3   get_mla_metadata() -> (FlashMLASchedMeta, None), planned by the first kernel call

FLASH_MLA_METADATA=tensor|object|auto (environment, read at each call) says what get_mla_metadata returns when it is
given lengths: plain tensors, an empty object, or the hybrid that serves as both (auto, the default).
"""

from __future__ import annotations

import inspect
import math
import os
from typing import Any, NoReturn, Optional

from . import _C, _frameworks, api
from ._C import version as __version__
from .api import _compiling, _modes, _Tensor
from .metadata import FlashMLASchedMeta

__all__ = [
    "FlashMLASchedMeta",
    "__version__",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_mla_metadata",
]
_inf = math.inf


def get_mla_metadata(
    cache_seqlens: Any = None,
    num_q_tokens_per_head_k: Optional[int] = None,
    num_heads_k: int = 1,
    num_heads_q: Optional[int] = None,
    is_fp8_kvcache: bool = False,
    topk: Optional[int] = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """The schedule of one decoding step, for flash_mla_with_kvcache.

    Args:
        cache_seqlens: [b] int32 (int64 is cast): keys per request.  None: the first kernel call plans.
        num_q_tokens_per_head_k: s_q * h_q / num_heads_k; generation 1 calls it num_heads_per_head_k.
        num_heads_k: KV heads.
        num_heads_q, is_fp8_kvcache, topk: accepted; the schedule does not depend on them.
        Unknown keywords are accepted and ignored.

    Returns:
        (FlashMLASchedMeta, None) without lengths; otherwise (schedule, num_splits int32 [b + 1]), where schedule is an
        object that also behaves as the int32 tensor [P, 8] of generations 1 and 2.  P depends on heads, query tokens
        and device only.

    Raises:
        TypeError, ValueError: as flash_mla.plan.
    """
    rows = num_q_tokens_per_head_k
    if rows is None:
        rows = kwargs.get("num_heads_per_head_k")
    mode = os.environ.get("FLASH_MLA_METADATA", "auto")
    if mode not in ("auto", "tensor", "object"):
        raise ValueError(f"FLASH_MLA_METADATA is {mode!r}, must be 'auto', 'tensor' or 'object'")
    if cache_seqlens is None or mode == "object":
        return FlashMLASchedMeta(), None
    if rows is None:
        raise TypeError("num_q_tokens_per_head_k is missing; with cache_seqlens it must be s_q * h_q / num_heads_k")
    if rows < 1 or num_heads_k < 1:
        raise ValueError(f"num_q_tokens_per_head_k is {rows} and num_heads_k is {num_heads_k}; both must be at least 1")
    parts, splits = api.plan(cache_seqlens, h_q=rows * num_heads_k, h_kv=num_heads_k)
    return (parts if mode == "tensor" else FlashMLASchedMeta._planned(parts, splits)), splits


# Unknown keywords are a courtesy; what introspection shows is generation 2 (a client counts parameters).
get_mla_metadata.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [p for p in inspect.signature(get_mla_metadata).parameters.values() if p.name != "kwargs"]
)


def flash_mla_with_kvcache(
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: int,
    tile_scheduler_metadata: Any = None,
    num_splits: Any = None,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Any = None,
    attn_sink: Any = None,
    extra_k_cache: Any = None,
    extra_indices_in_kvcache: Any = None,
    topk_length: Any = None,
    extra_topk_length: Any = None,
    *,
    out: Any = None,
    lse: Any = None,
    descale_q: Any = None,
    descale_k: Any = None,
    empty_lse: float = _inf,
) -> tuple[Any, Any]:
    """MLA decoding over a paged cache, as FlashMLA's function of this name in every generation.

    Args:
        q: [b, s_q, h_q, 576] bf16 or fp16, last stride 1.
        k_cache: [num_pages, page, h_k, 576] in the dtype of q; V is its first head_dim_v values.  Any page size.
        block_table: [b, max_pages] int32, any row stride; entries behind the last used page may hold anything.
        cache_seqlens: [b] int32 (int64 is cast), keys per request, those of the new tokens included.
        head_dim_v: 512.
        tile_scheduler_metadata: what get_mla_metadata returned, a tensor [P, 8] of any generation, or None.
        num_splits: int32 [b + 1] with a tensor schedule; ignored with an object.
        softmax_scale: factor on q.k; None: d_qk ** -0.5 (DeepSeek models pass their own).
        causal: query token s sees keys t <= L - s_q + s.
        attn_sink: [h_q] fp32, one more logit per head in the denominator of out.
        out, lse: written when given.
        empty_lse: lse of rows without keys (their out is 0): math.inf as FlashMLA, or -math.inf for merging.
        is_fp8_kvcache, indices, extra_*, topk_length, descale_*: sparse and FP8 decoding, not built yet.

    Returns:
        (out [b, s_q, h_q, head_dim_v] in the dtype of q, softmax_lse [b, h_q, s_q] fp32, natural logarithm).

    Raises:
        NotImplementedError: sparse or FP8 decoding.
        ValueError, TypeError, RuntimeError: as flash_mla.decode.
    """
    if (
        indices is not None or is_fp8_kvcache or descale_q is not None or descale_k is not None
        or extra_k_cache is not None or extra_indices_in_kvcache is not None or topk_length is not None
        or extra_topk_length is not None
    ):  # fmt: skip
        _not_built(indices, is_fp8_kvcache or descale_q is not None or descale_k is not None)
    if block_table is None or cache_seqlens is None:
        missing = "block_table" if block_table is None else "cache_seqlens"
        raise ValueError(f"{missing} is None, must be a tensor for dense decoding")
    meta, parts, splits = tile_scheduler_metadata, None, None
    hybrid = isinstance(meta, FlashMLASchedMeta)
    if hybrid:
        if meta._assigned:
            parts, splits = meta._assigned_plan(cache_seqlens.shape[0])
    elif meta is not None:
        parts, splits = meta, num_splits
        if splits is None:
            _no_splits(meta)
    try:
        call = api.decode_any if _compiling() or type(q) is not _Tensor or _modes() else _C.decode
        result = call(
            q, k_cache, block_table, cache_seqlens, None, attn_sink, parts, splits, out, lse,
            softmax_scale, causal, 0, 0, head_dim_v, 0 if empty_lse == _inf else api._flags(empty_lse),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        text = str(error)
        for ours, theirs in _THEIR_NAMES:
            text = text.replace(ours, theirs)
        raise type(error)(text) from None
    if hybrid and meta._shape != q.shape:
        _note_use(meta, q, k_cache, cache_seqlens, causal)
    return result


def _no_splits(meta: Any) -> NoReturn:
    if _frameworks.is_tensor(meta):
        raise ValueError("num_splits is None; with a tensor as tile_scheduler_metadata it must be int32 [b + 1]")
    raise TypeError(
        "tile_scheduler_metadata must be an int32 tensor [P, 8], a FlashMLASchedMeta or None, "
        f"not an object of type {type(meta).__name__}"
    )


def _not_built(indices: Any, fp8: bool) -> NoReturn:
    if indices is not None:
        raise NotImplementedError("indices is given: sparse decoding is not built yet, only dense paged decoding is")
    if fp8:
        raise NotImplementedError(
            "is_fp8_kvcache, descale_q or descale_k is given: FP8 caches are not built yet, only bf16 and fp16 are"
        )
    raise NotImplementedError(
        "extra_k_cache, extra_indices_in_kvcache, topk_length and extra_topk_length belong to sparse decoding, "
        "which is not built yet"
    )


_THEIR_NAMES = (("kv_cache", "k_cache"), ("plan_parts", "tile_scheduler_metadata"), ("plan_splits", "num_splits"))


def _note_use(meta: FlashMLASchedMeta, q: Any, k_cache: Any, cache_seqlens: Any, causal: bool) -> None:
    """Leaves in the object what generation 3 leaves there: the shapes, and a plan for whoever looks."""
    meta._shape = q.shape
    b, s_q, h_q, _ = q.shape
    h_k = k_cache.shape[2]
    meta.config = FlashMLASchedMeta.Config(
        b=b, s_q=s_q, h_q=h_q, page_block_size=k_cache.shape[1], h_k=h_k, causal=causal, is_fp8_kvcache=False,
        topk=None, extra_page_block_size=None, extra_topk=None,
    )  # fmt: skip
    meta.have_initialized = True
    if not meta._assigned:
        meta._expect(b, lambda: api.plan(cache_seqlens, h_q=h_q, s_q=s_q, h_kv=h_k))


def flash_mla_sparse_fwd(
    q: Any,
    kv: Any,
    indices: Any,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: Any = None,
    topk_length: Any = None,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """Sparse prefill, q [s_q, h_q, d], kv [s_kv, 1, d], indices [s_q, 1, topk].  Raises NotImplementedError."""
    raise NotImplementedError("flash_mla_sparse_fwd: sparse prefill is not built yet, only dense paged decoding is")


def _no_prefill(name: str) -> NoReturn:
    raise NotImplementedError(f"{name}: dense prefill (multi-head attention) is not built yet, only decoding is")


def flash_attn_varlen_func(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Dense prefill over packed sequences.  Raises NotImplementedError."""
    _no_prefill("flash_attn_varlen_func")


def flash_attn_varlen_qkvpacked_func(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Dense prefill with q, k, v in one tensor.  Raises NotImplementedError."""
    _no_prefill("flash_attn_varlen_qkvpacked_func")


def flash_attn_varlen_kvpacked_func(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Dense prefill with k, v in one tensor.  Raises NotImplementedError."""
    _no_prefill("flash_attn_varlen_kvpacked_func")
