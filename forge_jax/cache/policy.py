"""Which slab is kept by which codec: a rule for all, others for some layers, and what stays in floats whatever is said.

    "int8"                                        every slab with slots
    {"*": "int8", "full.-1": "bfloat16"}          but for the last layer that looks back on everything
    {"*": "int4", "*.k": "int8", "layers.0": "bfloat16"}
    "k8v4"                                        a name for {"*": "int4", "*.k": "int8"}

A slab of layer 3 of 30 is called layers.3.attention.k and layers.-27.attention.k, and by its kind of place, of which
it may be the second of 5: full.1.attention.k and full.-4.attention.k. A pattern names it, or the beginning of its name
up to a dot; `*` stands for anything. The last rule that matches decides.

By what indexers and merits say, tokens are chosen, and a choice cannot be a little wrong: such slabs (`Slab.exact`)
stay in the dtype of what is computed, which a rule that names them may change to another float.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from forge_jax.cache.codecs import Codec, Float, codec
from forge_jax.cache.memory import Slab, memories, place_key
from forge_jax.spec import ModelSpec

MIXED: Mapping[str, Mapping[str, str]] = MappingProxyType({"k8v4": MappingProxyType({"*": "int4", "*.k": "int8"})})
"""Rules with a name. Keys need more bits than values: what a query finds depends on them."""


@dataclass(frozen=True)
class Policy:
    """`plain`: what no rule is for. `rules`: patterns of names and their codecs; the last that matches wins."""

    plain: Float
    rules: tuple[tuple[str, Codec], ...] = ()

    def __str__(self) -> str:
        """The name of the codec where there is one for all."""
        match self.rules:
            case ():
                return self.plain.name
            case (("*", each),):
                return each.name
        return ", ".join(f"{pattern}: {each.name}" for pattern, each in self.rules)


def policy(kept: Any, computed: DTypeLike = jnp.float32) -> Policy:
    """What a user says of a cache: None, a dtype, a codec, a name of one or of rules, or patterns and codecs.

    `computed` is the dtype of what is computed.

    Raises:
        ValueError: an unknown codec.
    """
    plain = Float(jnp.dtype(computed).name)
    match MIXED.get(kept, kept) if isinstance(kept, str) else kept:
        case Policy() as said:
            return said
        case None:
            return Policy(plain)
        case Mapping() as rules:
            return Policy(plain, tuple((str(pattern), codec(name)) for pattern, name in rules.items()))
    found = codec(kept)
    return Policy(found) if isinstance(found, Float) else Policy(plain, (("*", found),))


@dataclass(frozen=True)
class Place:
    """One slab with slots: where it is, by which names rules know it, and the key of its places."""

    layer: int
    branch: str
    name: str
    slab: Slab
    key: str
    names: tuple[str, ...]


def slabs(spec: ModelSpec) -> Iterator[Place]:
    """Every slab with slots of a model."""
    found = [each for each in memories(spec) if any(slab.slots for slab in each[3].values())]
    kinds: dict[str, list[int]] = {}
    for layer, _, op, _ in found:
        alike = kinds.setdefault(place_key(op), [])
        alike += [] if layer in alike else [layer]
    for layer, branch, op, held in found:
        key = place_key(op)
        at, count = kinds[key].index(layer), len(kinds[key])
        starts = (f"layers.{layer}", f"layers.{layer - len(spec.layers)}", f"{key}.{at}", f"{key}.{at - count}")
        for name, slab in held.items():
            if slab.slots:
                names = tuple(f"{start}.{branch}.{name}" for start in starts)
                yield Place(layer, branch, name, slab, key, names)


def codecs(spec: ModelSpec, rules: Policy) -> dict[tuple[int, str, str], Codec]:
    """The codec of each slab with slots, by layer, branch and name.

    Raises:
        ValueError: a rule that is for no slab, or a codec that cannot keep the slab that it is for; lists them.
    """
    out: dict[tuple[int, str, str], Codec] = {}
    used, wrong = set[str](), list[str]()
    for place in slabs(spec):
        chosen: Codec = rules.plain
        for pattern, kept in rules.rules:
            if not any(fnmatchcase(name, end) for name in place.names for end in (pattern, f"{pattern}.*")):
                continue
            if place.slab.exact and not isinstance(kept, Float):
                if pattern.endswith(f".{place.name}"):
                    wrong.append(f"{place.names[0]}: tokens are chosen by it, so it stays in floats; not {kept.name}")
                continue
            used.add(pattern)
            chosen = kept
        if problem := chosen.problem(place.slab.shape[-1]):
            wrong.append(f"{place.names[0]} has heads of size {place.slab.shape[-1]}: {problem}")
        out[place.layer, place.branch, place.name] = chosen
    wrong += [
        f"the rule {pattern!r}: {kept.name!r} is for nothing that this model keeps a token"
        for pattern, kept in rules.rules
        if pattern not in used and not any(pattern.endswith(f".{place.name}") for place in slabs(spec))
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError("cache: " + "; ".join(wrong[:5]) + more)
    return out
