"""dots.llm1: queries and keys normalised over a head, windows in the upper layers, experts in groups."""

from dataclasses import replace

from converters.architectures.common import layer_types, rename, rotary_attention, windows
from converters.architectures.experts import grouped_moe
from converters.architectures.family import Family
from converters.architectures.glm4_moe import RULES, assemble, beyond
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "moe_intermediate_size": 1408,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "sliding_window": 4096,
    "max_window_layers": 62,
}


def config(take: Take) -> ModelSpec:
    """Rotary."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    if take("scoring_func", None) == "noaux_tc":  # released configs name the method of balancing in its place
        take.config["scoring_func"] = "sigmoid"
    size, first, count = take("sliding_window", None), take("max_window_layers"), take("num_hidden_layers")
    slides = [size is not None and i >= first for i in range(count)]
    kinds = layer_types(take, count, ["sliding_attention" if slide else "full_attention" for slide in slides])
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    attention = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias)
    attentions = (replace(attention, window=window) for window in windows(take, kinds, size))
    return assemble(take, attentions, beyond(take), grouped_moe(take))


FAMILY = Family(("dots1",), config, RULES)
