"""XGLM: fixed waves for positions, norms before each branch, biases everywhere."""

from dataclasses import replace

from converters.architectures.common import (
    TRANSPOSED,
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    pre_norm,
    pre_norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm, Sinusoids

NAMES = {"hidden_size": "d_model", "num_attention_heads": "attention_heads", "num_hidden_layers": "num_layers"}
DEFAULTS = {
    "activation_function": "gelu",
    "max_position_embeddings": 2048,
    "scale_embedding": True,
    "tie_word_embeddings": True,
}
OFFSET = 2


def config(take: Take) -> ModelSpec:
    """Read an XGLM config. The eps of its norms is not in it.

    Raises:
        ValueError: the padding id is the number of a row of the table of positions, which it would blank out.
    """
    rename(take, NAMES)
    take.assume(DEFAULTS)
    take.require("add_cross_attention", False)
    take.ignore("activation_dropout")
    norm = Norm(1e-5, "layer", bias=True)
    op = replace(grouped_attention(take), qkv_bias=True, o_bias=True)
    mlp = Mlp(take("ffn_dim"), activation(take, "activation_function"), gated=False, bias=True)
    spec = decoder(take, (pre_norm(op, mlp, norm),) * take("num_hidden_layers"), norm)
    if OFFSET <= (take.config.get("pad_token_id") or 0) < spec.max_seq_len + OFFSET:
        raise ValueError(f"{take.where}: pad_token_id = {take.config['pad_token_id']} takes the place of a position")
    # the first feature turns by 1 and the last of each half by 1 / 10000, both included
    half = spec.dim // 2
    positions = Sinusoids(10000.0 ** (half / (half - 1)), OFFSET)
    return replace(spec, positions=positions, embed_scale=spec.dim**0.5 if take("scale_embedding") else 1.0)


LAYER = "model.layers.{l}"
FAMILY = Family(
    ("xglm",),
    config,
    (
        *end_rules(norm="model.layer_norm"),
        *attention_rules(f"{LAYER}.self_attn", o="out_proj"),
        *weight_and_bias("layers.{l}.mlp.up", f"{LAYER}.fc1", TRANSPOSED),
        *weight_and_bias("layers.{l}.mlp.down", f"{LAYER}.fc2", TRANSPOSED),
        *pre_norm_rules(LAYER, "self_attn_layer_norm", "final_layer_norm"),
    ),
    buffers=("model.embed_positions.weights",),
)
