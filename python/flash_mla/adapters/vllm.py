# SPDX-License-Identifier: MIT
"""What vLLM imports from vllm.third_party.flashmla.flash_mla_interface.

import flash_mla.adapters.vllm
flash_mla.adapters.vllm.install()      # before vLLM looks for its own copy
"""

from __future__ import annotations

import sys
from typing import Any

from ..flash_mla_interface import (
    FlashMLASchedMeta,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
)
from . import place

__all__ = [
    "FlashMLASchedMeta",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "flash_mla_with_kvcache_fp8",
    "get_mla_metadata",
    "get_mla_metadata_dense_fp8",
    "install",
]


def get_mla_metadata_dense_fp8(cache_seqlens: Any, num_q_tokens_per_head_k: int, num_heads_k: int) -> tuple[Any, Any]:
    """Schedule for flash_mla_with_kvcache_fp8.  Raises NotImplementedError."""
    raise NotImplementedError("get_mla_metadata_dense_fp8: FP8 caches are not built yet, only bf16 and fp16 are")


def flash_mla_with_kvcache_fp8(
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: int,
    tile_scheduler_metadata: Any,
    num_splits: Any,
    softmax_scale: Any = None,
    causal: bool = False,
    descale_q: Any = None,
    descale_k: Any = None,
) -> tuple[Any, Any]:
    """Dense decoding with an FP8 query and cache.  Raises NotImplementedError."""
    raise NotImplementedError("flash_mla_with_kvcache_fp8: FP8 caches are not built yet, only bf16 and fp16 are")


def install() -> None:
    """Serves vLLM's import path with this module."""
    place(sys.modules[__name__], "vllm.third_party.flashmla.flash_mla_interface")
