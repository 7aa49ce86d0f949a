"""Falcon: grouped fused projections, rotary positions or ALiBi, branches one after another or parallel."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    activation,
    alibi_slopes,
    decoder,
    end_rules,
    grouped_attention,
    grouped_qkv_rules,
    mlp_rules,
    norm_rules,
    parallel,
    pre_norm,
    pre_norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.rope import DIALECT, read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Alibi, Attention, Block, Mlp, ModelSpec, Norm

DEFAULTS = {
    "activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "multi_query": True,
    "parallel_attn": True,
    "tie_word_embeddings": True,
}


def key_value_heads(take: Take, heads: int, new: bool) -> int:
    """The number of key-value heads; only the newer layout is free to choose it."""
    if new:
        take.ignore("multi_query")
        return take("num_kv_heads", heads)
    if take("multi_query"):
        take.ignore("num_kv_heads")
        return 1
    take.require("num_kv_heads", heads)
    return heads


def positions(take: Take, op: Attention) -> Attention:
    """The attention with its positions: ALiBi, trained in bfloat16 and divided like the scores, or rotary."""
    if take("alibi", False):
        take.ignore(*DIALECT)
        return replace(op, alibi=Alibi(alibi_slopes(op.heads), scale=op.scale, rounded=True))
    return replace(op, rope=read_rope(take, op.head_dim))


def wiring(take: Take, op: Attention, mlp: Mlp, norm: Norm, new: bool) -> Block:
    """One layer: sequential, parallel behind one norm, or (only in the newer layout) behind a norm for each branch."""
    if new:
        take.require("parallel_attn", True)
    elif not take("parallel_attn"):
        take.ignore("num_ln_in_parallel_attn")
        return pre_norm(op, mlp, norm)
    norms = take("num_ln_in_parallel_attn", 2 if new else 1)
    if norms not in (1, 2) or norms > 1 + new:
        raise ValueError(f"{take.where}: num_ln_in_parallel_attn = {norms}; expected 1, or 2 in the newer layout")
    return parallel(op, mlp, norm) if norms == 1 else replace(pre_norm(op, mlp, norm), parallel=True)


def config(take: Take) -> ModelSpec:
    """Read a Falcon config of either layout (new_decoder_architecture)."""
    rename(take, {"hidden_size": "n_embed"})
    take.assume(DEFAULTS)
    take.require("apply_residual_connection_post_layernorm", False)
    take.ignore("ff_factor")  # what ffn_hidden_size follows from
    new, bias = take("new_decoder_architecture", False), take("bias", False)
    norm = Norm(take("layer_norm_epsilon"), "layer", bias=True)
    op = grouped_attention(take)
    op = positions(take, replace(op, kv_heads=key_value_heads(take, op.heads, new), qkv_bias=bias, o_bias=bias))
    inner = take("ffn_hidden_size", 4 * take("hidden_size"))
    mlp = Mlp(inner, activation(take, "activation"), gated=False, bias=bias)
    return decoder(take, (wiring(take, op, mlp, norm, new),) * take("num_hidden_layers"), norm)


LAYER = "transformer.h.{l}"


def sequential_norms(spec: ModelSpec) -> tuple[Rule, ...]:
    """One branch after another has other names for the norms than two branches side by side."""
    return () if spec.layers[0].parallel else pre_norm_rules(LAYER)


FAMILY = Family(
    ("falcon",),
    config,
    (
        *end_rules("transformer.word_embeddings", "transformer.ln_f"),
        *grouped_qkv_rules(f"{LAYER}.self_attention.query_key_value"),
        *weight_and_bias("layers.{l}.attention.o", f"{LAYER}.self_attention.dense", HEADS_IN),
        *mlp_rules(f"{LAYER}.mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
        *norm_rules("layers.{l}.pre", f"{LAYER}.input_layernorm"),
        *pre_norm_rules(LAYER, "ln_attn", "ln_mlp"),
        *pre_norm_rules(LAYER),
    ),
    prefix="transformer.",
    buffers=(f"{LAYER}.self_attention.maybe_rotary.inv_freq",),
    first=sequential_norms,
)
