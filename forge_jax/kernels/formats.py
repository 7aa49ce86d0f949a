"""The formats of packed rows that kernels multiply by."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Packing:
    """How rows are packed, in the words of the kernels: a format of theirs, and which parts of a leaf it takes."""

    format: str
    parts: tuple[str, ...]


FORMATS: Mapping[str, int] = MappingProxyType({"Q8_0": 32, "Q4_0": 32, "Q4_1": 32})
"""Each format and how many numbers its blocks have, as native/formats.h says too."""
