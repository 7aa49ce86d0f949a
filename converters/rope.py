"""Rotary settings of both config dialects to one `Rope`.

The older dialect has `rope_theta`, `rope_scaling` and `partial_rotary_factor` side by side (with their aliases), the
newer one nests all of it in `rope_parameters`, possibly once a layer type. Semantics as in transformers'
modeling_rope_utils, but `truncate` is honoured in nested dicts too.
"""

import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from converters.take import Take
from forge_jax.spec import DynamicNtk, Linear, Llama3, LongRope, Proportional, Rope, Scaling, Yarn

THETA = ("rope_theta", "rotary_emb_base")
PARTIAL = ("partial_rotary_factor", "rotary_pct", "rope_pct")
DIALECT = (*THETA, *PARTIAL, "rope_parameters", "rope_scaling", "original_max_position_embeddings")


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's temperature, 0.1 * mscale * ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_dict(take: Take) -> Mapping[str, Any]:
    """The nested dict of either dialect, empty where there is none."""
    return take("rope_parameters", None) or take("rope_scaling", None) or {}


def reader(take: Take, layer_type: str | None) -> Take:
    """A reader of the nested dict, or of the part of it that is about one layer type.

    Raises:
        ValueError: it differs by layer type and none is asked for, or the one asked for is not there.
    """
    outer = rope_dict(take)
    where = f"{take.where}: rope_parameters"
    # a nested dict is keyed by layer type and its values are dicts (or null)
    if not outer or not all(isinstance(value, dict) or value is None for value in outer.values()):
        return Take(outer, where)
    if layer_type is None:
        raise ValueError(f"{where} differ by layer type {sorted(outer)}; expected one dict")
    if layer_type not in outer:
        raise ValueError(f"{where}[{layer_type!r}] is missing; found {sorted(outer)}")
    return Take(outer[layer_type] or {}, f"{where}[{layer_type!r}]")


def read_rope(
    take: Take,
    head_dim: int,
    *,
    interleaved: bool = False,
    layer_type: str | None = None,
    theta: float = 10000.0,
    partial: float = 1.0,
    max_len: int | None = None,
    beside: Iterable[str] = (),
) -> Rope:
    """Read the rotary embedding of a config, or of one layer type where it is nested by layer type.

    Args:
        take: the model's config; every rotary key of both dialects is marked as read.
        head_dim: features of a head; a partial factor takes that part of it from the front.
        theta, partial: this architecture's defaults.
        max_len: max_position_embeddings, if the config names it otherwise.
        beside: keys of the rope dict that are not about the rope; the architecture reads them itself.

    Raises:
        ValueError: an unknown rope type, or a key inside the rope dict that nobody reads.
    """
    take.ignore(*DIALECT)
    inner = reader(take, layer_type)
    theta = float(inner("rope_theta", None) or take.either(*THETA, default=theta))
    part = inner("partial_rotary_factor", None)
    part = take.either(*PARTIAL, default=partial) if part is None else part
    length = max_len or take("max_position_embeddings", None)
    original = (
        take("original_max_position_embeddings", None) or inner("original_max_position_embeddings", None) or length
    )
    inner.ignore("original_max_position_embeddings", *beside)
    kind = inner.either("rope_type", "type", default="default")
    if kind == "proportional":
        pairs = int(part * head_dim // 2)
        scaling: Scaling | None = Proportional(pairs, float(inner("factor", 1.0)))
        dim = head_dim
    else:
        dim = int(head_dim * part)
        scaling = read_scaling(inner, kind, length, original)
    if dim % 2 or not 0 < dim <= head_dim or not 0 <= part <= 1:
        raise ValueError(
            f"{inner.where}: {part} of {head_dim} features rotated; expected an even number of them, not more"
        )
    if isinstance(scaling, LongRope) and {len(scaling.short), len(scaling.long)} != {dim // 2}:
        found = f"{len(scaling.short)} short and {len(scaling.long)} long"
        raise ValueError(f"{inner.where}: {found} factors for {dim // 2} pairs of features; expected one a pair")
    inner.done()
    return Rope(dim, theta, interleaved, scaling)


def read_ropes(
    take: Take,
    head_dim: int,
    thetas: Mapping[str, float],
    stretched: Container[str] = ("full_attention",),
    partial: float = 1.0,
) -> dict[str, Rope]:
    """Read the rotary embedding of each layer type, of which `thetas` gives the default base, and `partial` the part.

    The newer dialect nests them by layer type. In the older one, rope_scaling is about the layer types `stretched`.

    Raises:
        ValueError: rope_parameters that are not nested by layer type.
    """
    take.ignore(*DIALECT)
    nested: Mapping[str, Any] = take("rope_parameters", None) or {}
    if odd := sorted(set(nested) - set(thetas)):
        raise ValueError(f"{take.where}: rope_parameters has {odd}; expected {' and '.join(thetas)}")
    old = take("rope_scaling", None) or {}

    def read(kind: str, theta: float) -> Rope:
        given = nested.get(kind) or (old if kind in stretched else {})
        flat = {"rope_parameters": {"rope_theta": theta, **given}}
        flat["max_position_embeddings"] = take("max_position_embeddings")
        return read_rope(Take(flat, f"{take.where}: {kind}"), head_dim, partial=partial)

    return {kind: read(kind, theta) for kind, theta in thetas.items()}


def read_ntk_rope(take: Take, head_dim: int) -> Rope:
    """`read_rope`, where "dynamic" scaling with an `alpha` means a base that is larger once and for all."""
    scaling = rope_dict(take)
    alpha = scaling.get("alpha")
    if not alpha or "dynamic" not in (scaling.get("rope_type"), scaling.get("type")):
        return read_rope(take, head_dim, beside=("alpha",))
    take.ignore(*DIALECT)
    inner = Take(scaling, f"{take.where}: rope_parameters")
    inner.ignore("alpha", "rope_type", "type", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    theta = float(inner("rope_theta", None) or take.either(*THETA, default=10000.0))
    inner.done()
    return Rope(head_dim, theta * alpha ** (head_dim / (head_dim - 2)))


def read_scaling(inner: Take, kind: str, length: Any, original: Any) -> Scaling | None:
    """Read one scaling rule by its type."""
    match kind:
        case "default" | "mrope":
            inner.ignore("factor")
            return None
        case "linear":
            return Linear(float(inner("factor")))
        case "dynamic":
            return DynamicNtk(float(inner("factor")), int(length))
        case "yarn" | "deepseek_yarn":
            return read_yarn(inner, length, original)
        case "llama3":
            low, high = float(inner("low_freq_factor")), float(inner("high_freq_factor"))
            return Llama3(float(inner("factor")), low, high, int(original))
        case "longrope" | "su":
            factor = inner("factor", None) or length / original
            given = inner("attention_factor", None)
            default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
            short, long = (tuple(float(x) for x in inner(key)) for key in ("short_factor", "long_factor"))
            return LongRope(short, long, int(original), float(default if given is None else given))
        case _:
            known = "default, linear, dynamic, yarn, llama3, longrope, proportional"
            raise ValueError(f"{inner.where}: rope type {kind!r} is unknown; known are {known}")


def read_yarn(inner: Take, length: Any, original: Any) -> Yarn:
    """Read YaRN: the factor may follow from the lengths, the attention factor from the two mscales."""
    factor = float(inner("factor", None) or length / original)
    mscale, mscale_all = inner("mscale", None), inner("mscale_all_dim", None)
    given = inner("attention_factor", None)
    if given is None:
        both = mscale and mscale_all
        given = magnitude(factor, mscale) / magnitude(factor, mscale_all) if both else magnitude(factor)
    return Yarn(
        factor,
        int(original),
        float(given),
        beta_fast=float(inner("beta_fast", None) or 32.0),
        beta_slow=float(inner("beta_slow", None) or 1.0),
        truncate=bool(inner("truncate", True)),
    )


def frequencies(rope: Rope, *, long: bool = False) -> np.ndarray:
    """The angle per position of each pair of features, float64 [dim/2], for texts within the trained length.

    For holding files against a config; models compute theirs in float32. `long`: those of longer texts in LongRope.
    """
    freq = rope.theta ** -(np.arange(0, rope.dim, 2) / rope.dim)
    match rope.scaling:
        case Linear(factor):
            return freq / factor
        case Proportional(pairs, factor):
            return np.where(np.arange(rope.dim // 2) < pairs, freq / factor, 0.0)
        case LongRope(short, others):
            return freq / np.array(others if long else short)
        case Llama3(factor, low, high, original):
            blend = np.clip((original * freq / (2 * math.pi) - low) / (high - low), 0, 1)
            return (1 - blend) * freq / factor + blend * freq
        case Yarn():
            return yarn_frequencies(rope, rope.scaling, freq)
        case _:
            return freq


def yarn_frequencies(rope: Rope, yarn: Yarn, freq: np.ndarray) -> np.ndarray:
    """NTK by parts: slow features are interpolated, fast ones kept, a ramp lies between (arXiv:2309.00071, 3.2)."""
    low, high = (
        rope.dim * math.log(yarn.original_len / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = np.clip((np.arange(rope.dim // 2) - low) / (high - low or 0.001), 0, 1)
    return freq / yarn.factor * ramp + freq * (1 - ramp)
