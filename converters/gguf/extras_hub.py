"""What the tables of `archs_hub` leave open."""

from collections.abc import Callable, Mapping
from typing import Any

from converters.gguf.extras_common import SIGMOID, SOFTMAX, Config, hunyuan, layer_kinds
from converters.gguf.extras_experts import drafts, minicpm3
from converters.gguf.reading import Reading
from converters.gguf.rope import read_rope


def axes(reading: Reading, config: Config) -> Config:
    """How features share out the axes of a picture, and which layers see it: no matter for text, whose axes are one.

    Raises:
        ValueError: the sections are no four counts.
    """
    given = reading.take("rope.dimension_sections", None)
    counts = [0] * 4 if given is None else given
    if not isinstance(counts, list) or len(counts) != 4 or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError(f"{reading.take.where}: rope.dimension_sections is {given!r}, expected four counts")
    reading.count("n_deepstack_layers", 0, least=0)
    return {}


def hunyuan_vl(reading: Reading, config: Config) -> Config:
    """The base is stored as it was before it was stretched by alpha."""
    axes(reading, config)
    alpha, size, rope = reading.number("rope.scaling.alpha", 0.0), config["head_dim"], config["rope_parameters"]
    base = rope["rope_theta"] * (alpha or 1.0) ** (size / (size - 2))
    return hunyuan(reading, config) | {"rope_parameters": rope | {"rope_theta": base}}


def plamo(reading: Reading, config: Config) -> Config:
    """How many queries share a key.

    Raises:
        ValueError: they cannot.
    """
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % keys:
        raise ValueError(f"{reading.take.where}: {heads} heads cannot share {keys} key-value heads")
    return {"n_shared_head": heads // keys}


def unscaled(reading: Reading, config: Config) -> Config:
    """The weights of the chosen experts are not scaled."""
    reading.take.require("expert_weights_scale", 1.0)
    return {}


def deepseek_ocr(reading: Reading, config: Config) -> Config:
    """The first DeepSeek's experts, although counts are those of latent attention: 0 rotated features mean all.

    Raises:
        ValueError: what that model has not, such as groups of experts.
    """
    take, size = reading.take, config["head_dim"]
    for key, value in {"expert_gating_func": SOFTMAX, "expert_group_count": 1, "expert_group_used_count": 1}.items():
        take.require(key, value)
    if take("rope.dimension_count", 0) == 0:
        take.config["rope.dimension_count"] = size
    rope = read_rope(reading, size, config["max_position_embeddings"])
    norm = reading.flag("expert_weights_norm") if take.has("expert_weights_norm") else False
    return unscaled(reading, config) | {"rope_parameters": rope, "norm_topk_prob": norm}


def bailing2(reading: Reading, config: Config) -> Config:
    """Experts are scored by sigmoids; there may be layers that guess further tokens.

    The width of the shared expert is that of one, of which there may be several.
    """
    reading.take.require("expert_gating_func", SIGMOID)
    reading.take.require("expert_shared_feed_forward_length", config["moe_intermediate_size"])
    return drafts(reading, config)


def jais(reading: Reading, config: Config) -> Config:
    """Slopes are the usual ones; what scales the embedding and the logits is part of the tensors.

    Raises:
        ValueError: other slopes, or none.
    """
    if (bias := reading.number("attention.max_alibi_bias")) != 8.0:
        raise ValueError(f"{reading.take.where}: attention.max_alibi_bias is {bias}; only 8.0 is implemented")
    return {}


def refact(reading: Reading, config: Config) -> Config:
    """One key-value head.

    Raises:
        ValueError: there are more.
    """
    if (keys := reading.count("attention.head_count_kv", config["n_head"])) != 1:
        raise ValueError(f"{reading.take.where}: attention.head_count_kv is {keys}; only 1 is implemented")
    return {}


def baichuan_kind(metadata: Mapping[str, Any]) -> str:
    """Nothing tells the 13B, which has ALiBi instead of a rope, but its depth."""
    return "baichuan:alibi" if metadata.get("baichuan.block_count") == 40 else "baichuan"


def baichuan_alibi(reading: Reading, config: Config) -> Config:
    """A key and a value for each query; what is said of a rope says nothing."""
    reading.take.require("attention.head_count_kv", config["n_head"])
    reading.take.ignore("tensor_data_layout", "rope.dimension_count", "rope.freq_base")
    return {}


def openelm(reading: Reading, config: Config) -> Config:
    """Heads and widths layer by layer; a width is a multiple of the model's.

    Raises:
        ValueError: a list is not of as many counts as there are layers, values have another size than keys, or norms
            another eps than all releases have.
    """
    take, layers, size = reading.take, config["num_transformer_layers"], config["head_dim"]
    if (eps := reading.number("attention.layer_norm_rms_epsilon")) != 1e-6:
        raise ValueError(f"{take.where}: attention.layer_norm_rms_epsilon is {eps}; only 1e-06 is implemented")
    take.require("attention.value_length", size)
    keys = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    heads, kv_heads, widths = (counts(reading, key, layers) for key in keys)
    return {
        "num_query_heads": heads,
        "num_kv_heads": kv_heads,
        "ffn_multipliers": [width / config["model_dim"] for width in widths],
        "ffn_dim_divisor": 1,
        "rope_parameters": read_rope(reading, size, config["max_context_length"]),
    }


def counts(reading: Reading, key: str, layers: int) -> list[int]:
    """One count a layer, or one for all.

    Raises:
        ValueError: it is something else.
    """
    given = reading.take(key)
    out = given if isinstance(given, list) else [given] * layers
    if len(out) != layers or not all(type(n) is int and n > 0 for n in out):
        raise ValueError(f"{reading.take.where}: {key} is {given!r}, expected {layers} counts of 1 or more")
    return out


def plamo3(reading: Reading, config: Config) -> Config:
    """Layers with a window have their own rope, which is never scaled; without a window, there are none."""
    layers, size = config["num_hidden_layers"], config.get("window_size")
    kinds = layer_kinds(reading, layers, 8) if size else ["full_attention"] * layers
    return {
        "window_size": None,
        "interleaved_sliding_window": [size if kind == "sliding_attention" else None for kind in kinds],
        "rope_local_theta": reading.number("rope.freq_base_swa", 10000.0, above=1.0),
    }


HUB: Mapping[str, Callable[[Reading, Config], Config]] = {
    "qwen2vl": axes,
    "qwen3vl": axes,
    "qwen3vlmoe": axes,
    "paddleocr": axes,
    "hunyuan_vl": hunyuan_vl,
    "deepseek2-ocr": deepseek_ocr,
    "plamo": plamo,
    "deepseek": unscaled,
    "bailingmoe": unscaled,
    "bailingmoe2": bailing2,
    "jais": jais,
    "refact": refact,
    "baichuan:alibi": baichuan_alibi,
    "openelm": openelm,
    "plamo3": plamo3,
    "plm": minicpm3,
}
