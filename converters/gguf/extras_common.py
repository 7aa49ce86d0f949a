"""What several architectures' readers share: patterns of windows, and readers that fit more than one."""

from collections.abc import Callable, Mapping
from typing import Any

from converters.gguf.reading import Reading

Config = dict[str, Any]

SOFTMAX, SIGMOID = 1, 2
"""Values of expert_gating_func."""


def slides(period: int, layers: int) -> list[bool]:
    """Which layers have a window: all but every period-th one, none if the period is 1, all if it is 0."""
    return [period == 0 or i % period < period - 1 for i in range(layers)]


def layer_kinds(reading: Reading, layers: int, period: int) -> list[str]:
    """The kind of each layer, given one by one or by a period.

    Raises:
        ValueError: an impossible pattern.
    """
    given = reading.take("attention.sliding_window_pattern", period)
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        given = slides(given, layers)
    if not isinstance(given, list) or len(given) != layers:
        raise ValueError(f"{reading.take.where}: sliding_window_pattern is {given!r}; expected one entry a layer")
    return ["sliding_attention" if slide else "full_attention" for slide in given]


def counts(reading: Reading, key: str, layers: int) -> list[int]:
    """A count for each layer, given so or as one for all.

    Raises:
        ValueError: anything else.
    """
    given = reading.take(key)
    listed = given if isinstance(given, list) else [given] * layers
    if len(listed) != layers or any(not isinstance(x, int) or isinstance(x, bool) or x < 1 for x in listed):
        raise ValueError(f"{reading.take.where}: {key} is {given!r}, expected one count, or {layers}")
    return listed


def by_kind(reading: Reading, key: str, kinds: list[str]) -> dict[str, int]:
    """A count that may differ between layers with a window and those without.

    Raises:
        ValueError: it differs otherwise.
    """
    listed = counts(reading, key, len(kinds))
    found = {kind: {n for k, n in zip(kinds, listed, strict=True) if k == kind} for kind in set(kinds)}
    if any(len(n) > 1 for n in found.values()):
        raise ValueError(f"{reading.take.where}: {key} is {listed}; expected one count for each kind of layers")
    return {kind: n.pop() for kind, n in found.items()}


def kind(arch: str, name: str, key: str) -> Callable[[Mapping[str, Any]], str]:
    """The kind `name` of an architecture where a key of the metadata is set."""
    return lambda metadata: f"{arch}:{name}" if metadata.get(f"{arch}.{key}") else arch


def quiet(*keys: str) -> Callable[[Reading, Config], Config]:
    """Nothing more to say; the keys have had their effect."""

    def extra(reading: Reading, config: Config) -> Config:
        reading.take.ignore(*keys)
        return {}

    return extra


def granite(reading: Reading, config: Config) -> Config:
    """llama.cpp's defaults are not HuggingFace's."""
    reading.take.require("rope.scaling.finetuned", True)
    reading.number("logit_scale", above=0.0)
    return {
        "attention_multiplier": config.get("attention_multiplier") or config["head_dim"] ** -0.5,
        "residual_multiplier": config.get("residual_multiplier") or 1.0,
        "embedding_multiplier": config.get("embedding_multiplier") or 1.0,
    }


def hunyuan(reading: Reading, config: Config) -> Config:
    """The base of a stretched rope is stored, not its stretching."""
    reading.take.ignore("rope.scaling.original_context_length")
    return {}


def exaone4_windows(reading: Reading, config: Config) -> Config:
    """Layers with a window are rotated, the others not."""
    reading.take.require("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return {"layer_types": layer_kinds(reading, config["num_hidden_layers"], 4)}
