"""Recurrent Gemma (Griffin): two layers of a gated linear recurrence, then one of attention within a window."""

from dataclasses import replace

import ml_dtypes
import numpy as np

from converters.architectures.common import (
    HEADS_IN,
    HEADS_OUT,
    LAYER,
    activation,
    attention_rules,
    end_rules,
    grouped_attention,
    head_dim,
    mlp_rules,
    norm_rules,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.architectures.ssm import ENDLESS
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, RgLru

DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "logits_soft_cap": 30.0,
    "rms_norm_eps": 1e-6,
    "block_types": ("recurrent", "recurrent", "attention"),
    "tie_word_embeddings": True,
}


def mixers(take: Take) -> list[Attention | RgLru]:
    """What mixes the tokens of each layer; the list of kinds is repeated.

    Raises:
        ValueError: another kind.
    """
    attention = replace(
        grouped_attention(take, read_rope(take, head_dim(take), partial=0.5)),
        window=take("attention_window_size"),
        qkv_bias=take("attention_bias", False),
        o_bias=True,
    )
    width = take("lru_width", None) or take("hidden_size")
    heads, act = take("num_attention_heads"), activation(take, "hidden_activation")
    kinds = {"recurrent": RgLru(heads, width, take("conv1d_width"), act), "attention": attention}
    names = take("block_types")
    if not names or not set(names) <= set(kinds):
        raise ValueError(f"{take.where}: block_types is {names}; expected recurrent or attention, at least one of them")
    return [kinds[names[i % len(names)]] for i in range(take("num_hidden_layers"))]


def config(take: Take) -> ModelSpec:
    """Pre-norm with norms stored as w - 1, gated feed-forward layers of half the width that is given."""
    take.assume(DEFAULTS)
    take.ignore("w_init_variance_scale", "final_w_init_variance_scale")  # of a new model
    take.require("embeddings_scale_by_sqrt_dim", True)
    norm, dim = Norm(take("rms_norm_eps"), offset=1.0), take("hidden_size")
    mlp = Mlp(take("intermediate_size") // 2, activation(take, "hidden_activation"), bias=True)
    blocks = (
        Block((Branch("attention" if isinstance(op, Attention) else "lru", op, norm), Branch("mlp", mlp, norm)))
        for op in mixers(take)
    )
    return ModelSpec(
        take("vocab_size"),
        dim,
        tuple(blocks),
        ENDLESS,
        norm,
        tied=take("tie_word_embeddings"),
        embed_scale=float(np.sqrt(dim).astype(ml_dtypes.bfloat16)),  # kept in bfloat16, whatever the model is in
        logit_softcap=take("logits_soft_cap"),
    )


THEIRS, OURS = f"{LAYER}.temporal_block", "layers.{l}.lru"

FAMILY = Family(
    ("recurrent_gemma",),
    config,
    (
        *end_rules(norm="model.final_norm"),
        *attention_rules(THEIRS),
        *weight_and_bias(f"{OURS}.x", f"{THEIRS}.linear_x", HEADS_OUT, "(n h) -> n h"),
        *weight_and_bias(f"{OURS}.z", f"{THEIRS}.linear_y", HEADS_OUT, "(n h) -> n h"),
        *weight_and_bias(f"{OURS}.conv", f"{THEIRS}.conv_1d", "(n h) one k -> n h one k", "(n h) -> n h"),
        Rule(f"{OURS}.enter", f"{THEIRS}.rg_lru.input_gate_weight"),
        Rule(f"{OURS}.enter_bias", f"{THEIRS}.rg_lru.input_gate_bias"),
        Rule(f"{OURS}.forget", f"{THEIRS}.rg_lru.recurrent_gate_weight"),
        Rule(f"{OURS}.forget_bias", f"{THEIRS}.rg_lru.recurrent_gate_bias"),
        Rule(f"{OURS}.rate", f"{THEIRS}.rg_lru.recurrent_param", "(n h) -> n h"),
        *weight_and_bias(f"{OURS}.out", f"{THEIRS}.linear_out", HEADS_IN),
        *mlp_rules(f"{LAYER}.mlp_block"),
        *norm_rules("layers.{l}.attention.pre", f"{LAYER}.temporal_pre_norm"),
        *norm_rules(f"{OURS}.pre", f"{LAYER}.temporal_pre_norm"),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.channel_pre_norm"),
    ),
)
