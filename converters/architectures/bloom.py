"""BLOOM: ALiBi, a norm on the embedding, a feed-forward layer of four times the width."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    alibi_slopes,
    decoder,
    end_rules,
    grouped_attention,
    grouped_qkv_rules,
    mlp_rules,
    norm_rules,
    pre_norm,
    pre_norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Alibi, Mlp, ModelSpec, Norm

NAMES = {
    "hidden_size": "n_embed",
    "max_position_embeddings": "seq_length",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
DEFAULTS = {"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048, "tie_word_embeddings": True}
# traces of the training program
TRAINING = (
    "attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi skip_bias_add skip_bias_add_qkv"
).split()


def config(take: Take) -> ModelSpec:
    """Read a BLOOM config; a branch may add to its norm's output instead of the stream."""
    rename(take, NAMES)
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    if take("pretraining_tp", 1) > 1:
        take.require("slow_but_exact", False)  # the reference then forgets the biases of both output projections
    take.ignore("slow_but_exact")
    norm = Norm(take("layer_norm_epsilon"), "layer", bias=True)
    op = grouped_attention(take)
    op = replace(op, alibi=Alibi(alibi_slopes(op.heads)), qkv_bias=True, o_bias=True)
    mlp = Mlp(4 * take("hidden_size"), "gelu_tanh", gated=False, bias=True)
    normed = take("apply_residual_connection_post_layernorm", False)
    layer = replace(pre_norm(op, mlp, norm), residual="normed" if normed else "stream")
    return replace(decoder(take, (layer,) * take("num_hidden_layers"), norm), embed_norm=norm)


LAYER = "transformer.h.{l}"
FAMILY = Family(
    ("bloom",),
    config,
    (
        *end_rules("transformer.word_embeddings", "transformer.ln_f"),
        *norm_rules("embed_norm", "transformer.word_embeddings_layernorm"),
        *grouped_qkv_rules(f"{LAYER}.self_attention.query_key_value"),
        *weight_and_bias("layers.{l}.attention.o", f"{LAYER}.self_attention.dense", HEADS_IN),
        *mlp_rules(f"{LAYER}.mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
        *pre_norm_rules(LAYER),
    ),
    prefix="transformer.",
)
