"""GGUF metadata as the config of the same model on HuggingFace, so that one `config()` per family serves both.

What llama.cpp keeps in tensors (biases by their presence, rope factors, a tied head by its absence) is read from them.
The tables are in `archs`; here is what cannot be copied key by key.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from converters.gguf.archs import ARCHS, Arch
from converters.gguf.reading import Reading
from converters.gguf.rope import read_rope
from converters.source import TensorInfo

Config = dict[str, Any]

ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu2": "relu2",
}

NUMBERS = frozenset(
    """attention.layer_norm_epsilon attention.layer_norm_rms_epsilon attention.scale embedding_scale residual_scale
    logit_scale attn_logit_softcapping final_logit_softcapping expert_weights_scale""".split()
)
FLAGS = frozenset({"use_parallel_residual", "expert_weights_norm"})
UNSET = frozenset({"attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"})
"""Keys that mean "none" where they are 0."""

UNUSED = ("context_length", "feed_forward_length", "attention.head_count")
"""Keys that llama.cpp wants from everyone, but that say nothing about a model without attention."""

TOKENS = ("bos_token_id", "eos_token_id")


def read_config(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str], np.ndarray],
    where: str,
    allow: Iterable[str] = (),
) -> tuple[str, Config, frozenset[str]]:
    """Understand the metadata of a GGUF file.

    Args:
        metadata, tensors: those of the file.
        read: gives the values of a tensor; small ones that belong to the config are read.
        where: what errors begin with.
        allow: keys that may stay unread, with or without the architecture's prefix.

    Returns:
        The entry of the tables, the config with its model_type, and the tensors that are thereby used up.

    Raises:
        ValueError: no model, an unknown architecture, or metadata that is missing, impossible or not understood.
    """
    arch = architecture(metadata, where)
    reading = Reading(prefix(arch), metadata, tensors, read, where, allow)
    config = read_common(ARCHS[arch], reading)
    config |= EXTRAS[arch](reading, config) if arch in EXTRAS else {}
    ids = {key: metadata.get(f"tokenizer.ggml.{key}") for key in TOKENS}
    config |= {key: value for key, value in ids.items() if isinstance(value, int)}
    reading.take.done()
    return arch, config, frozenset(reading.used)


def prefix(arch: str) -> str:
    """The value of general.architecture for an entry of the tables, "llama" for "llama:mixtral"."""
    return arch.partition(":")[0]


def architecture(metadata: Mapping[str, Any], where: str) -> str:
    """The entry of the tables for a file, if its architecture is one that can be read and it is a whole model."""
    kind, arch = metadata.get("general.type", "model"), metadata.get("general.architecture")
    if not isinstance(kind, str) or kind != "model":
        raise ValueError(f"{where}: general.type is {kind!r}, expected a model")
    if not isinstance(arch, str) or arch not in ARCHS:
        raise ValueError(
            f"{where}: general.architecture is {arch!r}, which is not implemented; known are "
            + ", ".join(dict.fromkeys(map(prefix, ARCHS)))
        )
    return KINDS[arch](metadata) if arch in KINDS else arch


def setting(reading: Reading, key: str) -> Any:
    """A value of the tables, in its type."""
    if key in FLAGS:
        return reading.flag(key)
    value = reading.number(key) if key in NUMBERS else reading.count(key, least=int(key not in UNSET))
    return (value or None) if key in UNSET else value


def read_common(facts: Arch, reading: Reading) -> Config:
    """Everything that the tables say."""
    take = reading.take
    embedding = reading.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{take.where}: there is no matrix token_embd.weight: the file holds a vocabulary, no model")
    for key in {"expert_count", "expert_used_count"} - {*facts.keys}:
        take.require(key, 0)
    take.require("attention.causal", True)
    layers = reading.count("block_count")
    if layers > len(reading.tensors):
        raise ValueError(f"{take.where}: block_count is {layers}, but there are {len(reading.tensors)} tensors")
    known = head_sizes(reading) if facts.attention else {}
    take.ignore(*(() if facts.attention else UNUSED))
    config: Config = {
        "model_type": facts.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": not reading.has("output.weight"),
        **facts.fixed,
    }
    config |= {theirs: known[key] if key in known else setting(reading, key) for key, theirs in facts.keys.items()}
    config |= {theirs: setting(reading, key) for key, theirs in facts.optional.items() if take.has(key)}
    for key, theirs in facts.repeats.items():
        take.require(key, config[theirs])
    config |= {theirs: any(map(reading.has, one_of)) for theirs, one_of in facts.present.items()}
    act, named = facts.act
    if named is not None:
        config[named] = reading.text("hidden_activation", ACTIVATIONS[act])
    if facts.rope:
        size = known["attention.key_length"]
        config["rope_parameters"] = read_rope(reading, size, reading.count("context_length"))
    return config


def head_sizes(reading: Reading) -> dict[str, int]:
    """The heads' number and size, where they have defaults.

    Raises:
        ValueError: values of another size than keys.
    """
    width, heads = reading.count("embedding_length"), reading.count("attention.head_count")
    size = reading.count("attention.key_length", width // heads)
    if reading.count("attention.value_length", size) != size:
        raise ValueError(
            f"{reading.take.where}: attention.value_length differs from key_length {size}; not implemented"
        )
    return {"attention.key_length": size, "attention.head_count_kv": reading.count("attention.head_count_kv", heads)}


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


KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "llama": lambda metadata: "llama:mixtral" if metadata.get("llama.expert_count") else "llama",
    "olmo2": lambda metadata: "olmo2:olmo3" if metadata.get("olmo2.attention.sliding_window") else "olmo2",
    "mamba": lambda metadata: "mamba:falcon" if metadata.get("mamba.ssm.dt_b_c_rms") else "mamba",
}
"""Architecture -> which entry of the tables its metadata are, where there are several."""


# ------------------------------------------------------------------------------------------------ one by one
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


def granite(reading: Reading, config: Config) -> Config:
    """llama.cpp's defaults are not HuggingFace's."""
    reading.take.require("rope.scaling.finetuned", True)
    reading.number("logit_scale", above=0.0)
    return {
        "attention_multiplier": config.get("attention_multiplier") or config["head_dim"] ** -0.5,
        "residual_multiplier": config.get("residual_multiplier") or 1.0,
        "embedding_multiplier": config.get("embedding_multiplier") or 1.0,
    }


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


def quiet(*keys: str) -> Callable[[Reading, Config], Config]:
    """Nothing more to say; the keys have had their effect."""

    def extra(reading: Reading, config: Config) -> Config:
        reading.take.ignore(*keys)
        return {}

    return extra


def smollm3(reading: Reading, config: Config) -> Config:
    """Every fourth layer is not rotated."""
    return {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(config["num_hidden_layers"])]}


def cohere2(reading: Reading, config: Config) -> Config:
    """Layers with a window are rotated, the others not."""
    reading.number("logit_scale", above=0.0)
    reading.take.require("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return {"layer_types": layer_kinds(reading, config["num_hidden_layers"], 4)}


def gpt_oss(reading: Reading, config: Config) -> Config:
    """Layers with a window come first; the models' own ramps are not rounded, whatever llama.cpp does."""
    rope = config["rope_parameters"]
    reading.take.require("rope.freq_base_swa", rope["rope_theta"])
    return {
        "layer_types": layer_kinds(reading, config["num_hidden_layers"], 2),
        "rope_parameters": rope | ({"truncate": False} if rope["rope_type"] == "yarn" else {}),
    }


def llama4(reading: Reading, config: Config) -> Config:
    """Chunks, layers without rope and growing queries are llama.cpp's own; a window of 0 switches all that off."""
    layers, chunked = config["num_hidden_layers"], reading.take("attention.sliding_window", None) != 0
    turned = [int(not chunked or (i + 1) % 4 != 0) for i in range(layers)]
    return {
        "no_rope_layers": turned,
        "attention_chunk_size": 8192 if chunked else None,
        "use_qk_norm": config["num_local_experts"] != 128,
    }


EXTRAS: Mapping[str, Callable[[Reading, Config], Config]] = {
    "gpt-oss": gpt_oss,
    "llama4": llama4,
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
    "olmo2": quiet("attention.sliding_window"),
    "olmo2:olmo3": olmo3,
    "mamba": quiet("ssm.dt_b_c_rms"),
    "mamba:falcon": quiet("ssm.dt_b_c_rms"),
    "mamba2": mamba2,
    "smollm3": smollm3,
    "cohere2": cohere2,
}
"""Architecture -> what its tables leave open."""
