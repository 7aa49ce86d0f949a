"""gpt-oss: sinks in every attention, windows in every other one, experts with biases and clamped units."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    layer_types,
    rename,
    rotary_attention,
    windows,
)
from converters.architectures.experts import (
    OURS,
    TRAINING,
    fused_expert_rules,
    pre_norm,
    pre_norm_rules,
    router_rules,
)
from converters.architectures.family import Family
from converters.rope import rope_dict
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Clamp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 150000.0,
    "attention_bias": True,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary; the router chooses by its logits, and the chosen share a softmax."""
    rename(take, {"num_local_experts": "num_experts"})
    take.assume(DEFAULTS)
    if not rope_dict(take):
        take.config["rope_parameters"] = ROPE
    # the activation is the clamped unit, whatever the name of another one says; the rest repeats other keys
    take.ignore("hidden_act", "experts_per_token", "initial_context_length", *TRAINING)
    count, norm, bias = take("num_hidden_layers"), Norm(take("rms_norm_eps")), take("attention_bias")
    router = Router(take("num_local_experts"), take("num_experts_per_tok"), "chosen_softmax", logit_bias=True)
    clamp = Clamp(take("swiglu_limit"), take("swiglu_alpha"))
    moe = Moe(router, take("intermediate_size"), bias=True, clamp=clamp)
    kinds = layer_types(take, count, ["full_attention" if i % 2 else "sliding_attention" for i in range(count)])
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias, sinks=True)
    layers = (
        pre_norm(replace(attention, window=window), moe, norm)
        for window in windows(take, kinds, take("sliding_window", None))
    )
    return decoder(take, layers, norm)


EXPERTS = f"{LAYER}.mlp.experts"

FAMILY = Family(
    ("gpt_oss",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        Rule("layers.{l}.attention.sinks", f"{LAYER}.self_attn.sinks"),
        *router_rules(f"{LAYER}.mlp.router"),
        *fused_expert_rules(f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj", "e d (f q) -> q e d f", ""),
        Rule((f"{OURS}.gate_bias", f"{OURS}.up_bias"), f"{EXPERTS}.gate_up_proj_bias", "e (f q) -> q e f"),
        Rule(f"{OURS}.down_bias", f"{EXPERTS}.down_proj_bias"),
        *pre_norm_rules(LAYER),
    ),
)
