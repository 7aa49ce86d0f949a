"""GPT-NeoX Japanese: no biases but one, on the attention of the last layer."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    activation,
    decoder,
    end_rules,
    grouped_attention,
    grouped_qkv_rules,
    head_dim,
    mlp_rules,
    pre_norm,
    pre_norm_rules,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "gelu",
    "intermediate_multiple_size": 4,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, layer norms."""
    take.assume(DEFAULTS)
    norm, count = Norm(take("layer_norm_eps"), "layer", bias=True), take("num_hidden_layers")
    attention = grouped_attention(take, read_rope(take, head_dim(take)))
    inner = int(take("hidden_size") * take("intermediate_multiple_size"))
    mlp = Mlp(inner, activation(take, "hidden_act"), gated=False)
    layers = (pre_norm(replace(attention, o_bias=i == count - 1), mlp, norm) for i in range(count))
    return decoder(take, layers, norm)


LAYER = "gpt_neox_japanese.layers.{l}"
FAMILY = Family(
    ("gpt_neox_japanese",),
    config,
    (
        *end_rules("gpt_neox_japanese.embed_in", "gpt_neox_japanese.final_layer_norm", "embed_out"),
        *grouped_qkv_rules(f"{LAYER}.attention.query_key_value"),
        Rule("layers.{l}.attention.o", f"{LAYER}.attention.dense.weight", HEADS_IN),
        Rule("layers.{l}.attention.o_bias", f"{LAYER}.attention.dense_bias"),
        *mlp_rules(f"{LAYER}.mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
        *pre_norm_rules(LAYER),
    ),
    prefix="gpt_neox_japanese.",
    buffers=(f"{LAYER}.attention.rotary_emb.inv_freq", f"{LAYER}.attention.bias", f"{LAYER}.attention.masked_bias"),
)
