"""Mixtral: Mistral whose feed-forward layer is a mixture of experts, the chosen weights summing to one."""

from dataclasses import replace

from converters.architectures.common import LAYER, activation, attention_rules, decoder, end_rules, rotary_attention
from converters.architectures.experts import MOVED, TRAINING, expert_rules, pre_norm, pre_norm_rules, router_rules
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "rope_theta": 1000000.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated experts."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    norm = Norm(take("rms_norm_eps"))
    attention = replace(rotary_attention(take), window=take("sliding_window", None))
    router = Router(take("num_local_experts"), take("num_experts_per_tok"), renorm=1.0)
    moe = Moe(router, take("intermediate_size"), activation(take, "hidden_act"))
    return decoder(take, (pre_norm(attention, moe, norm),) * take("num_hidden_layers"), norm)


EXPERTS = f"{LAYER}.block_sparse_moe"

FAMILY = Family(
    ("mixtral",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *router_rules(f"{EXPERTS}.gate"),
        *expert_rules(f"{EXPERTS}.experts", gate="w1", down="w2", up="w3"),
        *pre_norm_rules(LAYER),
    ),
    trained=MOVED,
)
