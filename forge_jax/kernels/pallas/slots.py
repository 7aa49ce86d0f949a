"""Which slabs of quantised keys and values there is a kernel for, and how much of them a program of it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
from jax import Array

from forge_jax.kernels.pallas.rows import DTYPES, LEAST, PROGRAMS
from forge_jax.kernels.pallas.switch import target

SLOTS = 128  # that a program opens at a time


@dataclass(frozen=True)
class Form:
    """How the features of a head are packed: value = scale * (code - middle), `bits` a code.

    Of the codes that share a byte, that of the first feature lies in the lowest bits, and that of the next one in the
    next byte. size: features of a head. group: those that share a scale.
    """

    bits: int
    middle: float
    size: int
    group: int

    @property
    def bytes(self) -> int:
        """Bytes of a head."""
        return self.size * self.bits // 8

    @property
    def width(self) -> int:
        """Features that are multiplied together: of one scale, and in one place of their bytes."""
        return min(self.group, self.bytes)

    @property
    def starts(self) -> range:
        """Where these begin."""
        return range(0, self.size, self.width)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """What slots hold of one kind, keys or values: codes [B, K, S, bytes] and scales [B, K, S, groups]."""

    codes: Array
    scale: Array
    form: Form = field(metadata={"static": True})

    @property
    def size(self) -> int:
        """Features of a head."""
        return self.form.size


def whole(packed: Packed) -> int:
    """The slots up to the last whole block, which the kernel takes."""
    slots = packed.codes.shape[2]
    return slots - slots % SLOTS


def looks(q_BTNH: Array, parts: Sequence[tuple[Packed, Packed] | None]) -> bool:
    """Whether the switch asks for kernels and there is one for these queries and some of what they meet."""
    if target() is None or q_BTNH.shape[1] != 1 or q_BTNH.dtype.name not in DTYPES:
        return False
    return any(part is not None and whole(part[0]) and even(*part) for part in parts)


def even(*kinds: Packed) -> bool:
    """Whether heads are cut into blocks of a power of two."""
    forms = [kind.form for kind in kinds]
    sizes = [size for form in forms for size in (form.size, form.width)]
    return all(form.width >= LEAST for form in forms) and not any(size & (size - 1) for size in sizes)


def runs(rows: int, blocks: int) -> tuple[int, int]:
    """Into how many runs the blocks of a row and head are cut, for as many programs as a device can take, and the
    blocks of a run."""
    each = -(-blocks // min(blocks, max(1, PROGRAMS // rows)))
    return -(-blocks // each), each


def filled(group: int) -> int:
    """Queries of a kv head, filled up to what a product of matrices takes."""
    return max(LEAST, 1 << (group - 1).bit_length())
