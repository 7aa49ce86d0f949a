"""What the tables of `archs` leave open for models of which only some layers have attention."""

from collections.abc import Callable, Mapping

from converters.gguf.extras_common import SIGMOID, Config
from converters.gguf.reading import Reading
from converters.gguf.rope import read_rope


def per_layer(reading: Reading, key: str, layers: int) -> list[int]:
    """A count for each layer.

    Raises:
        ValueError: no list of counts of this length.
    """
    given = reading.take(key)
    if not isinstance(given, list) or len(given) != layers or any(not isinstance(x, int) or x < 0 for x in given):
        raise ValueError(f"{reading.take.where}: {key} is {given!r}, expected {layers} counts")
    return given


def layer_count(reading: Reading) -> int:
    """The number of layers."""
    return reading.count("block_count")


def attending(reading: Reading) -> list[bool]:
    """Which layers have attention, by their key-value heads."""
    return [count > 0 for count in per_layer(reading, "attention.head_count_kv", layer_count(reading))]


def kinds(reading: Reading, other: str) -> list[str]:
    """The kind of each layer, in the words of the configs."""
    return ["full_attention" if yes else other for yes in attending(reading)]


def anywhere(reading: Reading, ending: str) -> bool:
    """Whether some layer has a tensor of this name."""
    return any(name.endswith(f".{ending}") for name in reading.tensors)


def heads_of(reading: Reading, heads: int) -> int:
    """The features of a head of Mamba 2, or of a value head of the delta rule.

    Raises:
        ValueError: the width cannot be shared out.
    """
    inner = reading.count("ssm.inner_size")
    if inner % heads:
        raise ValueError(f"{reading.take.where}: ssm.inner_size {inner} cannot be shared by {heads} heads")
    return inner // heads


def period(reading: Reading, chosen: list[bool], what: str) -> tuple[int, int]:
    """Every how many layers one is chosen, and the first.

    Raises:
        ValueError: none is, or not at equal distances.
    """
    found = [i for i, yes in enumerate(chosen) if yes]
    if not found:
        raise ValueError(f"{reading.take.where}: no layer has {what}")
    step = found[1] - found[0] if len(found) > 1 else len(chosen)
    if chosen != [i % step == found[0] for i in range(len(chosen))]:
        raise ValueError(f"{reading.take.where}: the layers {found} with {what} do not lie at equal distances")
    return step, found[0]


# ------------------------------------------------------------------------------------------------ one by one
def jamba(reading: Reading, config: Config) -> Config:
    """Which layer has what follows from two periods."""
    layers, inner = config["num_hidden_layers"], reading.count("ssm.inner_size")
    mixed = [reading.has(f"blk.{i}.ffn_gate_inp.weight") for i in range(layers)]
    out: Config = {"mamba_conv_bias": anywhere(reading, "ssm_conv1d.bias")}
    out["attn_layer_period"], out["attn_layer_offset"] = period(reading, attending(reading), "attention")
    if config["num_experts"] > 1:
        out["expert_layer_period"], out["expert_layer_offset"] = period(reading, mixed, "experts")
    if inner % config["hidden_size"]:
        raise ValueError(f"{reading.take.where}: ssm.inner_size {inner} is no multiple of {config['hidden_size']}")
    return out | {"mamba_expand": inner // config["hidden_size"]}


def mamba_of(reading: Reading, config: Config) -> Config:
    """Mamba 2 of hybrids."""
    return {
        "mamba_d_head": heads_of(reading, config["mamba_n_heads"]),
        "mamba_conv_bias": anywhere(reading, "ssm_conv1d.bias"),
    }


def granite_hybrid(reading: Reading, config: Config) -> Config:
    """Positions only where a flag says so; without experts, the shared one is the feed-forward layer."""
    size, length = config["head_dim"], reading.count("context_length")
    turned = reading.take("rope.scaling.finetuned", True)
    rope = read_rope(reading, size, length)
    reading.number("logit_scale", above=0.0)
    return mamba_of(reading, config) | {
        "layer_types": ["attention" if yes else "mamba" for yes in attending(reading)],
        "position_embedding_type": "rope" if turned else "nope",
        "rope_parameters": rope if turned else None,
        "num_local_experts": config.get("num_local_experts", 0),
        "shared_intermediate_size": config.get("shared_intermediate_size", config["intermediate_size"]),
        "attention_multiplier": config.get("attention_multiplier") or size**-0.5,
        "attention_bias": anywhere(reading, "attn_q.bias"),
    }


def falcon_h1(reading: Reading, config: Config) -> Config:
    """The multipliers are in the weights."""
    inner = reading.count("ssm.inner_size")
    return mamba_of(reading, config) | {
        "mamba_d_ssm": inner,
        "mamba_rms_norm": anywhere(reading, "ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "projectors_bias": False,
    }


def nemotron_h(reading: Reading, config: Config) -> Config:
    """One branch a layer: attention where there are key-value heads, a feed-forward one where that has a width."""
    layers, attends = layer_count(reading), attending(reading)
    widths = per_layer(reading, "feed_forward_length", layers)
    mixed = [reading.has(f"blk.{i}.ffn_gate_inp.weight") for i in range(layers)]
    dense = {width for width, moe in zip(widths, mixed, strict=True) if width and not moe}
    if len(dense) > 1:
        raise ValueError(f"{reading.take.where}: feed_forward_length differs by layer ({sorted(dense)})")
    names = [
        "attention" if attends[i] else "moe" if mixed[i] else "mlp" if widths[i] else "mamba" for i in range(layers)
    ]
    reading.take.ignore("rope.dimension_count", "rope.freq_base", "rope.scaling.finetuned", "expert_shared_count")
    reading.take.ignore("rope.scaling.type", "expert_gating_func")
    return ({"intermediate_size": dense.pop()} if dense else {}) | {
        "layers_block_type": names,
        "mamba_head_dim": heads_of(reading, config["mamba_num_heads"]),
        "use_conv_bias": anywhere(reading, "ssm_conv1d.bias"),
        "mlp_bias": anywhere(reading, "ffn_up.bias"),
    }


def delta(reading: Reading, config: Config) -> Config:
    """Layers of the delta rule, and attention in every so many; the rope's sections are about images."""
    layers, every = config["num_hidden_layers"], reading.count("full_attention_interval", 4)
    default = [bool((i + 1) % every == 0) for i in range(layers)]
    listed = isinstance(reading.take("attention.head_count_kv", None), list)
    whole = attending(reading) if listed else default
    reading.take.ignore("rope.dimension_sections")
    return {
        "layer_types": ["full_attention" if yes else "linear_attention" for yes in whole],
        "linear_value_head_dim": heads_of(reading, config["linear_num_value_heads"]),
        "norm_topk_prob": True,
    }


def qwen35(reading: Reading, config: Config) -> Config:
    """As before, where the weights of the chosen always sum to one."""
    return {key: value for key, value in delta(reading, config).items() if key != "norm_topk_prob"}


def lfm2(reading: Reading, config: Config) -> Config:
    """The width of the feed-forward layers is final."""
    return {"layer_types": kinds(reading, "conv"), "block_auto_adjust_ff_dim": False}


def lfm2_moe(reading: Reading, config: Config) -> Config:
    """Experts are scored by sigmoids."""
    reading.take.require("expert_gating_func", SIGMOID)
    return {"layer_types": kinds(reading, "conv")}


def kimi_linear(reading: Reading, config: Config) -> Config:
    """Latent attention here and there, which nothing turns; as many heads of the delta rule as of attention.

    Raises:
        ValueError: heads without features of their own.
    """
    take, turning = reading.take, config["qk_rope_head_dim"]
    take.require("expert_gating_func", SIGMOID)
    take.require("attention.key_length", config["kv_lora_rank"] + turning)
    take.ignore("attention.value_length", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor")
    size = reading.count("attention.key_length_mla")
    if size <= turning:
        raise ValueError(f"{take.where}: heads of {size} features of which all heads share {turning}; expected more")
    heads = config["num_attention_heads"]
    return {
        "layer_types": kinds(reading, "linear_attention"),
        "linear_num_heads": heads,
        "num_key_value_heads": heads,
        "qk_nope_head_dim": size - turning,
        "v_head_dim": reading.count("attention.value_length_mla"),
        "q_lora_rank": config.get("q_lora_rank"),
    }


HYBRIDS: Mapping[str, Callable[[Reading, Config], Config]] = {
    "jamba": jamba,
    "granitehybrid": granite_hybrid,
    "falcon-h1": falcon_h1,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "qwen3next": delta,
    "qwen35": qwen35,
    "qwen35moe": qwen35,
    "lfm2": lfm2,
    "lfm2moe": lfm2_moe,
    "kimi-linear": kimi_linear,
}
