"""Bamba: Mamba 2 with some layers of attention, half of each head rotated."""

from dataclasses import replace

from converters.architectures import ssm
from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    grouped_attention,
    head_dim,
    mlp_rules,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = ssm.DEFAULTS | {
    "vocab_size": 128000,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm; every layer has a gated feed-forward branch."""
    take.assume(DEFAULTS)
    take.ignore(*ssm.QUIET, "z_loss_coefficient", "layer_types", "layers_block_type")  # the indices say it
    take.require("partial_rotary_factor", 0.5)  # another may stand among the rope's own settings
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    rope = read_rope(take, head_dim(take), partial=0.5)
    attention = replace(grouped_attention(take, rope), qkv_bias=bias, o_bias=bias)
    mlp, mamba = replace(gated_mlp(take), bias=take("mlp_bias", False)), ssm.read_mamba2(take, norm)
    attends = take("attn_layer_indices", ())
    layers = (ssm.layer(norm, attention if i in attends else mamba, mlp) for i in range(take("num_hidden_layers")))
    return decoder(take, layers, norm)


RULES = (
    *end_rules(norm="model.final_layernorm"),
    *attention_rules(f"{LAYER}.self_attn"),
    *ssm.mamba2_rules(f"{LAYER}.mamba"),
    *mlp_rules(f"{LAYER}.feed_forward"),
    *ssm.pre_rules(LAYER, "input_layernorm", "pre_ff_layernorm"),
)

FAMILY = Family(("bamba",), config, RULES)
