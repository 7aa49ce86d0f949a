"""How the weights of a checkpoint were packed: what it takes to write them again, beside the packed weights themselves.

A packed tensor holds what its numbers follow from. The rest (names, the types of the parts, scales of activations) is
kept here, so that a checkpoint that is written again in its own format has the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.packed.source import Packed
from converters.packed.weight import Weight
from converters.rules import Instance
from converters.source import TensorInfo


@dataclass(frozen=True)
class Packing:
    """What a checkpoint said about its packed weights.

    method, config: the name of the format, and what the config says about it. found: which tensor holds which of our
    leaves. weights: by the name of the dense tensor; none of a checkpoint whose tensors have other names in an export.
    stored: the stored tensors of all weights. values: those of them that a packed weight does not keep.
    """

    method: str
    config: Mapping[str, Any]
    found: tuple[Instance, ...] = ()
    weights: Mapping[str, Weight] = field(default_factory=dict)
    stored: Mapping[str, TensorInfo] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)


def packing_of(source: Packed, found: Sequence[Instance]) -> Packing:
    """What is to be kept of an opened checkpoint; reads the small tensors that no weight keeps."""
    stored, values = {}, {}
    for weight in source.weights.values():
        kept = (*weight.spare, *(weight.parts[role] for role in weight.kept))
        stored |= {name: source.whole.tensors[name] for name in (*weight.parts.values(), *kept)}
        values |= {name: source.whole.read(name) for name in kept}
    return Packing(source.method, source.said, tuple(found), source.weights, stored, values)
