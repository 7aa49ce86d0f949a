"""ERNIE 4.5, mixtures of experts: a softmax whose bias only chooses, shared experts, dense layers at the ends."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    grouped_attention,
    head_dim,
    mlp_rules,
    rename,
)
from converters.architectures.experts import (
    OURS,
    TRAINING,
    expert_rules,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
    "rope_theta": 500000.0,
}


def mixture(take: Take) -> Moe:
    """The experts and the shared one, of which only that has biases."""
    experts, chosen, least = take("moe_num_experts"), take("moe_k"), take("moe_norm_min")
    router = Router(experts, chosen, choice_bias=True, renorm=1.0, renorm_min=least)
    width, act, shared = take("moe_intermediate_size"), activation(take, "hidden_act"), take("moe_num_shared_experts")
    return Moe(router, width, act, shared=Mlp(width * shared, act, bias=take("use_bias", False)) if shared else None)


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotated in pairs; every moe_layer_interval-th layer between two borders is a mixture."""
    rename(take, {"moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok"})
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    norm, bias, count = Norm(take("rms_norm_eps")), take("use_bias", False), take("num_hidden_layers")
    rope = read_rope(take, head_dim(take), interleaved=True)
    attention = replace(grouped_attention(take, rope), qkv_bias=bias, o_bias=bias)
    mlp, moe = replace(gated_mlp(take), bias=bias), mixture(take)
    first, last, step = take("moe_layer_start_index"), take("moe_layer_end_index"), take("moe_layer_interval")
    last = count - 1 if last == -1 else last
    mixed = [first <= i <= last and (i + 1) % step == 0 for i in range(count)]
    spec = decoder(take, (pre_norm(attention, moe if mix else mlp, norm) for mix in mixed), norm)
    return replace(spec, head_bias=bias)


MLP = f"{LAYER}.mlp"

FAMILY = Family(
    ("ernie4_5_moe",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *mlp_rules(MLP),
        *router_rules(f"{MLP}.gate"),
        Rule(f"{OURS}.choice_bias", f"{MLP}.moe_statics.e_score_correction_bias", "one e -> one e"),
        *expert_rules(f"{MLP}.experts"),
        *shared_rules(f"{MLP}.shared_experts"),
        *pre_norm_rules(LAYER),
    ),
    drafts=("model.mtp",),
)
