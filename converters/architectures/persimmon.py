"""Persimmon: half of each head rotated, norms over a head, biases everywhere, relu squared."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    LAYER,
    activation,
    decoder,
    end_rules,
    grouped_attention,
    grouped_qkv_rules,
    head_dim,
    mlp_rules,
    norm_rules,
    pre_norm,
    pre_norm_rules,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "relu2",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 16384,
    "qk_layernorm": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, layer norms."""
    take.assume(DEFAULTS)
    norm = Norm(take("layer_norm_eps"), "layer", bias=True)
    attention = replace(
        grouped_attention(take, read_rope(take, head_dim(take), partial=0.5)),
        qk_norm=norm if take("qk_layernorm") else None,
        qkv_bias=True,
        o_bias=True,
    )
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False, bias=True)
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(
    ("persimmon",),
    config,
    (
        *end_rules(norm="model.final_layernorm"),
        *grouped_qkv_rules(f"{LAYER}.self_attn.query_key_value"),
        *weight_and_bias("layers.{l}.attention.o", f"{LAYER}.self_attn.dense", HEADS_IN),
        *norm_rules("layers.{l}.attention.q_norm", f"{LAYER}.self_attn.q_layernorm"),
        *norm_rules("layers.{l}.attention.k_norm", f"{LAYER}.self_attn.k_layernorm"),
        *mlp_rules(f"{LAYER}.mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
        *pre_norm_rules(LAYER),
    ),
    buffers=(f"{LAYER}.self_attn.rotary_emb.inv_freq",),
)
