"""GPT-NeoX (also Pythia): partly rotated heads, two parallel branches each with its norm."""

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
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "attention_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
}


def config(take: Take) -> ModelSpec:
    """Read a GPT-NeoX config; the branches may also follow one another."""
    take.assume(DEFAULTS)
    norm = Norm(take("layer_norm_eps"), "layer", bias=True)
    bias = take("attention_bias")
    attention = replace(
        grouped_attention(take, read_rope(take, head_dim(take), partial=0.25)), qkv_bias=bias, o_bias=bias
    )
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act"), gated=False, bias=True)
    layer = replace(pre_norm(attention, mlp, norm), parallel=take("use_parallel_residual"))
    return decoder(take, (layer,) * take("num_hidden_layers"), norm)


LAYER = "gpt_neox.layers.{l}"
FAMILY = Family(
    ("gpt_neox",),
    config,
    (
        Rule("head", "embed_out.weight", "v d -> d v"),
        *end_rules("gpt_neox.embed_in", "gpt_neox.final_layer_norm"),  # a few checkpoints call the head lm_head
        *grouped_qkv_rules(f"{LAYER}.attention.query_key_value"),
        *weight_and_bias("layers.{l}.attention.o", f"{LAYER}.attention.dense", HEADS_IN),
        *mlp_rules(f"{LAYER}.mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
        *pre_norm_rules(LAYER),
    ),
    prefix="gpt_neox.",
    buffers=(
        f"{LAYER}.attention.bias",
        f"{LAYER}.attention.masked_bias",
        f"{LAYER}.attention.rotary_emb.inv_freq",
    ),
)
