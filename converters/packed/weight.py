"""What every packed format has in common: a dense weight made of stored parts, and the checks of those parts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from converters.composed import Recipe
from converters.files import quote
from converters.source import TensorInfo, TensorSource
from forge_jax.quantization.schemes import Integers
from forge_jax.quantization.streams import unpacked
from forge_jax.tensor import QTensor

Size = int | None
FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Weight:
    """A tensor of `shape`, and the stored tensors that it is made of.

    `parts` maps the argument of `pack` to the name of a stored tensor. `pack` gives the packed tensor, on the host; a
    plain float32 array where its rows cannot stand by themselves. `unpack` is its inverse: the parts of a packed tensor
    by their argument, but those in `kept`, which it is given because a packed tensor does not have them. `spare`
    tensors belong to the module and say nothing about its weight (scales of activations, marks of an order). `kind` is
    how its scheme is called: what takes the place of a storage type.
    """

    name: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    pack: Callable[..., QTensor | np.ndarray]
    unpack: Callable[..., dict[str, np.ndarray]]
    spare: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def recipe(self) -> Recipe:
        """How it is made."""

        def make(stored: dict[str, np.ndarray]) -> QTensor | np.ndarray:
            return self.pack(**{role: stored[part] for role, part in self.parts.items()})

        return Recipe(self.shape, self.kind, tuple(self.parts.values()), make)

    kind: str = "packed"


class Stored:
    """The tensors of a checkpoint as a format looks for its parts among them."""

    def __init__(self, source: TensorSource, where: str) -> None:
        self.source, self.where = source, where

    def modules(self, *suffixes: str) -> Iterator[str]:
        """Every module, once, that has a tensor of one of these names."""
        seen = set()
        for name in self.source.tensors:
            module, _, last = name.rpartition(".")
            if last in suffixes and module not in seen:
                seen.add(module)
                yield module

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self.source.tensors

    def dtype(self, name: str) -> str:
        """The storage type of a tensor; empty where there is none."""
        return self.source.tensors[name].dtype if self.has(name) else ""

    def there(self, *names: str) -> tuple[str, ...]:
        """Those of the names that are there."""
        return tuple(name for name in names if self.has(name))

    def part(self, name: str, dtypes: Sequence[str], shape: Sequence[Size] | None = None, why: str = "") -> TensorInfo:
        """A part that must be there, in one of these types and in this shape; None stands for any size but 0.

        Raises:
            ValueError: it is not; the message says what was found and what was expected.
        """
        if name not in self.source.tensors:
            beside = self.siblings(name)
            raise ValueError(f"{self.where}: {quote(name)} is missing{why and f' ({why})'}; there are {beside}")
        info = self.source.tensors[name]
        if info.dtype not in dtypes:
            raise self.error(name, f"is {info.dtype}, expected {' or '.join(dtypes)}")
        if shape is not None and not fits(info.shape, shape):
            asked = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.error(name, f"is {list(info.shape)}, expected [{asked}]{why and f' ({why})'}")
        return info

    def siblings(self, name: str) -> str:
        """What the module of a tensor has, for an error message."""
        module = name.rpartition(".")[0] + "."
        found = [other.removeprefix(module) for other in self.source.tensors if other.startswith(module)]
        return ", ".join(found[:8]) or "no tensors of this module"

    def error(self, name: str, what: str) -> ValueError:
        """An error that says where, about which tensor."""
        return ValueError(f"{self.where}: {quote(name)} {what}")


def fits(shape: Sequence[int], asked: Sequence[Size]) -> bool:
    """Whether a shape is the one asked for."""
    return len(shape) == len(asked) and all(a == b or (b is None and a) for a, b in zip(shape, asked, strict=True))


def ceil_div(count: int, size: int) -> int:
    """How many pieces of a size hold a count."""
    return -(-count // size)


def fields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unsigned integers of `bits` (1 to 8) from a stream of bits, the least significant first.

    Args:
        words: little-endian integers [..., n]; value i has bits i * bits to (i + 1) * bits - 1 of the n words, so it
            may lie across two of them.
        count: how many values a row has; n words must hold them.

    Returns:
        uint8 [..., count].
    """
    rows = np.ascontiguousarray(words).view(np.uint8)
    needed = ceil_div(count, 8) * bits  # 8 values take `bits` bytes
    if rows.shape[-1] < needed:
        rows = np.concatenate([rows, np.zeros((*rows.shape[:-1], needed - rows.shape[-1]), np.uint8)], -1)
    return unpacked(rows[..., :needed], bits)[..., :count]


def words(rows: np.ndarray, dtype: str = "int32") -> np.ndarray:
    """Bytes [..., n] as words, the last one filled up with zeros: back from `fields`."""
    short = -rows.shape[-1] % np.dtype(dtype).itemsize
    if short:
        rows = np.concatenate([rows, np.zeros((*rows.shape[:-1], short), np.uint8)], -1)
    return np.ascontiguousarray(rows).view(dtype)


def integers(w: QTensor) -> Integers:
    """The scheme of packed integers; ValueError where it is another."""
    if not isinstance(w.scheme, Integers):
        raise ValueError(f"is {w.scheme.name}, expected integers")
    return w.scheme


def zeros(w: QTensor) -> np.ndarray:
    """The zeros of packed integers [*outputs, groups], whether they are stored or one for all."""
    scale, middle = w.every_row("scale"), integers(w).middle
    return (
        w.every_row("zero") if "zero" in w.parts else np.full(scale.shape, middle, np.int16 if middle < 0 else np.uint8)
    )


def shared_rows(w: QTensor) -> int:
    """How many rows of a packed matrix, one after another, share their scales; 0 if all do."""
    scale = w.every_row("scale")
    changes = np.flatnonzero((scale[1:] != scale[:-1]).any(-1)) + 1
    return gcd(*(int(row) for row in changes))


def by_row(values: np.ndarray, height: int, rows: int) -> np.ndarray:
    """One number a block [..., R, C] as one for each of `rows`, for blocks of a height; one for all stays so."""
    if values.shape[-2] == 1:
        return values
    return np.repeat(values, height, -2)[..., :rows, :] if height > 1 else values


def is_block(value: Any) -> bool:
    """Whether a value from a config is two sizes."""
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def float32(values: np.ndarray) -> np.ndarray:
    """The values in float32."""
    return values.astype(np.float32, copy=False)
