"""LFM2: short convolutions between two gates, and a layer of attention here and there."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    layer_types,
    mlp_rules,
    norm_rules,
    rotary_attention,
    weight_and_bias,
)
from converters.architectures.experts import Mixer, pre_norm
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Mlp, ModelSpec, Norm, ShortConv

DEFAULTS = {
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
    "tie_word_embeddings": True,
}


def mixers(take: Take, default: Sequence[str]) -> list[Mixer]:
    """What mixes the tokens of each layer, by its kind."""
    attention = replace(rotary_attention(take), qk_norm=Norm(take("norm_eps")))
    conv = ShortConv(take("hidden_size"), take("conv_L_cache"), take("conv_bias", False))
    kinds = layer_types(take, take("num_hidden_layers"), default, "conv")
    return [conv if kind == "conv" else attention for kind in kinds]


def assemble(take: Take, layers: Iterable[Block]) -> ModelSpec:
    """The decoder around the layers, which may be tied by either of two keys."""
    tied = take.either("tie_embedding", "tie_word_embeddings", default=True)
    return replace(decoder(take, layers, Norm(take("norm_eps"))), tied=tied)


def feed_forward(take: Take) -> Mlp:
    """The feed-forward layer, whose width is two thirds of what the config says, rounded up, if it is adjusted."""
    take.ignore("intermediate_size", "block_ffn_dim_multiplier", "block_multiple_of")
    width = take("block_ff_dim", None) or take("intermediate_size")
    if take("block_auto_adjust_ff_dim", False):
        width = int(take("block_ffn_dim_multiplier") * int(2 * width / 3))
        multiple = take("block_multiple_of")
        width = -(-width // multiple) * multiple
    return Mlp(width)


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated; attention has a rope and normalised queries and keys."""
    take.assume(DEFAULTS)
    norm, mlp, count = Norm(take("norm_eps")), feed_forward(take), take("num_hidden_layers")
    whole = take("full_attn_idxs", None)
    whole = range(count) if whole is None else whole
    kinds = ["full_attention" if i in whole else "conv" for i in range(count)]
    return assemble(take, (pre_norm(mixer, mlp, norm) for mixer in mixers(take, kinds)))


CONV, OURS = f"{LAYER}.conv", "layers.{l}.conv"
IN = tuple(f"{OURS}.{part}" for part in "bcx")

CONV_RULES = (
    *(
        rule
        for part in "qk"
        for rule in norm_rules(f"layers.{{l}}.attention.{part}_norm", f"{LAYER}.self_attn.{part}_layernorm")
    ),
    *attention_rules(f"{LAYER}.self_attn", o="out_proj"),
    Rule(IN, f"{CONV}.in_proj.weight", "(q c) d -> q d c"),
    Rule(tuple(f"{part}_bias" for part in IN), f"{CONV}.in_proj.bias", "(q c) -> q c"),
    *weight_and_bias(f"{OURS}.conv", f"{CONV}.conv", "c one k -> c one k"),
    *weight_and_bias(f"{OURS}.out", f"{CONV}.out_proj", "d c -> c d"),
    *norm_rules("layers.{l}.attention.pre", f"{LAYER}.operator_norm"),
    *norm_rules(f"{OURS}.pre", f"{LAYER}.operator_norm"),
)

FAMILY = Family(
    ("lfm2",),
    config,
    (
        *end_rules(norm="model.embedding_norm"),
        *CONV_RULES,
        *mlp_rules(f"{LAYER}.feed_forward", gate="w1", up="w3", down="w2"),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.ffn_norm"),
    ),
)
