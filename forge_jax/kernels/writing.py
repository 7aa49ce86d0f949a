"""New tokens into the slots of a cache, in C++ and in place.

XLA copies a whole slab to change some of its slots if its floats are short, its rows many, or the tokens several.
"""

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import jax
from jax import Array

from forge_jax.kernels.library import available, target
from forge_jax.kernels.meshes import varying

Name = TypeVar("Name", bound=Hashable)


def writes(parts: Mapping[Any, Array]) -> bool:
    """Whether there is a kernel for slabs of these parts."""
    return all(part.size for part in parts.values()) and available()


def written(parts: Mapping[Name, Array], new: Mapping[Name, Array], row_BT: Array, slot_BT: Array) -> dict[Name, Array]:
    """Parts [P, K, S, *] with tokens [B, K, T, *] in the slots of the rows that are named, [B, T] int32; what is out of
    range is dropped. Only where it `writes`, and only on a CPU.
    """
    arguments = varying(*parts.values(), *(new[name] for name in parts), row_BT, slot_BT)
    shapes = [jax.typeof(part) for part in arguments[: len(parts)]]
    aliases = {i: i for i in range(len(parts))}
    call = jax.ffi.ffi_call(target("write_slots"), shapes, vmap_method="sequential", input_output_aliases=aliases)
    return dict(zip(parts, call(*arguments), strict=True))
