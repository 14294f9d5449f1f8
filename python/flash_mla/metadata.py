# SPDX-License-Identifier: MIT
"""The schedule object that serves three generations of clients at once.

Generations 1 and 2 pass the schedule as an int32 tensor [P, 8] plus a tensor of split offsets [b + 1]; generation 3
passes an opaque object.  FlashMLASchedMeta is that object and answers as the tensor too: it can be sliced, copied from
and into, and handed to torch functions.  It is not a torch.Tensor subclass, because clients tell the generations apart
with isinstance(x, torch.Tensor).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Optional


class FlashMLASchedMeta:
    """Schedule of one decoding step, shared by all layers.

    Attributes (all writable):
        tile_scheduler_metadata: int32 [P, 8] or None before the first use
        num_splits: int32 [b + 1] or None before the first use
        have_initialized: bool, set by the first kernel call
        config: Config of the latest kernel call, or None

    A schedule only balances work: kernels read the live lengths, so a stale, foreign or padded one never changes a
    result.  Tensors assigned to the two attributes are used where they lie, without a copy.
    """

    @dataclass
    class Config:
        b: int
        s_q: int
        h_q: int
        page_block_size: int
        h_k: int
        causal: bool
        is_fp8_kvcache: bool
        topk: Optional[int]
        extra_page_block_size: Optional[int]
        extra_topk: Optional[int]

    def __init__(self) -> None:
        self.have_initialized = False
        self.config: Optional[FlashMLASchedMeta.Config] = None
        self._parts: Any = None
        self._splits: Any = None
        self._assigned = False
        self._shape: Any = None  # of the q of the latest kernel call
        self._planner: Optional[Callable[[], tuple[Any, Any]]] = None

    # The first kernel call leaves a recipe, not tensors: no kernel launch is spent on a plan that nobody reads.
    def _resolve(self) -> None:
        if self._planner is not None:
            planner, self._planner = self._planner, None
            parts, splits = planner()
            self._parts = parts if self._parts is None else self._parts
            self._splits = splits if self._splits is None else self._splits

    def _expect(self, b: int, planner: Callable[[], tuple[Any, Any]]) -> None:
        """Will plan with `planner` when a tensor is asked for, unless there is one for b requests already."""
        if self._splits is None or self._splits.shape[0] != b + 1:
            self._parts = self._splits = None
            self._planner = planner

    @property
    def tile_scheduler_metadata(self) -> Any:
        if self._parts is None:
            self._resolve()
        return self._parts

    @tile_scheduler_metadata.setter
    def tile_scheduler_metadata(self, value: Any) -> None:
        self._parts = value
        self._assigned = True

    @property
    def num_splits(self) -> Any:
        if self._splits is None:
            self._resolve()
        return self._splits

    @num_splits.setter
    def num_splits(self, value: Any) -> None:
        self._splits = value
        self._assigned = True

    def _assigned_plan(self, b: int) -> tuple[Any, Any]:
        """The tensors that were assigned, when they are for b requests; else an object is planned from live lengths."""
        fits = self._parts is not None and self._splits is not None and self._splits.shape[0] == b + 1
        return (self._parts, self._splits) if fits else (None, None)

    @classmethod
    def _planned(cls, parts: Any, splits: Any) -> FlashMLASchedMeta:
        meta = cls()
        meta._parts, meta._splits = parts, splits
        return meta

    def __repr__(self) -> str:
        shape = None if self._parts is None else tuple(self._parts.shape)
        return f"FlashMLASchedMeta(have_initialized={self.have_initialized}, config={self.config}, plan={shape})"

    # ---- the tensor [P, 8] -------------------------------------------------------------------------------------------

    def _tensor(self) -> Any:
        parts = self.tile_scheduler_metadata
        if parts is None:
            raise RuntimeError(
                "this schedule has no tensor yet: pass cache_seqlens to get_mla_metadata, or decode with it first"
            )
        return parts

    def __getattr__(self, name: str) -> Any:
        """Everything else a tensor has: shape, dtype, device, size(), copy_(), to(), data_ptr(), ..."""
        if name.startswith("_"):
            raise AttributeError(f"FlashMLASchedMeta has no attribute {name!r}")
        return getattr(self._tensor(), name)

    def __getitem__(self, index: Any) -> Any:
        return self._tensor()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._tensor()[index] = value

    def __len__(self) -> int:
        return len(self._tensor())

    def __bool__(self) -> bool:
        return True

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tensor().__array__(*args, **kwargs)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._tensor().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._tensor().__dlpack_device__()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_unwrap(args), **{k: _unwrap(v) for k, v in (kwargs or {}).items()})


def _unwrap(value: Any) -> Any:
    if isinstance(value, FlashMLASchedMeta):
        return value._tensor()
    if isinstance(value, (tuple, list)):
        return type(value)(_unwrap(v) for v in value)
    return value
