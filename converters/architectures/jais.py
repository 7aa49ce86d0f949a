"""Jais (13B, 30B and their family): GPT-2 with ALiBi and gated layers, embedding and logits scaled."""

from dataclasses import replace

from converters.architectures.common import (
    GPT_NAMES,
    SUMMARY,
    alibi_slopes,
    decoder,
    end_rules,
    grouped_attention,
    pre_norm,
    pre_norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.architectures.gpt2 import LAYER, fused_rules
from converters.take import Take
from forge_jax.spec import Alibi, Mlp, ModelSpec, Norm

DEFAULTS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 1024,
    "position_embedding_type": "learned",
    "tie_word_embeddings": True,
}
FIXED = {
    "activation_function": "swiglu",
    "position_embedding_type": "alibi",
    "alibi_scaling": None,
    "scale_attn_by_inverse_layer_idx": False,
}


def scales(take: Take) -> tuple[float, float, bool]:
    """What multiplies the embedding and the logits, and whether scores are divided by head_dim and not by its root."""
    out = take("mup_output_alpha", None)
    width = take("width_scale", 1.0) if out is None else out * take("mup_width_scale")
    embedding = take.either("mup_embeddings_scale", "embeddings_scale", default=1.0)
    return float(embedding), float(width), take.either("mup_scale_qk_dot_by_d", "scale_qk_dot_by_d", default=False)


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated by silu.

    Raises:
        ValueError: another activation or other positions.
    """
    rename(take, GPT_NAMES)
    take.assume(DEFAULTS)
    for key, value in FIXED.items():
        take.require(key, value)
    take.ignore("reorder_and_upcast_attn", "n_ctx", *SUMMARY)
    norm, op = Norm(take("layer_norm_epsilon"), "layer", bias=True), grouped_attention(take)
    embedding, width, by_size = scales(take)
    scale = 1.0 if not take("scale_attn_weights", True) else 1 / op.head_dim if by_size else op.scale
    op = replace(op, scale=scale, alibi=Alibi(alibi_slopes(op.heads)), qkv_bias=True, o_bias=True)
    block = pre_norm(op, Mlp(take("n_inner", 4 * take("hidden_size")), bias=True), norm)
    spec = decoder(take, (block,) * take("num_hidden_layers"), norm)
    return replace(spec, embed_scale=embedding, logit_scale=width)


FAMILY = Family(
    ("jais",),
    config,
    (
        *end_rules("transformer.wte", "transformer.ln_f"),
        *fused_rules(LAYER),
        *weight_and_bias("layers.{l}.mlp.gate", f"{LAYER}.mlp.c_fc2", ""),
        *pre_norm_rules(LAYER, "ln_1", "ln_2"),
    ),
    prefix="transformer.",
    buffers=(f"{LAYER}.attn.bias", f"{LAYER}.attn.masked_bias", "transformer.relative_pe.slopes"),
)
