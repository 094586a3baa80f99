"""
Bulk values as bytes: tensors, arrays and `bytes`, to and from flat memory.

The only module that knows dtypes; names of dtypes are those of the safetensors format.
torch and numpy are used where they are already loaded, or where a checkpoint needs them.
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import xxhash

from modalkit.errors import CheckpointCorruptError, CheckpointError, MissingDependencyError

if TYPE_CHECKING:
    import torch

Kind = Literal["tensor", "array", "bytes"]

DTYPES: Final[dict[str, tuple[str, int]]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
    "C128": ("complex128", 16),
}
"""Code in the files: (name in torch and numpy, bytes per element)."""

NOT_SAFETENSORS: Final = frozenset({"C64", "C128"})
"""Codes that not every safetensors reader knows; a pack declares their bytes as U8."""

_CODES: Final = {name: code for code, (name, _) in DTYPES.items()}


@attrs.frozen(eq=False)
class Bulk:
    """A leaf as flat bytes in host memory, with what is needed to make it whole again."""

    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    owner: object
    """Keeps the memory of *data* alive."""


def is_reserved(name: str) -> bool:
    """Say whether a pack uses *name* itself."""
    return name == "__metadata__" or re.fullmatch(r"__pad__\.\d+", name) is not None


def is_bulk(value: object) -> bool:
    """Say whether *value* goes into the pack rather than into the manifest."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    return (
        type(value) is bytes
        or (torch is not None and isinstance(value, torch.Tensor))
        or (numpy is not None and isinstance(value, numpy.ndarray))
    )


def pack_copy(name: str, value: Any) -> Bulk:
    """
    Return a copy of *value* as bytes, which later changes of *value* do not reach.

    Args:
        name: The leaf's name, for errors.
        value: A tensor on any device, an array, or bytes.

    Raises:
        CheckpointError: A sparse, quantized, meta or wrapped tensor, or an array of objects.
    """
    if type(value) is bytes:
        return Bulk("bytes", "U8", (len(value),), memoryview(value), value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        _refuse_unusual(name, value)
        plain = value.detach().resolve_conj().resolve_neg()
        copy = plain.to("cpu", copy=True, memory_format=torch.contiguous_format)
        return _tensor_bulk(name, copy)
    code = _CODES.get(value.dtype.name)
    if code is None or value.dtype.kind not in "biufc" or not value.dtype.isnative:
        raise CheckpointError(f"{name}: an array of {value.dtype} cannot be stored. Convert it.")
    copied = value.copy(order="C")
    data = memoryview(copied.reshape(-1).view("uint8")) if copied.size else memoryview(b"")
    return Bulk("array", code, tuple(copied.shape), data, copied)


def digest(name: str, value: Any) -> str:
    """Return a digest of what *value* is and holds; equal values have equal ones."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and _is_plain(value):
        flat = _tensor_bulk(name, value.detach().cpu().contiguous())
    else:
        flat = pack_copy(name, value)
    return f"{flat.dtype} {flat.shape} {xxhash.xxh3_128_hexdigest(flat.data)}"


def view(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in host memory, writable, without a copy."""
    if not tensor.nbytes:
        return memoryview(b"")
    # Not through numpy: an image may lack it, and it has no bfloat16.
    memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return memoryview(memory).cast("B")


def same_memory_key(value: Any) -> tuple[object, ...] | None:
    """Return what two tensors share if they are one (tied weights); None for anything else."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or not value.numel():
        return None
    if value.layout is not torch.strided or value.is_meta or _is_wrapper(value):
        return None
    sign = value.is_conj(), value.is_neg()
    place = value.device, value.data_ptr()
    return (*place, value.dtype, tuple(value.shape), value.stride(), *sign)


def allocate(kind: str, dtype: str, shape: tuple[int, ...]) -> tuple[Any, memoryview]:
    """
    Return an uninitialised value of this kind, and its bytes to read into.

    For bytes the value is the buffer itself; `finish` makes it `bytes`.
    """
    if kind == "tensor":
        torch = _torch()
        tensor = torch.empty(shape, dtype=getattr(torch, DTYPES[dtype][0]))
        return tensor, view(tensor)
    if kind == "array":
        numpy = _numpy()
        array = numpy.empty(shape, dtype=DTYPES[dtype][0])
        return array, memoryview(array.reshape(-1).view("uint8")) if array.size else memoryview(b"")
    buffer = bytearray(math.prod(shape))
    return buffer, memoryview(buffer)


def finish(value: Any) -> Any:
    """Return what `allocate` gave as what was saved."""
    return bytes(value) if isinstance(value, bytearray) else value


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes a value of *dtype* and *shape* has."""
    return math.prod(shape) * DTYPES[dtype][1]


def _tensor_bulk(name: str, tensor: torch.Tensor) -> Bulk:
    code = _CODES.get(str(tensor.dtype).removeprefix("torch."))
    if code is None:
        raise CheckpointError(f"{name}: a tensor of {tensor.dtype} cannot be stored. Convert it.")
    return Bulk("tensor", code, tuple(tensor.shape), view(tensor), tensor)


def _is_plain(tensor: torch.Tensor) -> bool:
    return not (tensor.is_conj() or tensor.is_neg())


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """Say whether *tensor* only wraps others (DTensor and the like) and has no memory itself."""
    return hasattr(type(tensor), "__tensor_flatten__")


def _refuse_unusual(name: str, tensor: torch.Tensor) -> None:
    torch = sys.modules["torch"]
    unusual = (
        "sparse" if tensor.layout is not torch.strided else
        "quantized" if tensor.is_quantized else
        "meta" if tensor.is_meta else
        type(tensor).__name__ if _is_wrapper(tensor) else
        ""
    )  # fmt: skip
    if unusual:
        raise CheckpointError(
            f"{name}: a {unusual} tensor has no plain bytes to store. Make it dense and real "
            f"(to_dense, dequantize, to_empty), or save it from an object with its own state_dict."
        )


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "torch is needed to read this checkpoint, which holds tensors. Add it to the image: "
            '.uv_pip_install("torch").'
        ) from error
    return torch


def _numpy() -> Any:
    # What torch has loaded need not be in the image by a line of its own: no import statement then.
    if (loaded := sys.modules.get("numpy")) is not None:
        return loaded
    try:
        import numpy as np
    except ImportError as error:
        raise MissingDependencyError(
            "numpy is needed to read this checkpoint, which holds arrays. Add it to the image: "
            '.uv_pip_install("numpy").'
        ) from error
    return np


def check_dtype(dtype: object) -> str:
    """
    Return *dtype* if it is a code that can be read.

    Raises:
        CheckpointCorruptError: It is not.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointCorruptError(f"unknown dtype {dtype!r}")
    return dtype
