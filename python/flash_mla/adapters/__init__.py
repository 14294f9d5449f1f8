# SPDX-License-Identifier: MIT
"""Modules that stand in for the import paths of serving engines: see flash_mla.adapters.vllm and .sglang."""

from __future__ import annotations

import sys
from types import ModuleType


def place(module: ModuleType, path: str) -> None:
    """Makes `import path` find `module`.  Parents that are not loaded yet are left to their own import."""
    sys.modules[path] = module
    parent, _, name = path.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], name, module)
