# SPDX-License-Identifier: MIT
"""flash_mla: multi-head latent attention decoding over a paged KV cache, on NVIDIA GPUs and on the CPU.

Two interfaces to one library:
    decode, plan, merge, kv_append                        small and explicit, see flash_mla.api
    get_mla_metadata, flash_mla_with_kvcache, ...         what clients of FlashMLA call, see flash_mla_interface
"""

from . import _frameworks
from ._C import version as __version__
from .api import Plan, backends, decode, kv_append, merge, plan, plan_parts
from .flash_mla_interface import (
    FlashMLASchedMeta,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
)

if _frameworks.torch is not None:
    from . import torch_ops as _torch_ops  # registers torch.ops.flash_mla.*

__all__ = [
    "FlashMLASchedMeta",
    "Plan",
    "__version__",
    "backends",
    "decode",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_mla_metadata",
    "kv_append",
    "merge",
    "plan",
    "plan_parts",
]
