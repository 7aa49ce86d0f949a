"""What the tables of `archs` leave open for Gemma with inputs of a layer's own and keys that layers share."""

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from converters.gguf.extras_common import Config, by_kind, counts, layer_kinds
from converters.gguf.reading import Reading
from converters.gguf.rope import FREQS, STILL, partial

TABLE = "per_layer_token_embd.weight"


def own_inputs(reading: Reading) -> Config:
    """The rows of the table of inputs, as many as it has."""
    table = reading.tensors.get(TABLE)
    return {"vocab_size_per_layer_input": table.shape[0]} if table else {}


def pass_idle(reading: Reading, layers: int, shared: int) -> None:
    """Leave alone the keys and values of layers that read those of others."""
    for i in range(layers - shared, layers):
        names = (f"blk.{i}.attn_{name}.weight" for name in ("k", "v", "k_norm"))
        reading.used.update(name for name in names if reading.has(name))


def share(scale: Any) -> float:
    """Of how many features a gate leaves nothing, from how many standard deviations above the mean the bound lies."""
    return round(NormalDist().cdf(float(scale)), 6) if scale > -math.inf else 0.0  # float32 has no more of it


def deviations(share: float) -> float:
    """The way back of `share`, in the precision of float32."""
    return float(np.float32(NormalDist().inv_cdf(share))) if share else -math.inf


def gemma3n(reading: Reading, config: Config) -> Config:
    """As Gemma 3. llama.cpp takes the counts of the released models for granted; here they are read.

    Raises:
        ValueError: no list of one number a layer says what gates leave out.
    """
    layers, take = config["num_hidden_layers"], reading.take
    theta = reading.number("rope.freq_base_swa", 10000.0, above=1.0)
    given = take("activation_sparsity_scale")
    if not isinstance(given, list) or len(given) != layers or not all(isinstance(x, float) and x == x for x in given):
        raise ValueError(f"{take.where}: activation_sparsity_scale is {given!r}, expected {layers} numbers")
    pass_idle(reading, layers, config["num_kv_shared_layers"])
    rank = reading.tensors.get("blk.0.laurel_l.weight")
    return own_inputs(reading) | {
        "laurel_rank": rank.shape[0] if rank else None,
        "activation_sparsity_pattern": [share(x) for x in given],
        "layer_types": layer_kinds(reading, layers, 5),
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
    }


def proportional(reading: Reading, head_dim: int) -> Config:
    """The rope of full layers, whose last frequencies are divided by so much that nothing turns.

    Raises:
        ValueError: the divisors say something else.
    """
    rope = {"rope_type": "proportional", "rope_theta": reading.number("rope.freq_base", 1000000.0, above=1.0)}
    factors = reading.vector(FREQS, head_dim // 2)
    pairs = int((factors == 1).sum())
    if (factors[:pairs] != 1).any() or (factors[pairs:] < np.float32(STILL)).any():
        raise ValueError(f"{reading.take.where}: {FREQS} is not ones, and {STILL:g} after them")
    reading.take.require("rope.dimension_count", head_dim)
    return rope | {"partial_rotary_factor": partial(2 * pairs, head_dim)}


def widths(reading: Reading, layers: int, shared: int) -> Config:
    """The width of the feed-forward layers, which may be twice that where keys are shared.

    Raises:
        ValueError: it differs otherwise.
    """
    listed = counts(reading, "feed_forward_length", layers)
    double = bool(shared) and listed[-1] == 2 * listed[0]
    if listed != [listed[0] * (1 + (double and i >= layers - shared)) for i in range(layers)]:
        raise ValueError(f"{reading.take.where}: feed_forward_length is {listed}; expected one width, or twice that")
    return {"intermediate_size": listed[0], "use_double_wide_mlp": double}


def gemma4(reading: Reading, config: Config) -> Config:
    """Two kinds of layers with heads of two sizes; full ones may have no values but the keys.

    Raises:
        ValueError: the last layer has a window; or full layers have another number of heads and values of their own.
    """
    take, layers = reading.take, config["num_hidden_layers"]
    kinds, shared = layer_kinds(reading, layers, 6), config["num_kv_shared_layers"]
    if kinds[-1] != "full_attention":
        raise ValueError(f"{take.where}: attention.sliding_window_pattern: the last layer has a window; expected none")
    wide, size = (reading.count(f"attention.key_length{kind}") for kind in ("", "_swa"))
    take.require("attention.value_length", wide)
    take.require("attention.value_length_swa", size)
    heads = by_kind(reading, "attention.head_count_kv", kinds)
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention" and i < layers - shared]
    same = bool(full) and not any(reading.has(f"blk.{i}.attn_v.weight") for i in full)
    if not same and len(set(heads.values())) > 1:
        raise ValueError(f"{take.where}: attention.head_count_kv is {heads}, for layers with values of their own")
    pass_idle(reading, layers, shared)
    turned = reading.count("rope.dimension_count_swa", size)
    local = {"rope_type": "default", "rope_theta": reading.number("rope.freq_base_swa", 10000.0, above=1.0)}
    return (
        own_inputs(reading)
        | widths(reading, layers, shared)
        | {
            "layer_types": kinds,
            "head_dim": size,
            "global_head_dim": wide,
            "num_key_value_heads": heads.get("sliding_attention", heads["full_attention"]),
            "num_global_key_value_heads": heads["full_attention"] if same else None,
            "attention_k_eq_v": same,
            "enable_moe_block": "num_experts" in config,
            "rope_parameters": {
                "full_attention": proportional(reading, wide),
                "sliding_attention": local | {"partial_rotary_factor": partial(turned, size)},
            },
        }
    )


GEMMAS: Mapping[str, Callable[[Reading, Config], Config]] = {"gemma3n": gemma3n, "gemma4": gemma4}
