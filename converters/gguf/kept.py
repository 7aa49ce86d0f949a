"""The tensors of a model as they are now: blocks that stayed packed byte for byte, plain ones in the type they had."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from converters import rows, rules
from converters.gguf.mix_table import MIXES
from forge_jax.quantization.ggml import Ggml, bytes_of
from forge_jax.tensor import QTensor

PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def blocks(instance: rules.Instance, fetch: Callable[[str], Any]) -> tuple[str, Callable[[], np.ndarray]] | None:
    """The type and the bytes of a tensor whose leaves are ggml blocks; None if they are plain.

    Raises:
        ValueError: the leaves are packed in another way, or cannot be put together again without decoding them.
    """
    leaves = [fetch(path) for path in instance.paths]
    if not any(isinstance(leaf, QTensor) for leaf in leaves):
        return None
    kinds = {leaf.scheme.name if isinstance(leaf, QTensor) else str(leaf.dtype) for leaf in leaves}
    first = leaves[0]
    if len(kinds) > 1 or not isinstance(first, QTensor) or not isinstance(first.scheme, Ggml):
        raise ValueError(
            f"{instance.theirs}: {' and '.join(sorted(kinds))} cannot be stored as it is; choose a type of GGUF, "
            "such as Q8_0, to pack it anew"
        )

    name = first.scheme.name

    def make() -> np.ndarray:
        host = [replace(leaf, parts={n: np.asarray(part) for n, part in leaf.parts.items()}) for leaf in leaves]
        found = rows.tensor(instance, host, len(instance.stored_shape) - 1)
        if found is None:
            raise ValueError(f"{instance.theirs}: its {name} blocks would have to be cut; choose a type of GGUF")
        return bytes_of(name, {field: found.every_row(field) for field in found.parts})

    return name, make


def plain_kind(instance: rules.Instance, fetch: Callable[[str], Any], stored: Mapping[str, str]) -> str:
    """The type of a plain matrix: what it was stored as, or the dtype it has."""
    path = instance.paths[0]
    return PLAIN.get(stored.get(path, ""), PLAIN.get(str(fetch(path).dtype), "F32"))


def file_type(kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """general.file_type: the mix whose matrices are mostly of the type that most numbers here have."""
    sizes: dict[str, int] = {}
    for name, kind in kinds.items():
        sizes[kind] = sizes.get(kind, 0) + prod(shapes[name])
    most = max(sizes, key=sizes.__getitem__)
    return next((mix.id for mix in MIXES.values() if mix.base == most), MIXES["F32"].id)
