"""The types of GGUF metadata values, shared by reader and writer. Knows no keys and no files.

A type is written as its GGUF name, and an array of it with brackets: "uint32", "string", "float32[]".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

NUMBER_CODES: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        0: ("uint8", "u1"),
        1: ("int8", "i1"),
        2: ("uint16", "u2"),
        3: ("int16", "i2"),
        4: ("uint32", "u4"),
        5: ("int32", "i4"),
        6: ("float32", "f4"),
        10: ("uint64", "u8"),
        11: ("int64", "i8"),
        12: ("float64", "f8"),
    }
)
"""GGUF type id -> (name, NumPy code) of the numbers."""

BOOL, STRING, ARRAY = 7, 8, 9

TYPE_IDS: Mapping[str, int] = MappingProxyType(
    {**{name: id for id, (name, _) in NUMBER_CODES.items()}, "bool": BOOL, "string": STRING}
)
"""Name of an element type -> GGUF type id."""


@dataclass(frozen=True)
class Typed:
    """A metadata value with the type it is stored as, e.g. `Typed("uint16", 3)` or `Typed("float32[]", scores)`."""

    type: str
    value: Any

    def __post_init__(self) -> None:
        if self.type.removesuffix("[]") not in TYPE_IDS:
            known = ", ".join(TYPE_IDS)
            raise ValueError(f"unknown metadata type {self.type!r}; expected one of {known}, or one of these with []")


def infer(key: str, value: Any) -> Typed:
    """Give a plain value its usual type.

    str, bool, float -> string, bool, float32. int -> uint32, or int32 / uint64 / int64 where that is too narrow.
    NumPy scalars and arrays keep their dtype. Lists follow their elements, integers as int32 or int64.

    Raises:
        ValueError: an empty list (its type cannot be known), mixed elements, or a value that GGUF cannot hold.
    """
    if isinstance(value, Typed):
        return value
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.name not in TYPE_IDS or value.ndim > 1:
            raise ValueError(f"metadata {key!r}: GGUF holds no {value.ndim}-dimensional {value.dtype} values")
        return Typed(value.dtype.name + "[]" * value.ndim, value)
    if isinstance(value, list | tuple):
        return Typed(_element(key, list(value)) + "[]", value)
    return Typed(_element(key, [value], ("uint32", "int32", "uint64", "int64")), value)


def _element(key: str, values: list[Any], integers: tuple[str, ...] = ("int32", "int64", "uint64")) -> str:
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return "string"
    if kinds == {bool}:
        return "bool"
    if kinds == {float} or kinds == {float, int}:
        return "float32"
    if kinds == {int}:
        for name in integers:
            limits = np.iinfo(name)
            if limits.min <= min(values) and max(values) <= limits.max:
                return name
        raise ValueError(f"metadata {key!r}: {min(values)} ... {max(values)} do not fit into 64 bits")
    found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "an empty list"
    raise ValueError(f"metadata {key!r}: found {found}; give the type with Typed(type, value)")
