"""MPT: ALiBi, no biases at all, layer norms with a scale alone."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    alibi_slopes,
    decoder,
    end_rules,
    grouped_attention,
    mlp_rules,
    pre_norm,
    pre_norm_rules,
    rename,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Alibi, Attention, Mlp, ModelSpec, Norm

NAMES = {
    "hidden_size": "d_model",
    "max_position_embeddings": "max_seq_len",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
}
DEFAULTS = {
    "expansion_ratio": 4,
    "layer_norm_epsilon": 1e-5,
    "max_seq_len": 2048,
    "norm_type": "low_precision_layernorm",
    "tie_word_embeddings": True,
}
# of the training program; learned positions are there only where there is no ALiBi
TRAINING = ("embedding_fraction", "init_config", "init_device", "learned_pos_emb", "tokenizer_name", "verbose")


def attention(take: Take) -> Attention:
    """Read `attn_config`."""
    op, inner = grouped_attention(take), take.sub("attn_config")
    for key, value in {"alibi": True, "attn_type": "multihead_attention"}.items():
        inner.require(key, value)
    for key in ("attn_uses_sequence_id", "prefix_lm", "qk_ln"):
        inner.require(key, False)
    inner.ignore("attn_impl")
    # the reference takes 8 whatever the config says; what it says is what the model was trained with
    slopes = alibi_slopes(op.heads, inner("alibi_bias_max", 8))
    scale = inner("softmax_scale", op.scale)
    op = replace(op, alibi=Alibi(slopes), scale=scale, clip=inner("clip_qkv", None) or None)
    inner.done()
    return op


def config(take: Take) -> ModelSpec:
    """Pre-norm, not gated."""
    take.assume(DEFAULTS)
    rename(take, NAMES)
    take.ignore(*TRAINING, "emb_pdrop")
    take.require("no_bias", True)
    take.require("logit_scale", None)
    if take("norm_type") not in ("low_precision_layernorm", "layernorm"):
        raise ValueError(f"{take.where}: norm_type = {take('norm_type')!r} is not implemented; only layer norms are")
    norm = Norm(take("layer_norm_epsilon"), "layer")
    mlp = Mlp(take("expansion_ratio") * take("hidden_size"), "gelu", gated=False)
    return decoder(take, (pre_norm(attention(take), mlp, norm),) * take("num_hidden_layers"), norm)


LAYER = "transformer.blocks.{l}"
PARTS = tuple(f"layers.{{l}}.attention.{part}" for part in "qkv")
FAMILY = Family(
    ("mpt",),
    config,
    (
        *end_rules("transformer.wte", "transformer.norm_f"),
        Rule(PARTS, f"{LAYER}.attn.Wqkv.weight", "(q n h) d -> q d n h"),
        Rule("layers.{l}.attention.o", f"{LAYER}.attn.out_proj.weight", HEADS_IN),
        *mlp_rules(f"{LAYER}.ffn"),
        *pre_norm_rules(LAYER, "norm_1", "norm_2"),
    ),
    prefix="transformer.",
)
