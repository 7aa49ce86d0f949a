"""What the tables of `archs` leave open, architecture by architecture: metadata that take a few lines to read."""

from collections.abc import Callable, Mapping
from typing import Any

from converters.gguf.extras_common import Config, exaone4_windows, granite, hunyuan, kind, layer_kinds, quiet
from converters.gguf.extras_experts import MIXED, deepseek_kind
from converters.gguf.extras_gemma import GEMMAS
from converters.gguf.extras_hub import HUB, baichuan_kind
from converters.gguf.extras_state import HYBRIDS
from converters.gguf.reading import Reading


def mistral3(reading: Reading, config: Config) -> Config:
    """Queries that grow with the position: HuggingFace keeps it in the rope dict."""
    beta = reading.number("attention.temperature_scale", 0.0)
    return {"rope_parameters": config["rope_parameters"] | ({"llama_4_scaling_beta": beta} if beta else {})}


def gemma2(reading: Reading, config: Config) -> Config:
    """Scores scaled by the head's size, or in the 27B (known by its depth) by the width that is a head's share."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    reading.take.require("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    share = config["hidden_size"] // heads
    return {
        "query_pre_attn_scalar": share if layers == 46 else config["head_dim"],
        "layer_types": layer_kinds(reading, layers, 2),
    }


def gemma3(reading: Reading, config: Config) -> Config:
    """As Gemma 2, and layers with a window have their own rope, which is never scaled."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    windowed = bool(config.get("sliding_window"))
    theta = reading.number("rope.freq_base_swa", 10000.0, above=1.0)
    local = {"rope_type": "default", "rope_theta": theta}
    local["partial_rotary_factor"] = config["rope_parameters"]["partial_rotary_factor"]
    share = config["hidden_size"] // heads
    return {
        "query_pre_attn_scalar": share if layers == 62 else config["head_dim"],
        "layer_types": layer_kinds(reading, layers, 6 if windowed else 1),
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
    }


def phi3(reading: Reading, config: Config) -> Config:
    """The length before scaling stands beside the rope dict."""
    original = config["rope_parameters"].get("original_max_position_embeddings")
    return {"original_max_position_embeddings": original or config["max_position_embeddings"]}


def gptj(reading: Reading, config: Config) -> Config:
    """The rotated features are counted, and nothing else about the rope can be chosen."""
    rope = config["rope_parameters"]
    if rope["rope_type"] != "default" or rope["rope_theta"] != 10000.0:
        raise ValueError(f"{reading.take.where}: {rope} is not implemented; only the default rope is")
    size = config["n_embd"] // config["n_head"]
    return {"rope_parameters": None, "rotary_dim": int(size * rope["partial_rotary_factor"])}


def starcoder(reading: Reading, config: Config) -> Config:
    """One key-value head for all queries, or one for each."""
    heads = reading.count("attention.head_count_kv", config["n_head"])
    if heads not in (1, config["n_head"]):
        raise ValueError(f"{reading.take.where}: {heads} key-value heads for {config['n_head']}; expected 1 or all")
    return {"multi_query": heads == 1}


def bloom(reading: Reading, config: Config) -> Config:
    """What others may choose is always the same here."""
    reading.take.require("feed_forward_length", 4 * config["hidden_size"])
    reading.take.require("attention.max_alibi_bias", 8.0)
    return {}


def falcon(reading: Reading, config: Config) -> Config:
    """llama.cpp runs only parallel branches with rotary positions; those of the 40B have a norm each."""
    reading.take.require("tensor_data_layout", "jploski")
    norms, grouped = 2 if reading.has("blk.0.attn_norm_2.weight") else 1, config["num_kv_heads"] > 1
    if norms == 1 and not grouped:
        return {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True}
    return {"new_decoder_architecture": True, "multi_query": False, "num_ln_in_parallel_attn": norms}


def stablelm(reading: Reading, config: Config) -> Config:
    """The branches are parallel exactly if they share a norm; the key only repeats that."""
    parallel = not reading.has("blk.0.ffn_norm.weight")
    reading.take.require("use_parallel_residual", parallel)
    return {"use_parallel_residual": parallel}


def olmo3(reading: Reading, config: Config) -> Config:
    """OLMo 2 with windows, whose layers have a rope that is never scaled."""
    rope = config["rope_parameters"]
    theta = reading.number("rope.freq_base_swa", rope["rope_theta"], above=1.0)
    local = {"rope_type": "default", "rope_theta": theta}
    return {
        "layer_types": layer_kinds(reading, config["num_hidden_layers"], 4),
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
    }


def mamba2(reading: Reading, config: Config) -> Config:
    """The width is that of all heads together."""
    inner, heads = reading.count("ssm.inner_size"), config["num_heads"]
    if inner % heads:
        raise ValueError(f"{reading.take.where}: ssm.inner_size {inner} is not shared by {heads} heads")
    return {"head_dim": inner // heads}


def smollm3(reading: Reading, config: Config) -> Config:
    """Every fourth layer is not rotated."""
    return {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(config["num_hidden_layers"])]}


def cohere2(reading: Reading, config: Config) -> Config:
    """Layers with a window are rotated, the others not."""
    reading.number("logit_scale", above=0.0)
    reading.take.require("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return {"layer_types": layer_kinds(reading, config["num_hidden_layers"], 4)}


def exaone4(reading: Reading, config: Config) -> Config:
    """Without windows, every layer is rotated."""
    reading.take.ignore("attention.sliding_window", "attention.sliding_window_pattern")
    return {"sliding_window": None}


def exaone(reading: Reading, config: Config) -> Config:
    """Some files say the epsilon of the norms as that of other norms."""
    if "rms_norm_eps" in config:
        return {}
    return {"rms_norm_eps": reading.number("attention.layer_norm_epsilon", above=0.0)}


def minicpm(reading: Reading, config: Config) -> Config:
    """Granite's multipliers, with the values that files without them mean."""
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    return {
        "attention_multiplier": config["head_dim"] ** -0.5,
        "embedding_multiplier": config.get("embedding_multiplier", 12.0),
        "residual_multiplier": config.get("residual_multiplier", 1.4 / layers**0.5),
        "logits_scaling": reading.number("logit_scale", width / 256, above=0.0),
    }


def qwen(reading: Reading, config: Config) -> Config:
    """The width of the feed-forward layers counts gate and up together."""
    return {"intermediate_size": config["intermediate_size"] // 2, "use_sliding_window": False}


def orion(reading: Reading, config: Config) -> Config:
    """Layer norms one after another, and nothing else that this family may have."""
    reading.take.ignore("tensor_data_layout")
    return {"use_qkv_bias": False, "use_parallel_residual": False, "qk_layernorm": False}


def mpt(reading: Reading, config: Config) -> Config:
    """No biases; what is about heads lies in a dict of its own.

    Raises:
        ValueError: positions are learned, or a width that is no multiple.
    """
    take, width = reading.take, config["d_model"]
    take.require("attention.head_count_kv", config["n_heads"])
    bias = reading.number("attention.max_alibi_bias", 8.0, above=0.0)
    inner = reading.count("feed_forward_length", 4 * width)
    if inner % width:
        raise ValueError(f"{take.where}: feed_forward_length {inner} is no multiple of {width}")
    heads = {"alibi": True, "alibi_bias_max": bias, "clip_qkv": config.get("clip_qkv")}
    return {"attn_config": heads, "clip_qkv": None, "expansion_ratio": inner // width}


def olmo(reading: Reading, config: Config) -> Config:
    """The eps of norms without weights is always the same."""
    if (eps := reading.number("attention.layer_norm_epsilon", 1e-5)) != 1e-5:
        raise ValueError(f"{reading.take.where}: attention.layer_norm_epsilon is {eps}; only 1e-05 is implemented")
    return {}


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "llama": kind("llama", "mixtral", "expert_count"),
    "deepseek2": deepseek_kind,
    "baichuan": baichuan_kind,
    "granitemoe": kind("granitemoe", "shared", "expert_shared_feed_forward_length"),
    "exaone4": kind("exaone4", "windows", "attention.sliding_window"),
    "olmo2": kind("olmo2", "olmo3", "attention.sliding_window"),
    "mamba": kind("mamba", "falcon", "ssm.dt_b_c_rms"),
}
"""Architecture -> which entry of the tables its metadata are, where there are several."""

EXTRAS: Mapping[str, Callable[[Reading, Config], Config]] = {
    **HUB,
    **HYBRIDS,
    **MIXED,
    **GEMMAS,
    "mistral3": mistral3,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "phi3": phi3,
    "gptj": gptj,
    "starcoder": starcoder,
    "bloom": bloom,
    "falcon": falcon,
    "stablelm": stablelm,
    "granite": granite,
    "baichuan": quiet("tensor_data_layout"),
    "minicpm": minicpm,
    "mpt": mpt,
    "orion": orion,
    "qwen": qwen,
    "xverse": quiet("tensor_data_layout"),
    "exaone": exaone,
    "exaone4": exaone4,
    "exaone4:windows": exaone4_windows,
    "hunyuan-dense": hunyuan,
    "olmo": olmo,
    "olmo2": quiet("attention.sliding_window"),
    "olmo2:olmo3": olmo3,
    "mamba": quiet("ssm.dt_b_c_rms"),
    "mamba:falcon": quiet("ssm.dt_b_c_rms"),
    "mamba2": mamba2,
    "smollm3": smollm3,
    "cohere2": cohere2,
}
"""Architecture -> what its tables leave open."""
