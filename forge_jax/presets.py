"""The named sizes of `ForgeConfig`, and what a config costs in parameters and bytes, counted from its shapes.

Knows no arrays: nothing here imports jax, so sizes can be listed and compared before anything is allocated.
"""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from math import ceil, gcd
from types import MappingProxyType
from typing import Any

from forge_jax.config import ForgeConfig, QuantizationConfig, check_field_names, is_whole


def _preset(dim: int, layers: int, heads: int, kv_heads: int, length: int, dropout: float) -> ForgeConfig:
    return ForgeConfig(
        dim=dim, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, max_seq_len=length, dropout=dropout
    )


MODEL_PRESETS: Mapping[str, ForgeConfig] = MappingProxyType(
    {
        "pi_zero": _preset(64, 2, 2, 1, 256, 0.0),
        "nano": _preset(128, 4, 4, 2, 256, 0.1),
        "pi_4": _preset(192, 4, 4, 2, 512, 0.05),
        "micro": _preset(192, 4, 4, 2, 384, 0.1),
        "pi_5": _preset(256, 6, 8, 4, 1024, 0.05),
        "tiny": _preset(256, 6, 8, 4, 512, 0.1),
        "mini": _preset(384, 6, 6, 3, 512, 0.1),
        "small": _preset(512, 8, 8, 4, 1024, 0.1),
        "medium": _preset(768, 12, 12, 4, 2048, 0.1),
        "base": _preset(896, 14, 14, 2, 2048, 0.1),
        "large": _preset(1024, 16, 16, 4, 4096, 0.1),
        "xl": _preset(1536, 24, 24, 6, 4096, 0.05),
        "xxl": _preset(2048, 32, 32, 8, 8192, 0.05),
        "huge": _preset(2560, 40, 40, 8, 8192, 0.05),
        "giant": _preset(4096, 32, 32, 8, 8192, 0.05),
        "colossal": _preset(4096, 48, 32, 8, 16384, 0.05),
        "titan": _preset(6144, 48, 48, 12, 16384, 0.05),
        "omega": _preset(8192, 64, 64, 16, 32768, 0.05),
    }
)
"""Every named size at the vocabulary of 8000; the feed-forward width is the derived one."""


def preset_config(size: str, vocab_size: int | None = None, **overrides: Any) -> ForgeConfig:
    """The config of a preset with some fields replaced; a width derived from `dim` is derived anew.

    Raises:
        TypeError: `size` is no string.
        ValueError: no such preset or field (names the nearest), or the result is no valid config.
    """
    if not isinstance(size, str):
        raise TypeError(f"preset size must be a str such as 'small'; found {size!r} of type {type(size).__name__}")
    if size not in MODEL_PRESETS:
        near = get_close_matches(size, MODEL_PRESETS, n=1, cutoff=0.0)[0]
        raise ValueError(f"preset size must be one of {', '.join(MODEL_PRESETS)}; found {size!r} (nearest: {near!r})")
    check_field_names(f"preset {size!r}", overrides)
    if vocab_size is not None:
        overrides["vocab_size"] = vocab_size
    return replace(MODEL_PRESETS[size], **{"hidden_dim": None, **overrides})


def get_preset(name: str, vocab_size: int = 8000) -> ForgeConfig:
    """The config of a preset. Raises as `preset_config` does."""
    return preset_config(name, vocab_size)


def list_presets() -> dict[str, dict[str, Any]]:
    """What each preset is: description, estimated_params, dim, layers, heads, max_seq_len."""
    return {
        name: {
            "description": f"{config.n_layers} layers of width {config.dim}, {config.n_heads} heads "
            f"({config.n_kv_heads} for keys and values), feed-forward {config.hidden_dim}",
            "estimated_params": estimate_parameters(config),
            "dim": config.dim,
            "layers": config.n_layers,
            "heads": config.n_heads,
            "max_seq_len": config.max_seq_len,
        }
        for name, config in MODEL_PRESETS.items()
    }


# ------------------------------------------------------------------------------------------------ counting
def linear_shapes(config: ForgeConfig) -> list[tuple[int, int, int]]:
    """(inputs, outputs, how many) of every weight matrix but the embeddings, over the whole model."""
    kv_dim = config.n_kv_heads * config.head_dim
    experts = config.num_experts if config.use_moe else 1
    layer = [
        (config.dim, config.dim, 2),  # q, o
        (config.dim, kv_dim, 2),  # k, v
        (config.dim, config.hidden_dim, experts * (2 if config.use_swiglu else 1)),  # gate, up
        (config.hidden_dim, config.dim, experts),  # down
    ]
    layer += [(config.dim, config.num_experts, 1)] if config.use_moe else []  # router
    return [(inputs, outputs, count * config.n_layers) for inputs, outputs, count in layer]


def embedding_size(config: ForgeConfig) -> int:
    """Numbers in the token table, which is the head too, and in the table of learned positions."""
    return (config.vocab_size + (0 if config.use_rope else config.max_seq_len)) * config.dim


def vector_size(config: ForgeConfig) -> int:
    """Numbers in norms and biases; a router has no bias."""
    norms = (2 * config.n_layers + 1) * config.dim * (1 if config.use_rms_norm else 2)
    if not config.use_bias:
        return norms
    experts = config.num_experts if config.use_moe else 1
    attention = 2 * config.dim + 2 * config.n_kv_heads * config.head_dim
    mlp = config.hidden_dim * (2 if config.use_swiglu else 1) + config.dim
    return norms + config.n_layers * (attention + experts * mlp)


def estimate_parameters(config: ForgeConfig) -> int:
    """The exact number of parameters of the language model; the tied head counts once."""
    matrices = sum(inputs * outputs * count for inputs, outputs, count in linear_shapes(config))
    return embedding_size(config) + matrices + vector_size(config)


def estimate_memory_usage(
    size: str | ForgeConfig, quantization: str | QuantizationConfig = "none", batch_size: int = 1
) -> dict[str, float]:
    """The memory that a model needs to run, computed from its shapes.

    Plain numbers are float32. int8 and dynamic store one byte a weight and a float32 scale an output, int4 half a
    byte and a scale a group. The cache holds `max_seq_len` tokens a row, or the sliding window if that is shorter.

    Args:
        size: a preset's name or a config.
        quantization: a mode, or a QuantizationConfig.

    Returns:
        parameters; weights_bytes, kv_cache_bytes, total_bytes, and each of these in MB (2**20 bytes) as weights_mb, ...

    Raises:
        TypeError, ValueError: the preset, the mode or the batch size is not known or not possible.
    """
    config = size if isinstance(size, ForgeConfig) else preset_config(size)
    q = quantization if isinstance(quantization, QuantizationConfig) else QuantizationConfig(quantization)
    if not is_whole(batch_size) or batch_size <= 0:
        raise ValueError(f"batch_size must be a whole number > 0; found {batch_size!r}")
    linear = sum(count * matrix_bytes(i, o, q, q.quantize_linear) for i, o, count in linear_shapes(config))
    # a row of the embedding is what one token multiplies: the axis that scales run along
    tokens = matrix_bytes(config.dim, config.vocab_size, q, q.quantize_embedding)
    positions = 4 * (embedding_size(config) - config.vocab_size * config.dim)
    weights = linear + tokens + positions + 4 * vector_size(config)
    cache = batch_size * kv_cache_bytes(config)
    sizes = {"weights": weights, "kv_cache": cache, "total": weights + cache}
    return (
        {"parameters": estimate_parameters(config)}
        | {f"{name}_bytes": count for name, count in sizes.items()}
        | {f"{name}_mb": count / 2**20 for name, count in sizes.items()}
    )


def matrix_bytes(inputs: int, outputs: int, quantization: QuantizationConfig, quantized: bool) -> int:
    """Bytes of one weight matrix with its scales."""
    mode = quantization.mode if quantized else "none"
    match mode:
        case "none":
            return 4 * inputs * outputs
        case "int4":
            return ceil(inputs * outputs / 2) + 4 * outputs * ceil(inputs / quantization.group_size)
    return inputs * outputs + 4 * outputs


def kv_cache_bytes(config: ForgeConfig) -> int:
    """Bytes of keys and values of one row of full length, with the scales of quantised ones, which have two bytes."""
    size = config.head_dim
    match config.kv_cache_dtype:
        case "fp16" | "bf16":
            head = 2 * size
        case "int8" | "fp8":
            head = size + 2
        case "int4":
            head = size // 2 + 2 * (size // gcd(size, 32))
        case _:
            head = 4 * size
    length = min(config.max_seq_len, config.sliding_window or config.max_seq_len)
    return 2 * config.n_layers * config.n_kv_heads * head * length
