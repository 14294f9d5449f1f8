# SPDX-License-Identifier: MIT
"""The modern API: decode, plan, merge, kv_append.

Every function takes PyTorch tensors (CPU or CUDA), NumPy arrays or objects with __dlpack__, all on one device, and
works on the framework's current stream without host synchronisation.  Errors are raised before anything is written:
ValueError for a value or shape that breaks a rule, TypeError for an object of the wrong kind, RuntimeError when no
backend can serve the request.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional

from . import _C, _frameworks

torch = _frameworks.torch

HEAD_DIM_V = 512
_DTYPE_CODES = {"bfloat16": 4, "float16": 2}  # DLDataTypeCode

if torch is not None:
    _Tensor = torch.Tensor
    _compiling = (
        getattr(getattr(torch, "compiler", None), "is_dynamo_compiling", None)  # PyTorch >= 2.3
        or getattr(torch._utils, "is_compiling", None)
        or (lambda: False)  # PyTorch 2.0: a compiled function breaks its graph at these calls
    )
    _modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
else:
    _Tensor = ()
    _compiling = _modes = lambda: 0


class Plan(NamedTuple):
    """Schedule of one decoding step: parts int32 [P, 8], splits int32 [b + 1]."""

    parts: Any
    splits: Any


def _traced(x: Any) -> bool:
    """PyTorch is looking on (torch.compile, fake tensors, subclasses): go through the registered operators."""
    if _compiling():
        return isinstance(x, _Tensor)
    return type(x) is not _Tensor and isinstance(x, _Tensor) and type(x) is not torch.nn.Parameter or _modes() > 0


def _flags(empty_lse: float, batch_invariant: bool = False, check_pages: bool = False) -> int:
    if empty_lse == -math.inf:
        flags = _C.EMPTY_LSE_NEG_INF
    elif empty_lse == math.inf:
        flags = 0
    else:
        raise ValueError(f"empty_lse is {empty_lse!r}, must be math.inf or -math.inf")
    if batch_invariant:
        flags |= _C.BATCH_INVARIANT
    if check_pages:
        flags |= _C.CHECK_PAGES
    return flags


def decode(
    q: Any,
    kv_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    *,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window: int = 0,
    head_dim_v: int = HEAD_DIM_V,
    cu_seqlens_q: Any = None,
    max_seqlen_q: int = 0,
    attn_sink: Any = None,
    plan: Optional[tuple[Any, Any]] = None,
    out: Any = None,
    lse: Any = None,
    empty_lse: float = math.inf,
    batch_invariant: bool = False,
    check_pages: bool = False,
) -> tuple[Any, Any]:
    """Attention of new query tokens over a paged latent cache: softmax(scale * q k^T) v with v = k[:head_dim_v].

    Args:
        q: [b, s_q, h_q, d_qk] bf16 or fp16, d_qk 576 or 512; last stride 1.  With cu_seqlens_q: [total_q, h_q, d_qk].
        kv_cache: [num_pages, page, h_kv, d_qk] in the dtype of q, any page size >= 1, 16-byte aligned; strides but the
            last are multiples of 8, so a pool may be padded.  h_q is a multiple of h_kv.
        block_table: [b, max_pages] int32; entries behind the last used page may hold anything.
        cache_seqlens: [b] int32 (int64 is cast): keys per request in tokens, those of the new tokens included and
            already written.  Anything from 0 on.
        softmax_scale: factor on q.k; None: d_qk ** -0.5.
        causal: query token s of a request with L keys sees keys t <= L - s_q + s.
        window: keys seen per query token, itself included; 0: all.
        cu_seqlens_q: [b + 1] int32 query token offsets for requests with different numbers of new tokens.
        max_seqlen_q: with cu_seqlens_q, the most query tokens of a request; 0: total_q.
        attn_sink: [h_q] fp32, one more logit per head in the denominator; not counted in lse.
        plan: what `plan` returned for these lengths; a stale one costs balance, never correctness.
        out, lse: written when given: [b, s_q, h_q, head_dim_v] in the dtype of q (ragged [total_q, h_q, head_dim_v])
            and [b, h_q, s_q] fp32 (ragged [h_q, total_q]), any strides but a last stride of 1 for out.
        empty_lse: lse of a row that sees no key (its out is 0): math.inf, or -math.inf, the identity of `merge`.
        batch_invariant: the result of a request does not depend, bit for bit, on its batchmates.
        check_pages: debugging on a GPU: raise ValueError for page indices out of range (synchronises).

    Returns:
        (out, lse); lse is the natural logarithm of the sum of exp(score), in fp32.  No gradients flow back.

    Raises:
        ValueError: shape, dtype, stride, device or value out of the limits above; the message names all three.
        TypeError: an argument that is no tensor or no number.
        RuntimeError: no backend for this device, or the device failed.
    """
    flags = 0
    if empty_lse != math.inf or batch_invariant or check_pages:
        flags = _flags(empty_lse, batch_invariant, check_pages)
    parts, splits = plan if plan is not None else (None, None)
    if _compiling() or type(q) is not _Tensor or _modes():
        return decode_any(
            q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, attn_sink, parts, splits, out, lse,
            softmax_scale, causal, window, max_seqlen_q, head_dim_v, flags,
        )  # fmt: skip
    return _C.decode(
        q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, attn_sink, parts, splits, out, lse,
        softmax_scale, causal, window, max_seqlen_q, head_dim_v, flags,
    )  # fmt: skip


def decode_any(
    q: Any, kv_cache: Any, block_table: Any, cache_seqlens: Any, cu_seqlens_q: Any, attn_sink: Any, parts: Any,
    splits: Any, out: Any, lse: Any, softmax_scale: Optional[float], causal: bool, window: int, max_seqlen_q: int,
    head_dim_v: int, flags: int,
) -> tuple[Any, Any]:  # fmt: skip
    """_C.decode for any q: through PyTorch's dispatcher when it is looking on, results in the caller's framework."""
    native = isinstance(q, _Tensor)
    if not (native and _traced(q)):
        out, lse = _C.decode(
            q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, attn_sink, parts, splits, out, lse,
            softmax_scale, causal, window, max_seqlen_q, head_dim_v, flags,
        )  # fmt: skip
        return (out, lse) if native else (_frameworks.finish(q, out), _frameworks.finish(q, lse))

    axes = "[b, s_q, h_q, d_qk]" if cu_seqlens_q is None else "[total_q, h_q, d_qk] with cu_seqlens_q"
    if len(q.shape) != (4 if cu_seqlens_q is None else 3):
        raise ValueError(f"q has shape {list(q.shape)}, must be {axes}")
    *batch, s_q, h_q, d_qk = q.shape
    if softmax_scale is None:
        softmax_scale = d_qk**-0.5
    tensors = (q, kv_cache, block_table, cache_seqlens, cu_seqlens_q, attn_sink, parts, splits)
    scalars = (softmax_scale, causal, window, max_seqlen_q, head_dim_v, flags)
    if out is None and lse is None:
        return torch.ops.flash_mla.decode(*tensors, *scalars)
    if out is None:
        out = _frameworks.empty(q, (*batch, s_q, h_q, head_dim_v))
    if lse is None:
        lse = _frameworks.empty(q, (*batch, h_q, s_q), "float32")
    torch.ops.flash_mla.decode_out(*tensors, out, lse, *scalars)
    return out, lse


def plan(
    cache_seqlens: Any,
    *,
    h_q: int,
    s_q: int = 1,
    h_kv: int = 1,
    head_dim: int = 576,
    dtype: str = "bfloat16",
    window: int = 0,
    cu_seqlens_q: Any = None,
    total_q: Optional[int] = None,
    batch_invariant: bool = False,
    parts: Any = None,
    splits: Any = None,
) -> Plan:
    """The schedule of one decoding step, to be reused by all layers: how the requests are cut into parts.

    Reads lengths on their device, without host synchronisation, and can be captured in a CUDA graph.

    Args:
        cache_seqlens: [b] int32 (int64 is cast), as in `decode`.
        h_q, h_kv, head_dim, dtype ("bfloat16" or "float16"), s_q, window, batch_invariant: of the coming calls.
        cu_seqlens_q, total_q: [b + 1] int32 and its last value, for ragged queries; s_q is then the largest number of
            query tokens of a request.
        parts, splits: static buffers to write into, int32 [>= plan_parts(...), 8] and [b + 1].

    Returns:
        Plan(parts, splits): row p of parts is begin_req, end_req, begin_block, end_block, begin_split, two split flags
        and a tag, in blocks of 64 tokens; splits is the prefix sum of the number of splits per request.

    Raises: as `decode`.
    """
    if not _frameworks.is_tensor(cache_seqlens):
        raise TypeError(f"cache_seqlens must be a tensor [b], not an object of type {type(cache_seqlens).__name__}")
    if len(cache_seqlens.shape) != 1:
        raise ValueError(f"cache_seqlens has shape {list(cache_seqlens.shape)}, must be [b]")
    if dtype not in _DTYPE_CODES:
        raise ValueError(f"dtype is {dtype!r}, must be 'bfloat16' or 'float16'")
    if (cu_seqlens_q is None) != (total_q is None):
        raise ValueError("cu_seqlens_q and total_q come together or not at all")
    flags = _flags(math.inf, batch_invariant)
    ragged = -1 if total_q is None else total_q
    code = _DTYPE_CODES[dtype]
    if isinstance(cache_seqlens, _Tensor) and _traced(cache_seqlens) and parts is None and splits is None:
        return Plan(
            *torch.ops.flash_mla.plan(
                cache_seqlens, cu_seqlens_q, ragged, s_q, h_q, h_kv, head_dim, code, window, flags
            )
        )
    if parts is None:
        rows = _C.plan_parts(*_frameworks.device_of(cache_seqlens), s_q, h_q, h_kv, head_dim, code, window, flags)
        parts = _frameworks.empty(cache_seqlens, (rows, 8), "int32")
    if splits is None:
        splits = _frameworks.empty(cache_seqlens, (cache_seqlens.shape[0] + 1,), "int32")
    _C.plan(cache_seqlens, cu_seqlens_q, parts, splits, ragged, s_q, h_q, h_kv, head_dim, code, window, flags)
    return Plan(_frameworks.finish(cache_seqlens, parts), _frameworks.finish(cache_seqlens, splits))


def plan_parts(
    *,
    h_q: int,
    s_q: int = 1,
    h_kv: int = 1,
    head_dim: int = 576,
    dtype: str = "bfloat16",
    window: int = 0,
    batch_invariant: bool = False,
    device: tuple[int, int] = (1, 0),
) -> int:
    """Rows of a plan's `parts` for these shapes, at least 1; never depends on the batch or its lengths.

    device: (DLDeviceType, ordinal): (1, 0) is the CPU, (2, 0) the first CUDA device.
    """
    if dtype not in _DTYPE_CODES:
        raise ValueError(f"dtype is {dtype!r}, must be 'bfloat16' or 'float16'")
    flags = _flags(math.inf, batch_invariant)
    return _C.plan_parts(*device, s_q, h_q, h_kv, head_dim, _DTYPE_CODES[dtype], window, flags)


def merge(
    partial_out: Any,
    partial_lse: Any,
    *,
    attn_sink: Any = None,
    out: Any = None,
    lse: Any = None,
    empty_lse: float = math.inf,
) -> tuple[Any, Any]:
    """Merges n partial results over disjoint sets of keys: shared prefixes, context-parallel ranks.

    Args:
        partial_out: [n, b, s_q, h_q, d_v] bf16, fp16 or fp32, d_v a multiple of 8; last stride 1.
        partial_lse: [n, b, h_q, s_q] fp32, any strides; +inf and -inf both mean an empty partial, whose out is ignored.
        attn_sink: [h_q] fp32, applied once after the merge.
        out: [b, s_q, h_q, d_v] bf16, fp16 or fp32, by default in the dtype of partial_out.
        lse: [b, h_q, s_q] fp32.
        empty_lse: lse of a row that is empty in every partial (its out is 0).

    Returns:
        (out, lse)

    Raises: as `decode`.
    """
    if not _frameworks.is_tensor(partial_out):
        raise TypeError(f"partial_out must be a tensor, not an object of type {type(partial_out).__name__}")
    if len(partial_out.shape) != 5:
        raise ValueError(f"partial_out has shape {list(partial_out.shape)}, must be [n, b, s_q, h_q, d_v]")
    flags = _flags(empty_lse)
    traced = isinstance(partial_out, _Tensor) and _traced(partial_out)
    if traced and out is None and lse is None:
        return torch.ops.flash_mla.merge(partial_out, partial_lse, attn_sink, flags)
    _, b, s_q, h_q, d_v = partial_out.shape
    if out is None:
        out = _frameworks.empty(partial_out, (b, s_q, h_q, d_v))
    if lse is None:
        lse = _frameworks.empty(partial_out, (b, h_q, s_q), "float32")
    if traced:
        torch.ops.flash_mla.merge_out(partial_out, partial_lse, attn_sink, out, lse, flags)
        return out, lse
    _C.merge(partial_out, partial_lse, attn_sink, out, lse, flags)
    return _frameworks.finish(partial_out, out), _frameworks.finish(partial_out, lse)


def kv_append(kv_latent: Any, k_rope: Any, slot_mapping: Any, kv_cache: Any) -> None:
    """Writes the rows of n new tokens into the paged cache: row slot % page of page slot // page gets latent ++ rope.

    Args:
        kv_latent: [n, d_latent] or [n, h_kv, d_latent] bf16 or fp16, last stride 1.
        k_rope: [n, d_rope] or [n, h_kv, d_rope]; None when d_latent is all of d_qk.
        slot_mapping: [n] int64 or int32; a negative slot is skipped (padding).
        kv_cache: [num_pages, page, h_kv, d_latent + d_rope], written in place.

    Raises: as `decode`; a slot past the cache is a ValueError on the CPU and skipped on a GPU.
    """
    if not _frameworks.is_tensor(kv_cache):
        raise TypeError(f"kv_cache must be a tensor, not an object of type {type(kv_cache).__name__}")
    if isinstance(kv_cache, _Tensor):
        if _traced(kv_cache):
            torch.ops.flash_mla.kv_append(kv_latent, k_rope, slot_mapping, kv_cache)
            return
    elif _frameworks._family(kv_cache) in ("jax", "jaxlib"):
        raise TypeError("kv_cache is a JAX array; those cannot be written in place")
    _C.kv_append(kv_latent, k_rope, slot_mapping, kv_cache)


def backends() -> list[dict[str, Any]]:
    """The library's backends in the order in which they are tried: name, available, device_type (DLDeviceType),
    device_name, variant, reason (why not available), num_workers."""
    return _C.backends()
