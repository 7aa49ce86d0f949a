"""What the pickle inside a torch checkpoint may name, each as a stand-in that only describes.

Storages and tensors become records of where bytes lie; parameters, sizes, devices and dicts become plain values.
Nothing here touches a file. Facts: torch/_utils.py (_rebuild_tensor_v2, _rebuild_tensor_v3), torch/serialization.py
(persistent_id), torch/_tensor.py (_reduce_ex_internal).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from converters.pickle_machine import Function, check_key
from converters.safetensors_file import MAX_DIMS

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
}
_DTYPES = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "complex64", "bool")},
    **{name: np.dtype(name) for name in ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes that tensors are views of: `nbytes` at `start` of the stored bytes called `key`."""

    key: str
    dtype: np.dtype
    nbytes: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Bytes from the first to the last element in the storage."""
        if 0 in self.shape:
            return 0
        steps = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (1 + steps) * self.dtype.itemsize


@dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype


@dataclass(frozen=True)
class _TensorType:
    """torch.Tensor and torch.nn.Parameter, where a pickle names them as the type to rebuild."""


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > MAX_DIMS:
        raise ValueError(f"{what} must be a tuple of at most {MAX_DIMS} numbers")
    if not all(type(size) is int and 0 <= size < 2**60 for size in value):
        raise ValueError(f"{what} holds something else than numbers from 0 to 2^60")
    return value


def _arguments(values: tuple[Any, ...], least: int, most: int) -> tuple[Any, ...]:
    if not least <= len(values) <= most:
        raise ValueError(f"{least} to {most} arguments are expected, got {len(values)}")
    return values


def _rebuild_tensor(values: tuple[Any, ...], *, dtype_at: int | None = None) -> Tensor:
    """(storage, offset, size, stride, requires_grad, hooks, …); in version 3 the dtype stands at `dtype_at`."""
    _arguments(values, 4 if dtype_at is None else dtype_at + 1, 8)
    held = values[0]
    if type(held) is not Storage:
        raise ValueError(f"a tensor needs a storage, found {type(held).__name__}")
    if any(values[6 if dtype_at is None else dtype_at + 1 :]):  # torch's metadata argument
        raise ValueError(
            "a tensor with a conjugate or negative bit; call resolve_conj() and resolve_neg() before saving"
        )
    dtype = held.dtype if dtype_at is None else values[dtype_at]
    if not isinstance(dtype, np.dtype):
        raise ValueError(f"a tensor needs a dtype, found {type(dtype).__name__}")
    (offset,) = _sizes(values[1:2], "storage offset")
    shape, strides = _sizes(values[2], "tensor size"), _sizes(values[3], "tensor stride")
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of {len(shape)} dimensions with {len(strides)} strides")
    tensor = Tensor(held, dtype, offset, shape, strides)
    if offset * dtype.itemsize + tensor.span > held.nbytes:
        raise ValueError(f"a tensor of shape {shape} reaches outside of its storage of {held.nbytes} bytes")
    return tensor


def _first_tensor(values: tuple[Any, ...]) -> Tensor:
    """A parameter is its tensor: requires_grad, hooks and state do not matter here."""
    if not values or type(values[0]) is not Tensor:
        raise ValueError("a parameter needs a tensor")
    return values[0]


def _rebuild_from_type(values: tuple[Any, ...]) -> Tensor:
    function, kind, arguments, _ = _arguments(values, 4, 4)
    if type(function) is not Function or type(kind) is not _TensorType or type(arguments) is not tuple:
        raise ValueError("a tensor is rebuilt from something else than function, type and arguments")
    if not function.name.startswith("torch._utils._rebuild_tensor"):
        raise ValueError(f"a tensor is rebuilt with {function.name}")
    return function.apply(arguments)


def _ordered_dict(values: tuple[Any, ...]) -> dict[Any, Any]:
    """Empty, or from the list of [key, value] lists that old pickles hold."""
    (pairs,) = _arguments(values, 0, 1) or ([],)
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError("OrderedDict needs a list of pairs")
    return {check_key(key): value for key, value in pairs}


def _set(values: tuple[Any, ...]) -> set[Any]:
    (items,) = _arguments(values, 1, 1)
    if type(items) is not list:
        raise ValueError("set needs a list")
    return set(map(check_key, items))


def _size(values: tuple[Any, ...]) -> tuple[int, ...]:
    (items,) = _arguments(values, 1, 1)
    return _sizes(tuple(items) if type(items) is list else items, "torch.Size")


def _device(values: tuple[Any, ...]) -> str:
    return ":".join(str(part) for part in _arguments(values, 1, 2) if type(part) in (str, int))


def _encode(values: tuple[Any, ...]) -> bytes:
    """Bytes in protocol 2: text in latin-1."""
    text, encoding = _arguments(values, 2, 2)
    if type(text) is not str or encoding != "latin1":
        raise ValueError("_codecs.encode is known for latin1 text only")
    return text.encode("latin1")


_FUNCTIONS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": partial(_rebuild_tensor, dtype_at=6),
    "torch._utils._rebuild_parameter": _first_tensor,
    "torch._utils._rebuild_parameter_with_state": _first_tensor,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.device": _device,
    "_codecs.encode": _encode,
    "builtins.set": _set,
    "__builtin__.set": _set,
}
ALLOWED: Mapping[str, Any] = {
    **{name: Function(name, apply) for name, apply in _FUNCTIONS.items()},
    **{f"torch.{name}": _StorageType(np.dtype(dtype)) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
    **dict.fromkeys(("torch.storage.UntypedStorage", "torch.UntypedStorage"), _StorageType(np.dtype(np.uint8))),
    **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter"), _TensorType()),
}


def storage(value: Any) -> Storage:
    """Read the id ("storage", type, key, location, number of elements[, (view key, offset, size) or None])."""
    if type(value) is not tuple or len(value) not in (5, 6) or value[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    kind, key, numel = value[1], value[2], value[4]
    if type(kind) is not _StorageType or type(key) is not str:
        raise ValueError("a storage without type or key")
    itemsize = kind.dtype.itemsize
    (numel,) = _sizes((numel,), "storage size")
    if len(value) == 5 or value[5] is None:
        return Storage(key, kind.dtype, numel * itemsize)
    view = value[5]
    if type(view) is not tuple or len(view) != 3:
        raise ValueError("a view of a storage must be (key, offset, size)")
    offset, size = _sizes(view[1:], "view of a storage")
    if offset + size > numel:
        raise ValueError("a view reaches outside of its storage")
    return Storage(key, kind.dtype, size * itemsize, offset * itemsize)
