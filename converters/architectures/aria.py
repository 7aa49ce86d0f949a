"""Aria, text: Llama whose feed-forward layers are mixtures; shared experts beside the chosen ones."""

from dataclasses import replace

from converters.architectures.common import LAYER, activation, attention_rules, decoder, end_rules, rotary_attention
from converters.architectures.experts import fused_expert_rules, pre_norm, pre_norm_rules, router_rules, shared_rules
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "moe_num_experts": 8,
    "moe_topk": 2,
    "moe_num_shared_experts": 2,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary; the experts are always gated by silu, the shared ones by what the config says."""
    take.assume(DEFAULTS)
    take.ignore("pretraining_tp")
    norm, bias, each = Norm(take("rms_norm_eps")), take("attention_bias", False), take("intermediate_size")
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias)
    act = activation(take, "hidden_act")
    shared = Mlp(each * take("moe_num_shared_experts"), act, bias=take("mlp_bias", False))
    moe = Moe(Router(take("moe_num_experts"), take("moe_topk"), "chosen_softmax"), each, shared=shared)
    return decoder(take, (pre_norm(attention, moe, norm),) * take("num_hidden_layers"), norm)


EXPERTS = f"{LAYER}.mlp.experts"

FAMILY = Family(
    ("aria_text",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *router_rules(f"{LAYER}.mlp.router"),
        *fused_expert_rules(f"{EXPERTS}.fc1.weight", f"{EXPERTS}.fc2.weight", "e d (q f) -> q e d f", "e f d -> e f d"),
        *shared_rules(f"{LAYER}.mlp.shared_experts"),
        *pre_norm_rules(LAYER),
    ),
)
