"""What the tables of `archs` leave open for mixtures of experts and latent attention."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converters.gguf.extras_common import (
    SIGMOID,
    SOFTMAX,
    Config,
    by_kind,
    exaone4_windows,
    granite,
    hunyuan,
    layer_kinds,
)
from converters.gguf.reading import Reading, shortest
from converters.gguf.rope import read_rope, usual_amplitude


def latent(reading: Reading, config: Config) -> Config:
    """Latent attention, whose heads old files describe as they are when unfolded, newer ones as they are stored.

    Raises:
        ValueError: heads without features that do not rotate.
    """
    take, rank, turning = reading.take, config["kv_lora_rank"], config["qk_rope_head_dim"]
    take.ignore(
        "attention.head_count_kv", "expert_gating_func"
    )  # of the former, 1 in newer files, all heads in old ones
    stored = take.has("attention.key_length_mla")
    size, value = (reading.count(f"attention.{key}_length{'_mla' * stored}") for key in ("key", "value"))
    if stored:
        take.require("attention.key_length", rank + turning)
        take.require("attention.value_length", rank)
    if size <= turning:
        raise ValueError(f"{take.where}: heads of {size} features of which {turning} rotate; expected more")
    rope = read_rope(reading, turning, reading.count("context_length"))
    if "mscale_all_dim" in rope:  # the converter stores a tenth of it
        rope["mscale"] = rope["mscale_all_dim"] = shortest(np.float32(10 * rope["mscale_all_dim"]))
    return {
        "qk_nope_head_dim": size - turning,
        "v_head_dim": value,
        "q_lora_rank": config.get("q_lora_rank"),
        "num_key_value_heads": config["num_attention_heads"],
        "rope_parameters": rope,
    }


def deepseek2(reading: Reading, config: Config) -> Config:
    """Latent attention and experts, whose weights stay as they are if nothing is said."""
    return latent(reading, config) | {
        "norm_topk_prob": config.get("norm_topk_prob", False),
        "routed_scaling_factor": config.get("routed_scaling_factor", 1.0),
    }


def deepseek_dense(reading: Reading, config: Config) -> Config:
    """The same attention with no experts at all."""
    reading.take.ignore("expert_shared_count", "expert_weights_norm", "expert_weights_scale")
    return latent(reading, config)


def deepseek_v2(reading: Reading, config: Config) -> Config:
    """The same with a softmax over all experts, whose chosen weights stay as they are."""
    method = "group_limited_greedy" if config.get("n_group", 1) > 1 else "greedy"
    reading.take.require("expert_weights_norm", False)
    return deepseek2(reading, config) | {"topk_method": method}


def glm_dsa(reading: Reading, config: Config) -> Config:
    """As DeepSeek V3, every layer with an indexer of its own; and layers that guess further tokens."""
    reading.take.require("expert_gating_func", SIGMOID)
    return drafts(reading, config) | deepseek2(reading, config)


def mimo2(reading: Reading, config: Config) -> Config:
    """Layers with a window have heads, and a rope, of their own. Values have the usual scale if an old file has none.

    Raises:
        ValueError: heads differ otherwise.
    """
    take, layers, heads = reading.take, config["num_hidden_layers"], config["num_attention_heads"]
    take.require("expert_gating_func", SIGMOID)
    kinds = layer_kinds(reading, layers, 6)
    size = reading.count("attention.key_length", config["hidden_size"] // heads)
    rope = read_rope(reading, size, reading.count("context_length"))
    theta = reading.number("rope.freq_base_swa", rope["rope_theta"], above=1.0)
    local = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": rope["partial_rotary_factor"]}
    counts = by_kind(reading, "attention.head_count_kv", kinds)
    return {
        "head_dim": size,
        "v_head_dim": reading.count("attention.value_length", size),
        "layer_types": kinds,
        "num_key_value_heads": counts.get("full_attention", heads),
        "swa_num_key_value_heads": counts.get("sliding_attention", heads),
        "moe_layer_freq": [int(reading.has(f"blk.{i}.ffn_gate_inp.weight")) for i in range(layers)],
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
    }


def deepseek_kind(metadata: Mapping[str, Any]) -> str:
    """V2, unless there are no experts or sigmoids score them; files of GLM 4.7 Flash (by its size) may not say so."""
    if not metadata.get("deepseek2.expert_count"):
        return "deepseek2:dense"
    says = metadata.get("deepseek2.expert_gating_func")
    flash = metadata.get("deepseek2.vocab_size") == 154880 and metadata.get("deepseek2.block_count") in (47, 48)
    return "deepseek2" if says == SIGMOID or (says is None and flash) else "deepseek2:v2"


def minicpm3(reading: Reading, config: Config) -> Config:
    """Every file has the scales of the 4B, which are llama.cpp's own; values share out the width."""
    take, turning, heads = reading.take, config["qk_rope_head_dim"], config["num_attention_heads"]
    size = reading.count("attention.key_length")
    take.require("attention.head_count_kv", heads)
    return {
        "qk_nope_head_dim": size - turning,
        "v_head_dim": reading.count("attention.value_length", config["hidden_size"] // heads),
        "num_key_value_heads": heads,
        "rope_parameters": read_rope(reading, turning, reading.count("context_length")),
        "q_lora_rank": config.get("q_lora_rank"),
    }


def dbrx(reading: Reading, config: Config) -> Config:
    """What is about heads and experts lies in dicts of its own."""
    attention, experts = ("kv_n_heads", "clip_qkv"), ("ffn_hidden_size", "moe_num_experts", "moe_top_k")
    nested = {"attn_config": attention, "ffn_config": experts}
    return dict.fromkeys((*attention, *experts)) | {
        name: {key: config.get(key) for key in keys} for name, keys in nested.items()
    }


def sigmoid(reading: Reading, config: Config) -> Config:
    """Experts are scored by sigmoids."""
    reading.take.require("expert_gating_func", SIGMOID)
    return {}


def glm4_moe(reading: Reading, config: Config) -> Config:
    """The layers include those that guess further tokens, which are not read."""
    reading.take.require("expert_gating_func", SIGMOID)
    return drafts(reading, config)


def drafts(reading: Reading, config: Config) -> Config:
    """Leave the last layers alone, if they only guess further tokens."""
    more = reading.count("nextn_predict_layers", 0, least=0)
    layers = config["num_hidden_layers"] - more
    reading.used.update(f"{name}" for name in reading.tensors if block_number(name) >= layers)
    return {"num_hidden_layers": layers}


def block_number(name: str) -> int:
    """The layer of a tensor, "blk.3.attn_q.weight", or -1."""
    head, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if head == "blk" and number.isdecimal() else -1


def afmoe(reading: Reading, config: Config) -> Config:
    """Layers with a window are rotated, the others not; the weights of the chosen sum to one."""
    reading.take.require("expert_weights_norm", True)
    reading.take.require("expert_gating_func", SIGMOID)
    reading.take.require("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    return {"layer_types": layer_kinds(reading, config["num_hidden_layers"], 4)}


def exaone_moe(reading: Reading, config: Config) -> Config:
    """As EXAONE 4 with windows, and layers that guess further tokens."""
    reading.take.require("expert_gating_func", SIGMOID)
    width = config["num_shared_experts"] * config["moe_intermediate_size"]
    reading.take.require("expert_shared_feed_forward_length", width)
    return drafts(reading, config) | exaone4_windows(reading, config | drafts(reading, config))


def ernie_moe(reading: Reading, config: Config) -> Config:
    """The converter's width of the shared expert follows from another rule; tensors show the true one."""
    reading.take.ignore("expert_shared_feed_forward_length")
    reading.take.require("expert_gating_func", SOFTMAX)
    return {}


def hunyuan_moe(reading: Reading, config: Config) -> Config:
    """One shared expert, as wide as the others."""
    reading.take.require("expert_shared_count", 1)
    return hunyuan(reading, config) | {"moe_topk": config["num_experts_per_tok"]}


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


def phimoe(reading: Reading, config: Config) -> Config:
    """One amplitude of a rope for all lengths; llama.cpp's own norms and router are none of this model's."""
    rope = config["rope_parameters"]
    if rope["rope_type"] != "longrope":
        return {}
    reach = usual_amplitude(config["max_position_embeddings"], rope["original_max_position_embeddings"])
    amplitude = rope.pop("attention_factor", reach)
    return {"rope_parameters": rope | dict.fromkeys(("short_mscale", "long_mscale"), amplitude)}


MIXED: Mapping[str, Callable[[Reading, Config], Config]] = {
    "dbrx": dbrx,
    "deepseek2": deepseek2,
    "deepseek2:v2": deepseek_v2,
    "deepseek2:dense": deepseek_dense,
    "minicpm3": minicpm3,
    "glm-dsa": glm_dsa,
    "mimo2": mimo2,
    "phimoe": phimoe,
    "gpt-oss": gpt_oss,
    "llama4": llama4,
    "afmoe": afmoe,
    "dots1": sigmoid,
    "exaone-moe": exaone_moe,
    "ernie4_5-moe": ernie_moe,
    "glm4moe": glm4_moe,
    "granitemoe": granite,
    "granitemoe:shared": granite,
    "hunyuan-moe": hunyuan_moe,
    "minimax-m2": sigmoid,
}
