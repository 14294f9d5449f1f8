# SPDX-License-Identifier: MIT
"""What SGLang imports from sgl_kernel.flash_mla (2026); in 2025 it imported flash_mla itself.

    import flash_mla.adapters.sglang
    flash_mla.adapters.sglang.install()

SGLang works with tensors, so get_mla_metadata returns plain ones here.  Arguments of FP8 caches (descale_q, descale_k)
are accepted by name and raise NotImplementedError until FP8 is built.
"""

from __future__ import annotations

import sys
from typing import Any

from .. import flash_mla_interface as _interface
from ..flash_mla_interface import flash_mla_sparse_fwd, flash_mla_with_kvcache
from . import place

__all__ = ["flash_mla_sparse_fwd", "flash_mla_with_kvcache", "get_mla_metadata", "install"]


def get_mla_metadata(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """(int32 [P, 8], int32 [b + 1]); arguments as flash_mla.get_mla_metadata, lengths required."""
    schedule, num_splits = _interface.get_mla_metadata(*args, **kwargs)
    if num_splits is None:
        return schedule, None
    return getattr(schedule, "tile_scheduler_metadata", schedule), num_splits


def install() -> None:
    """Serves SGLang's import path with this module."""
    place(sys.modules[__name__], "sgl_kernel.flash_mla")
