"""Phi-3.5-MoE: layer norms, biases, two experts chosen one after the other, a rope with two amplitudes."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    head_dim,
    rename,
)
from converters.architectures.experts import MOVED, TRAINING, expert_rules, pre_norm, pre_norm_rules, router_rules
from converters.architectures.family import Family
from converters.rope import read_rope, rope_dict
from converters.take import Take
from forge_jax.spec import LongRope, ModelSpec, Moe, Norm, Rope, Router

DEFAULTS = {
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_local_experts": 16,
    "router_jitter_noise": 0.01,
    "rope_theta": 1000000.0,
}


def rotary(take: Take) -> Rope:
    """The rope, whose dict gives the amplitudes of short and long sequences.

    As the model's own code has it: past the original length the long factors are taken, too.

    Raises:
        ValueError: another rule of stretching, for which no amplitudes are known.
    """
    rope = read_rope(take, head_dim(take), beside=("short_mscale", "long_mscale"))
    if rope.scaling is None:
        return rope
    if not isinstance(rope.scaling, LongRope):
        raise ValueError(f"{take.where}: rope_parameters: only longrope has two amplitudes, found {rope.scaling}")
    short, long = (float(rope_dict(take)[key]) for key in ("short_mscale", "long_mscale"))
    return replace(rope, scaling=replace(rope.scaling, attention_factor=short, long_attention_factor=long))


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary."""
    rename(take, {"num_local_experts": "num_experts"})
    take.assume(DEFAULTS)
    take.ignore("input_jitter_noise", *TRAINING)
    take.require("num_experts_per_tok", 2)
    norm, bias = Norm(take("rms_norm_eps"), "layer", bias=True), take("attention_bias", False)
    attention = replace(grouped_attention(take, rotary(take)), qkv_bias=bias, o_bias=bias)
    attention = replace(attention, window=take("sliding_window", None))
    router = Router(take("num_local_experts"), 2, "sparsemixer", jitter=take("router_jitter_noise"))
    moe = Moe(router, take("intermediate_size"), activation(take, "hidden_act"))
    spec = decoder(take, (pre_norm(attention, moe, norm),) * take("num_hidden_layers"), norm)
    return replace(spec, head_bias=take("lm_head_bias", False))


EXPERTS = f"{LAYER}.block_sparse_moe"

FAMILY = Family(
    ("phimoe",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *router_rules(f"{EXPERTS}.gate"),
        *expert_rules(f"{EXPERTS}.experts", gate="w1", down="w2", up="w3"),
        *pre_norm_rules(LAYER),
    ),
    trained=((".block_sparse_moe.gate.", ".mlp.router."), *MOVED),
)
