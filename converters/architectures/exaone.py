"""EXAONE 3: llama under GPT-2's names."""

from dataclasses import replace

from converters.architectures.common import (
    COMMON,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    mlp_rules,
    pre_norm,
    pre_norm_rules,
    rename,
    rotary_attention,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

NAMES = {
    "hidden_act": "activation_function",
    "num_hidden_layers": "num_layers",
    "rms_norm_eps": "layer_norm_epsilon",
}
DEFAULTS = {
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    rename(take, NAMES)
    take.assume(DEFAULTS)
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias)
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


LAYER = "transformer.h.{l}"
FAMILY = Family(
    ("exaone",),
    config,
    (
        *end_rules("transformer.wte", "transformer.ln_f"),
        *attention_rules(f"{LAYER}.attn.attention", o="out_proj"),
        *mlp_rules(f"{LAYER}.mlp", gate="c_fc_0", up="c_fc_1", down="c_proj"),
        *pre_norm_rules(LAYER, "ln_1", "ln_2"),
        *COMMON,
    ),
    prefix="transformer.",
)
