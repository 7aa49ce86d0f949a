"""LFM2: short convolutions between two gates, and a layer of attention here and there."""

from collections.abc import Sequence
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    mlp_rules,
    norm_rules,
    rotary_attention,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, ShortConv

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


def mixers(take: Take, attention: Attention, kinds: Sequence[str]) -> list[Branch]:
    """The first branch of each layer, by its kind.

    Raises:
        ValueError: a kind that is neither, or a list of the wrong length.
    """
    norm, conv = attention.qk_norm, ShortConv(take("hidden_size"), take("conv_L_cache"), take("conv_bias", False))
    known = {"full_attention": Branch("attention", attention, pre=norm), "conv": Branch("conv", conv, pre=norm)}
    if len(kinds) != take("num_hidden_layers") or set(kinds) - set(known):
        raise ValueError(
            f"{take.where}: layer_types {list(kinds)}; expected conv or full_attention for each of "
            f"{take('num_hidden_layers')} layers"
        )
    return [known[kind] for kind in kinds]


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
    kinds = take("layer_types", None) or ["full_attention" if i in whole else "conv" for i in range(count)]
    first = mixers(take, replace(rotary_attention(take), qk_norm=norm), kinds)
    layers = (Block((branch, Branch("mlp", mlp, pre=norm))) for branch in first)
    return replace(decoder(take, layers, norm), tied=take.either("tie_embedding", "tie_word_embeddings", default=True))


CONV, OURS = f"{LAYER}.conv", "layers.{l}.conv"
IN = tuple(f"{OURS}.{part}" for part in "bcx")

MIXERS = (
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
        *MIXERS,
        *mlp_rules(f"{LAYER}.feed_forward", gate="w1", up="w3", down="w2"),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.ffn_norm"),
    ),
)
