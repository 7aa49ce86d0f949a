"""Ministral 3: mistral with YaRN and queries that grow with the position."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, grouped_attention, head_dim, pre_norm
from converters.architectures.family import Family
from converters.rope import read_rope, rope_dict
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm, QueryScaling

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
}
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def query_scaling(take: Take) -> QueryScaling | None:
    """How queries grow, which the rope dict says on the side."""
    rope = rope_dict(take)
    beta = rope.get("llama_4_scaling_beta")
    length = rope.get("original_max_position_embeddings") or take("max_position_embeddings")
    return None if beta is None else QueryScaling(beta, length)


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated, no biases."""
    take.assume(DEFAULTS)
    if not rope_dict(take):
        take.config["rope_parameters"] = ROPE
    norm = Norm(take("rms_norm_eps"))
    rope = read_rope(take, head_dim(take), beside=("llama_4_scaling_beta", "max_position_embeddings"))
    attention = replace(
        grouped_attention(take, rope), window=take("sliding_window", None), query_scaling=query_scaling(take)
    )
    return decoder(take, (pre_norm(attention, gated_mlp(take), norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("ministral3",), config, COMMON)
