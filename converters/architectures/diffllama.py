"""DiffLlama: llama with differential attention."""

import math
from dataclasses import replace

from converters.architectures.common import COMMON, LAYER, decoder, gated_mlp, rotary_attention
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, Differential, ModelSpec, Norm

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated. What lambda starts from grows with the number of the layer.

    Raises:
        ValueError: heads that do not come in pairs, or a rope that turns otherwise as the sequence grows.
    """
    take.assume(DEFAULTS)
    take.ignore("lambda_std_dev")  # of the initial weights
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    heads = rotary_attention(take)
    if heads.kv_heads % 2:
        raise ValueError(f"{take.where}: {heads.kv_heads} key-value heads, expected an even number")
    if heads.rope is not None and heads.rope.varies:
        raise ValueError(f"{take.where}: the rope's frequencies depend on the length, which is not implemented")
    pairs = replace(heads, heads=heads.heads // 2, kv_heads=heads.kv_heads // 2, qkv_bias=bias, o_bias=bias)
    mlp = Branch("mlp", gated_mlp(take), pre=norm)

    def layer(i: int) -> Block:
        op = Differential(pairs, 0.8 - 0.6 * math.exp(-0.3 * i), replace(norm, scale=False))
        return Block((Branch("attention", op, pre=norm), mlp))

    return decoder(take, map(layer, range(take("num_hidden_layers"))), norm)


OURS, THEIRS = "layers.{l}.attention", f"{LAYER}.self_attn"
FAMILY = Family(
    ("diffllama",),
    config,
    (
        *(Rule(f"{OURS}.{part}", f"{THEIRS}.{part}_proj.weight", "(two n h) d -> d n two h") for part in "qkv"),
        *(Rule(f"{OURS}.{part}_bias", f"{THEIRS}.{part}_proj.bias", "(two n h) -> n two h") for part in "qkv"),
        Rule(f"{OURS}.o", f"{THEIRS}.o_proj.weight", "d (n two h) -> n two h d"),
        Rule(f"{OURS}.o_bias", f"{THEIRS}.o_proj.bias"),
        *(Rule(f"{OURS}.lambda_{part}", f"{THEIRS}.lambda_{part}") for part in ("q1", "k1", "q2", "k2")),
        *COMMON,
    ),
)
