"""Rows of ggml blocks as a scheme: each field of the block's struct is a part of its own, [..., blocks * count].

The bytes of a field lie together, so that a kernel reads each with one stride; `parts_of` and `bytes_of` are the way
from a file's rows and back, and lose nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from forge_jax.kernels import Packing
from forge_jax.quantization.base import Rows
from forge_jax.quantization.ggml.codec import DECODERS
from forge_jax.quantization.ggml.types import GGMLType, lookup


@dataclass(frozen=True)
class Ggml(Rows):
    """Rows of blocks of one type, such as Q4_K; a block is not cut."""

    name: str

    @property
    def kind(self) -> GGMLType:
        """The layout of a block."""
        return lookup(self.name)

    def size(self, parts: Mapping[str, Any]) -> int:
        """How many numbers a row has."""
        field, count = next(iter(counts(self.kind).items()))
        return parts[field].shape[-1] // count * self.kind.block

    def decode(self, parts: Mapping[str, Any]) -> Any:
        """The rows, float32 [..., size]: the bits that ggml's reference code gives."""
        blocks = {}
        for name, count in counts(self.kind).items():
            part = parts[name]
            several = self.kind.layout[name].shape
            blocks[name] = part.reshape(*part.shape[:-1], -1, count) if several else part
        values = DECODERS[self.name](blocks)
        return values.reshape(*values.shape[:-2], -1)

    def factors(self, parts: Mapping[str, Any]) -> tuple[Any, None]:
        """The rows; no factor is common to one."""
        return self.decode(parts), None

    def packing(self, parts: Mapping[str, Any]) -> Packing:
        """Blocks by the name of their type, the fields in their order."""
        return Packing(self.name, tuple(counts(self.kind)))


def counts(kind: GGMLType) -> dict[str, int]:
    """How many values each field of a block has."""
    names = kind.layout.names or ()
    return {name: prod(kind.layout[name].shape) for name in names}


def parts_of(name: str, raw: np.ndarray) -> dict[str, np.ndarray]:
    """The parts [..., blocks * count] of stored rows, uint8 [..., bytes]."""
    kind = lookup(name)
    blocks = np.ascontiguousarray(raw).view(kind.layout)
    return {field: np.ascontiguousarray(blocks[field]).reshape(*raw.shape[:-1], -1) for field in counts(kind)}


def bytes_of(name: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The stored rows, uint8 [..., bytes], of parts: the inverse of `parts_of`."""
    kind = lookup(name)
    sizes = counts(kind)
    lead = next(iter(parts.values())).shape[:-1]
    number = next(parts[field].shape[-1] // count for field, count in sizes.items())
    blocks = np.empty((*lead, number), kind.layout)
    for field in sizes:
        blocks[field] = parts[field].reshape(blocks[field].shape)
    return blocks.view(np.uint8)
