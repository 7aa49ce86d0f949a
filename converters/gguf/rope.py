"""Rotary settings between GGUF's metadata and tensors and the rope dict of a HuggingFace config.

GGUF knows linear scaling, YaRN, and divisors of the frequencies as tensors: `rope_freqs` (Llama 3's scaling arrives as
this, its parameters are not stored) and `rope_factors_short` / `_long`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from converters.gguf.arch import Arch
from converters.gguf.reading import Reading, shortest
from converters.rope import magnitude
from forge_jax.spec import Linear, Llama3, LongRope, Proportional, Rope, Yarn

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
YARN = ("ext_factor", "attn_factor", "beta_fast", "beta_slow", "log_multiplier")
STILL = 1e30
"""The divisor of a frequency at which nothing turns."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""What every Llama 3 has; the length is in the metadata of files written here, and 8192 in every model so far."""


def partial(dim: int, head_dim: int) -> float:
    """The partial_rotary_factor that stands for `dim` of `head_dim` features: int(head_dim * factor) is dim again."""
    part = dim / head_dim
    return part if int(head_dim * part) == dim else math.nextafter(part, 2)


def llama3_factors(theta: float, dim: int, scaling: Llama3) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by, float32 [dim/2]."""
    wavelength = 2 * math.pi * np.float64(theta) ** (np.arange(0, dim, 2) / dim)
    blend = (scaling.original_len / wavelength - scaling.low) / (scaling.high - scaling.low)
    return (1 / ((1 - np.clip(blend, 0, 1)) / scaling.factor + np.clip(blend, 0, 1))).astype(np.float32)


# ------------------------------------------------------------------------------------------------ reading
def read_rope(reading: Reading, head_dim: int, length: int) -> dict[str, Any]:
    """The rope dict of the config, in the newer dialect.

    Args:
        reading: metadata and tensors; everything that is about positions counts as read.
        head_dim, length: features of a head, and the context length.

    Raises:
        ValueError: values that are out of range or contradict each other.
    """
    take = reading.take
    take.ignore("rope.scaling.finetuned")
    dim = reading.count("rope.dimension_count", head_dim)
    if dim > head_dim or dim % 2:
        raise ValueError(f"{take.where}: rope.dimension_count is {dim}, expected an even number up to {head_dim}")
    theta = reading.number("rope.freq_base", 10000.0, above=1.0)
    out: dict[str, Any] = {"rope_theta": theta, "partial_rotary_factor": partial(dim, head_dim)}
    kind = reading.text("rope.scaling.type", "linear")
    factor = reading.number("rope.scaling.factor", 0.0) or reading.number("rope.scale_linear", 0.0) or 1.0
    original = reading.count("rope.scaling.original_context_length", length, least=2)
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ValueError(f"{take.where}: rope.scaling.type is {kind!r}, expected none, linear, yarn or longrope")
    if kind != "yarn":
        take.ignore(*(f"rope.scaling.yarn_{name}" for name in YARN))
    if reading.has(FREQS) or reading.has(LONG) or kind == "longrope":
        if kind == "yarn" or (kind == "linear" and factor != 1.0):
            raise ValueError(f"{take.where}: {kind} rope scaling together with tensors of rope factors")
        return out | read_factors(reading, theta, dim, length, original)
    if kind == "yarn":
        return out | read_yarn(reading, factor, original)
    if kind == "linear" and factor != 1.0:
        return out | {"rope_type": "linear", "factor": factor}
    return out | {"rope_type": "default"}


def read_factors(reading: Reading, theta: float, dim: int, length: int, original: int) -> dict[str, Any]:
    """Frequencies divided by the numbers of a tensor, or of two for short and long sequences."""
    if reading.has(FREQS):
        factors = reading.vector(FREQS, dim // 2)
        llama3 = recognise_llama3(factors, theta, dim, (original, 8192))
        if llama3 is not None:
            return {"rope_type": "llama3", "factor": llama3.factor, **LLAMA3} | original_len(llama3.original_len)
        same = [shortest(x) for x in factors]
        both = {"short_factor": same, "long_factor": same}
        return {"rope_type": "longrope", **both, "attention_factor": 1.0} | original_len(original)
    names = {"short_factor": SHORT, "long_factor": LONG}
    out: dict[str, Any] = {key: [shortest(x) for x in reading.vector(name, dim // 2)] for key, name in names.items()}
    out |= {"rope_type": "longrope"} | original_len(original)
    given = reading.number("rope.scaling.attn_factor", 1.0)
    usual = usual_amplitude(length, original)
    return out if np.float32(given) == np.float32(usual) else out | {"attention_factor": given}


def usual_amplitude(length: int, original: int) -> float:
    """The amplitude of a rope that was stretched from the original length to this one by factors."""
    return math.sqrt(1 + math.log(length / original) / math.log(original)) if length > original else 1.0


def recognise_llama3(factors: np.ndarray, theta: float, dim: int, lengths: Sequence[int]) -> Llama3 | None:
    """The scaling that made the factors, if it is one of those that models use."""
    factor = shortest(factors.max())
    for length in lengths:
        guess = Llama3(factor, LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"], length)
        if factor > 1 and np.allclose(llama3_factors(theta, dim, guess), factors, rtol=1e-5, atol=0):
            return guess
    return None


def read_yarn(reading: Reading, factor: float, original: int) -> dict[str, Any]:
    """YaRN: llama.cpp's temperature is mscale's, or that of the logarithm alone, times attn_factor."""
    out: dict[str, Any] = {"rope_type": "yarn", "factor": factor} | original_len(original)
    out["beta_fast"] = reading.number("rope.scaling.yarn_beta_fast", 32.0)
    out["beta_slow"] = reading.number("rope.scaling.yarn_beta_slow", 1.0)
    reading.take.require("rope.scaling.yarn_ext_factor", 1.0)
    given = reading.number("rope.scaling.yarn_attn_factor", 0.0)
    times = reading.number("rope.scaling.attn_factor", 1.0)
    mscale_all = reading.number("rope.scaling.yarn_log_multiplier", 0.0)
    usual = magnitude(factor) / (magnitude(factor, mscale_all) if mscale_all else 1.0)
    if given or times != 1.0:
        return out | {"attention_factor": given or usual * times}
    return out | ({"mscale": 1.0, "mscale_all_dim": mscale_all} if mscale_all else {})


def original_len(length: int) -> dict[str, Any]:
    """The key of both dialects' dict."""
    return {"original_max_position_embeddings": length}


# ------------------------------------------------------------------------------------------------ writing
def write_rope(rope: Rope, facts: Arch, arch: str) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
    """The metadata (below "<arch>.") and the tensors that say a rope.

    Raises:
        ValueError: GGUF, or llama.cpp's loader of this architecture, has no word for it; the message names it.
    """
    tensors = facts.rope_tensors
    out: dict[str, Any] = {"rope.dimension_count": rope.dim, "rope.freq_base": rope.theta}
    match rope.scaling:
        case None:
            return out, {}
        case Linear(factor):
            return out | {"rope.scaling.type": "linear", "rope.scaling.factor": factor}, {}
        case Yarn() as yarn:
            return out | write_yarn(yarn, facts.whole_ramp, arch), {}
        case Llama3() as scaling if "rope_freqs" in tensors:
            out["rope.scaling.original_context_length"] = scaling.original_len
            return out, {FREQS: llama3_factors(rope.theta, rope.dim, scaling)}
        case LongRope(short, long, _, 1.0) if short == long and "rope_freqs" in tensors:
            return out, {FREQS: np.asarray(short, np.float32)}
        case Proportional(pairs, 1.0) if "rope_pairs" in tensors:
            return out, {FREQS: np.array([1.0] * pairs + [STILL] * (rope.dim // 2 - pairs), np.float32)}
        case LongRope(short, long, length, attention) if "rope_factors" in tensors:
            out |= {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": length}
            out["rope.scaling.attn_factor"] = attention
            return out, {LONG: np.asarray(long, np.float32), SHORT: np.asarray(short, np.float32)}
        case scaling:
            raise ValueError(f"rope scaling {type(scaling).__name__} cannot be said in a GGUF of architecture {arch!r}")


def write_yarn(yarn: Yarn, whole_ramp: bool, arch: str) -> dict[str, Any]:
    """YaRN's keys; a temperature that is not the usual one stands there as llama.cpp and as HuggingFace count it."""
    if whole_ramp and not yarn.truncate:
        raise ValueError("rope scaling Yarn(truncate=False) cannot be said in GGUF: llama.cpp always rounds the ramp")
    out: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_len,
        "rope.scaling.yarn_beta_fast": yarn.beta_fast,
        "rope.scaling.yarn_beta_slow": yarn.beta_slow,
    }
    usual = magnitude(yarn.factor)
    if yarn.attention_factor == usual:
        return out
    if arch == "mistral3" and yarn.attention_factor == 1.0:
        return out | {"rope.scaling.yarn_log_multiplier": 1.0}
    return out | {
        "rope.scaling.attn_factor": yarn.attention_factor / usual,
        "rope.scaling.yarn_attn_factor": yarn.attention_factor,
    }
