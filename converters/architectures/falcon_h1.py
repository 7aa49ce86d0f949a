"""Falcon H1: attention and Mamba 2 side by side in every layer, each projection with a multiplier."""

from dataclasses import replace

from converters.architectures import ssm
from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    mlp_rules,
    rotary_attention,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Mamba2, ModelSpec, Norm

DEFAULTS = ssm.DEFAULTS | {
    "vocab_size": 128000,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "mamba_d_ssm": 1024,
    "mamba_norm_before_gate": True,
    "mamba_rms_norm": False,
    "projectors_bias": False,
    "lm_head_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "key_multiplier": 1.0,
    "attention_in_multiplier": 1.0,
    "attention_out_multiplier": 1.0,
    "ssm_in_multiplier": 1.0,
    "ssm_out_multiplier": 1.0,
}


def mixers(take: Take, norm: Norm) -> tuple[Mamba2, Attention]:
    """The two halves; keys scaled are scores scaled."""
    take.ignore("mamba_norm_before_gate", "mamba_expand")  # read only where they count
    normed = take("mamba_rms_norm")
    mamba = replace(
        ssm.read_mamba2(take, norm if normed else None),
        norm_first=normed and take("mamba_norm_before_gate"),
        out_bias=take("projectors_bias"),
        scales=tuple(take("ssm_multipliers", (1.0,) * 5)),
    )
    attention, bias = rotary_attention(take), take("attention_bias", False)
    return mamba, replace(attention, scale=attention.scale * take("key_multiplier"), qkv_bias=bias, o_bias=bias)


def config(take: Take) -> ModelSpec:
    """x + mamba(norm(x)) + attention(norm(x)), then a gated feed-forward branch."""
    take.assume(DEFAULTS)
    take.ignore(*ssm.QUIET)
    take.require("mamba_use_mlp", True)
    norm = Norm(take("rms_norm_eps"))
    mamba, attention = mixers(take, norm)
    gate, down = take("mlp_multipliers", (1.0, 1.0))
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False), gate_scale=gate)
    block = Block(
        (
            Branch("mamba", mamba, norm, scale=take("ssm_out_multiplier"), in_scale=take("ssm_in_multiplier")),
            Branch(
                "attention",
                attention,
                scale=take("attention_out_multiplier"),
                in_scale=take("attention_in_multiplier"),
                beside=True,
            ),
            Branch("mlp", mlp, norm, scale=down),
        )
    )
    spec = decoder(take, (block,) * take("num_hidden_layers"), norm)
    return replace(spec, embed_scale=take("embedding_multiplier"), logit_scale=take("lm_head_multiplier"))


RULES = (
    *end_rules(norm="model.final_layernorm"),
    *attention_rules(f"{LAYER}.self_attn"),
    *ssm.mamba2_rules(f"{LAYER}.mamba"),
    *mlp_rules(f"{LAYER}.feed_forward"),
    *ssm.pre_rules(LAYER, "input_layernorm", "pre_ff_layernorm"),
)

FAMILY = Family(("falcon_h1",), config, RULES)
