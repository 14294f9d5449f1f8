# SPDX-License-Identifier: MIT
"""What differs between PyTorch, NumPy, CuPy and JAX: making arrays, casting lengths, the current stream.

The compiled module calls the functions of the second half by name; none of them is on the hot path of a CPU call or of
a recent PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

torch: Any = None
try:
    torch = importlib.import_module("torch")
except ImportError:
    pass

CUDA = 2  # DLDeviceType


def is_torch(x: Any) -> bool:
    return torch is not None and isinstance(x, torch.Tensor)


def is_tensor(x: Any) -> bool:
    """Anything with a shape and a way in for the compiled module."""
    return is_torch(x) or hasattr(x, "__array_interface__") or hasattr(x, "__dlpack__")


def _family(x: Any) -> str:
    return type(x).__module__.partition(".")[0]


def dtype_name(x: Any) -> str:
    """ "bfloat16", "int32", ...: the name shared by all frameworks."""
    return str(x.dtype).rpartition(".")[2]


def device_of(x: Any) -> tuple[int, int]:
    """(DLDeviceType, ordinal)."""
    if is_torch(x):
        return (CUDA, x.device.index or 0) if x.is_cuda else (1, 0)
    if hasattr(x, "__dlpack_device__"):
        kind, index = x.__dlpack_device__()
        return int(kind), int(index)
    return 1, 0


def empty(like: Any, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """An uninitialised array in the framework and on the device of `like`; dtype None: that of `like`."""
    if is_torch(like):
        return like.new_empty(shape, dtype=None if dtype is None else getattr(torch, dtype))
    if _family(like) == "cupy":
        import cupy

        with cupy.cuda.Device(device_of(like)[1]):
            return cupy.empty(shape, dtype=like.dtype if dtype is None else dtype)
    if device_of(like)[0] != 1:
        raise TypeError(
            f"results for {type(like).__name__} on a GPU cannot be allocated here: pass out= and lse= arrays"
        )
    import numpy

    name = dtype_name(like) if dtype is None else dtype
    if name == "bfloat16":
        import ml_dtypes

        return numpy.empty(shape, dtype=ml_dtypes.bfloat16)
    return numpy.empty(shape, dtype=name)


def finish(like: Any, result: Any) -> Any:
    """Hands a result made by `empty` over in the caller's framework (JAX arrays cannot be written in place)."""
    if _family(like) in ("jax", "jaxlib"):
        import jax.numpy

        return jax.numpy.asarray(result)
    return result


# ---- called by the compiled module ----------------------------------------------------------------------------------


def to_int32(lengths: Any) -> Any:
    """Contiguous int32 copy on the same device, without host synchronisation."""
    if is_torch(lengths):
        return lengths.to(torch.int32).contiguous()
    if _family(lengths) in ("jax", "jaxlib"):
        return lengths.astype("int32")
    return lengths.astype("int32").copy(order="C")


def dlpack_capsule(x: Any) -> Any:
    """A DLPack capsule without synchronisation: the work is queued on the producer's own current stream."""
    return x.__dlpack__(stream=-1) if device_of(x)[0] == CUDA and _family(x) != "jax" else x.__dlpack__()


def tensor_type() -> Any:
    return None if torch is None else torch.Tensor


def current_stream(x: Any, device_id: int) -> int:
    if is_torch(x):
        return torch._C._cuda_getCurrentRawStream(device_id)
    if _family(x) == "cupy":
        import cupy

        return cupy.cuda.get_current_stream(device_id).ptr
    if _family(x) in ("jax", "jaxlib"):
        raise TypeError("JAX arrays on a GPU are not taken: JAX has no current stream to queue the work on")
    return 0  # the default stream


def is_capturing(x: Any) -> bool:
    if is_torch(x):
        with torch.cuda.device(x.device):
            return torch._C._cuda_isCurrentStreamCapturing()
    if _family(x) == "cupy":
        import cupy

        return cupy.cuda.get_current_stream().is_capturing()
    return False


def workspace(like: Any, nbytes: int) -> Any:
    """Device scratch memory from the framework's allocator, on the current stream."""
    if torch is not None and not is_torch(like) and _family(like) != "cupy":
        return torch.empty(nbytes, dtype=torch.uint8, device=torch.device("cuda", device_of(like)[1]))
    return empty(like, (nbytes,), "uint8")
