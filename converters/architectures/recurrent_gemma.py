"""RecurrentGemma (Griffin): two layers of a linear recurrent unit, then one of attention within a window."""

from dataclasses import replace
from math import frexp, ldexp

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    end_rules,
    grouped_attention,
    head_dim,
    mlp_rules,
    norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.experts import Mixer, pre_norm
from converters.architectures.family import Family
from converters.architectures.ssm import ENDLESS
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Lru, Mlp, ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2560,
    "intermediate_size": 7680,
    "num_hidden_layers": 26,
    "num_attention_heads": 10,
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "logits_soft_cap": 30.0,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "block_types": ("recurrent", "recurrent", "attention"),
    "tie_word_embeddings": True,
}
# of how a new model is drawn, or what follows from other keys
IDLE = ("w_init_variance_scale", "final_w_init_variance_scale", "_block_types", "layers_block_type", "layer_types")


def rounded(x: float) -> float:
    """The nearest bfloat16, in which the scale of embeddings is kept whatever the dtype of the model."""
    mantissa, exponent = frexp(x)
    return ldexp(round(mantissa * 256) / 256, exponent)


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated, every feed-forward map with a bias; the pattern of layers is repeated."""
    rename(take, {"attention_window_size": "sliding_window"})
    take.assume(DEFAULTS)
    take.ignore(*IDLE)
    take.require("embeddings_scale_by_sqrt_dim", True)
    norm, dim, act = Norm(take("rms_norm_eps"), offset=1.0), take("hidden_size"), activation(take, "hidden_activation")
    attention = replace(
        grouped_attention(take, read_rope(take, head_dim(take), partial=0.5)),
        window=take("attention_window_size"),
        qkv_bias=take("attention_bias", False),
        o_bias=True,
    )
    lru = Lru(take("lru_width", None) or dim, take("num_attention_heads"), take("conv1d_width"), act)
    known: dict[str, Mixer] = {"recurrent": lru, "attention": attention}
    pattern, mlp = take("block_types"), Mlp(take("intermediate_size") // 2, act, bias=True)
    if odd := sorted(set(pattern) - set(known)):
        raise ValueError(f"{take.where}: block_types has {odd}; expected recurrent or attention")
    mixers = (known[pattern[i % len(pattern)]] for i in range(take("num_hidden_layers")))
    return ModelSpec(
        take("vocab_size"),
        dim,
        tuple(pre_norm(mixer, mlp, norm) for mixer in mixers),
        ENDLESS,
        norm,
        tied=take("tie_word_embeddings", False),
        embed_scale=rounded(dim**0.5),
        logit_softcap=take("logits_soft_cap"),
    )


OURS, BLOCK = "layers.{l}.lru", f"{LAYER}.temporal_block"

FAMILY = Family(
    ("recurrent_gemma",),
    config,
    (
        *end_rules(norm="model.final_norm"),
        *attention_rules(BLOCK),
        *weight_and_bias(f"{OURS}.x", f"{BLOCK}.linear_x", "(n h) d -> d n h", "(n h) -> n h"),
        *weight_and_bias(f"{OURS}.y", f"{BLOCK}.linear_y", "(n h) d -> d n h", "(n h) -> n h"),
        *weight_and_bias(f"{OURS}.out", f"{BLOCK}.linear_out", "d (n h) -> n h d"),
        *weight_and_bias(f"{OURS}.conv", f"{BLOCK}.conv_1d", "(n h) one k -> n h one k", "(n h) -> n h"),
        Rule(f"{OURS}.speed", f"{BLOCK}.rg_lru.recurrent_param", "(n h) -> n h"),
        Rule(f"{OURS}.forget", f"{BLOCK}.rg_lru.recurrent_gate_weight"),
        Rule(f"{OURS}.forget_bias", f"{BLOCK}.rg_lru.recurrent_gate_bias"),
        Rule(f"{OURS}.take", f"{BLOCK}.rg_lru.input_gate_weight"),
        Rule(f"{OURS}.take_bias", f"{BLOCK}.rg_lru.input_gate_bias"),
        *mlp_rules(f"{LAYER}.mlp_block"),
        *(
            rule
            for part in ("attention", "lru")
            for rule in norm_rules(f"layers.{{l}}.{part}.pre", f"{LAYER}.temporal_pre_norm")
        ),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.channel_pre_norm"),
    ),
)
