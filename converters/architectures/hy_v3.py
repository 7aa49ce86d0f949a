"""Hunyuan 3: experts chosen by a biased sigmoid beside shared ones, behind dense layers; queries and keys normed."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    mlp_rules,
    rename,
    rotary_attention,
)
from converters.architectures.experts import (
    OURS,
    TRAINING,
    expert_rules,
    mlp_layer_types,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "vocab_size": 120832,
    "hidden_size": 4096,
    "intermediate_size": 13312,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts": 192,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "moe_intermediate_size": 1536,
    "router_scaling_factor": 2.826,
    "rope_theta": 11158840.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated; the first layer dense."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*TRAINING, "enable_moe_fp32_combine")  # how a sum is rounded
    norm, bias, each = Norm(take("rms_norm_eps")), take("attention_bias", False), take("moe_intermediate_size")
    attention = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias)
    dense = replace(gated_mlp(take), bias=take("mlp_bias", False))
    router = Router(
        take("num_experts"),
        take("num_experts_per_tok"),
        "sigmoid",
        choice_bias=True,
        renorm=1.0,
        renorm_eps=1e-20,
        scale=take("router_scaling_factor"),
    )
    shared = Mlp(each * take("num_shared_experts"), dense.act, bias=dense.bias)
    by_kind = {"dense": dense, "sparse": Moe(router, each, activation(take, "hidden_act"), shared=shared)}
    count = take("num_hidden_layers")
    return decoder(take, [pre_norm(attention, by_kind[kind], norm) for kind in mlp_layer_types(take, count, 1)], norm)


FAMILY = Family(
    ("hy_v3",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *mlp_rules(f"{LAYER}.mlp"),
        *router_rules(f"{LAYER}.mlp.router.gate"),
        Rule(f"{OURS}.choice_bias", f"{LAYER}.mlp.expert_bias"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        *shared_rules(f"{LAYER}.mlp.shared_mlp"),
        *pre_norm_rules(LAYER),
    ),
    drafts=("model.layers.{l}.",),
)
