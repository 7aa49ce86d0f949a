"""Which tensor of a quantised GGUF is stored as what, by llama.cpp's mixes. Knows names and shapes, no values."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from converters.gguf.mix_table import MIXES, Facts, Mix, Place, falcon
from converters.gguf.values import Typed
from forge_jax.quantization.ggml import WEIGHED, lookup

QUANTIZATION_VERSION = 2
"""general.quantization_version of all files with packed tensors."""

FALLBACK: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL")
    | dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0")
    | {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
)
"""What rows that are no whole number of blocks are stored as instead."""

NEED_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
"""Types that are no use without an importance matrix, but for the embedding and the head."""

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
HEAD = "output.weight"
PARTS: tuple[tuple[str, str], ...] = (
    ("attn_qkv.weight", "v"),
    ("attn_kv_b.weight", "v"),
    ("attn_v.weight", "v"),
    ("attn_k.weight", "k"),
    ("attn_q.weight", "q"),
    ("attn_output.weight", "o"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
"""A part of a tensor's name, and the part of the model that it is; the first that fits."""

BIG = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
"""Layers of the models of 70 billion parameters. Where heads share their values, those are stored finer."""


def find(name: str) -> Mix:
    """The mix of a name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in MIXES:
        raise ValueError(f"type {name!r} is not written; expected one of {', '.join(MIXES)}")
    return MIXES[name]


def fit_importance(
    name: str, kinds: Mapping[str, str], shapes: Mapping[str, Sequence[int]], importance: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """An importance matrix in the shapes that `encode` takes, [columns] or [..., columns], for tensors of a mix `name`.

    `kinds` are the tensors' storage types. Embeddings and the head may have no entry; neither may what is finer anyway.

    Raises:
        ValueError: entries of other tensors or of another size, none where the type is no use without, or none that
            would change anything.
    """
    check_entries(importance, shapes)
    if importance and not any(kinds[tensor] in WEIGHED for tensor in importance):
        raise ValueError(
            f"type {name} stores no tensor of the importance matrix in a way that it would change; leave it out, or "
            f"choose a mix of {', '.join(WEIGHED)}"
        )
    needy = (*NEED_IMPORTANCE, "Q2_K") if name == "Q2_K_S" else NEED_IMPORTANCE
    bare = [n for n, kind in kinds.items() if kind in needy and n not in (*EMBEDDINGS, HEAD, *importance)]
    if bare:
        raise ValueError(
            f"type {name} stores {len(bare)} tensors, for example {bare[0]} as {kinds[bare[0]]}, in so few bits that "
            "they need an importance matrix: give one that has them, or choose a finer type"
        )
    return {tensor: of_columns(tensor, weights, shapes[tensor]) for tensor, weights in importance.items()}


def check_entries(importance: Iterable[str], tensors: Iterable[str]) -> None:
    """Raise ValueError if an importance matrix has entries of other tensors than those of a model."""
    if other := sorted({*importance} - {*tensors}):
        raise ValueError(
            f"the importance matrix has {len(other)} entries of tensors that this model does not have, for example "
            f"{', '.join(other[:3])}; it must have been made with this model"
        )


def of_columns(tensor: str, weights: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """An entry of an importance matrix as [columns] or [..., columns] of a tensor; ValueError for another size."""
    columns, stack = tuple(shape[-1:]), (*shape[:-2], shape[-1])
    fitting = columns if weights.size == shape[-1] else stack
    if weights.size != np.prod(fitting):
        raise ValueError(
            f"the importance matrix has {weights.size} numbers for {tensor} of {list(shape)}; expected one for each "
            f"column, {shape[-1]}, or of each matrix, {np.prod(stack)}"
        )
    return weights.reshape(fitting)


def part_of(name: str) -> str:
    """The part of a model that a tensor is."""
    if name == HEAD or name in EMBEDDINGS:
        return "head" if name == HEAD else "embedding"
    return next((part for piece, part in PARTS if piece in name), "other")


def facts(metadata: Mapping[str, Any], prefix: str, tied: bool, weighed: bool) -> Facts:
    """What a file's metadata says to the mixes; `prefix` is what its keys start with. Of lists the first counts."""

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{prefix}.{key}", default)
        return int(np.ravel(value.value if isinstance(value, Typed) else value)[0])

    heads = number("attention.head_count", 0)
    shared = number("attention.head_count_kv", heads)
    groups = heads // shared if shared else 0
    return Facts(prefix, number("block_count", 0), number("expert_count", 0), groups, tied, weighed)


def types(mix: Mix, shapes: Mapping[str, Sequence[int]], model: Facts) -> dict[str, str]:
    """The type of each of the tensors that the mix packs, in the order of their layers.

    `shapes` are row-major, [..., rows, columns], of the tensors of a whole model but those that are never packed: the
    mixes count, and what a layer gets depends on those before.
    """
    parts = Counter(map(part_of, shapes))
    seen: Counter[str] = Counter()
    out: dict[str, str] = {}
    for name in sorted(shapes, key=lambda name: (layer_of(name), name)):
        part = part_of(name)
        count = parts["v"] if part == "v" else model.layers
        counted = part == "v" or model.experts <= 1 or mix.low
        place = Place(model, seen[part] if counted else layer_of(name), count)
        out[name] = type_of(mix, name, shapes[name], place)
        seen[part] += 1
    return out


def layer_of(name: str) -> int:
    """The number of a tensor's layer, -1 outside of the layers."""
    head, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if head == "blk" and number.isdecimal() else -1


def type_of(mix: Mix, name: str, shape: Sequence[int], place: Place) -> str:
    """The type of one tensor, row-major shape, at its place."""
    kind, part = mix.base, part_of(name)
    if lookup(mix.base).plain:
        return mix.base
    if part == "head" or part == "embedding" and place.model.tied:
        whole = shape[-1] % lookup(mix.base).block == 0 and not falcon(place)
        kind = mix.head if whole else "Q8_0"
    elif part == "embedding":
        kind = mix.embedding or mix.base
    elif mix.experts and len(shape) > 2 and shape[0] > 1:
        kind = mix.experts
    elif part in mix.parts:
        kind = next((kind for holds, kind in mix.parts[part] if holds(place)), mix.base)
        big = BIG.get(place.model.arch) == place.model.layers and place.model.groups > 1
        if part == "v" and big and kind in ("Q3_K", "Q4_K") and not mix.low:
            kind = "Q5_K"
    if shape[-1] % lookup(kind).block:
        kind = FALLBACK.get(kind, kind)
    return kind if shape[-1] % lookup(kind).block == 0 else "F16"
