"""MiniMax 01: linear and softmax attention, mixtures of experts; branches are added to their norm, with two weights."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    decoder,
    grouped_attention,
    head_dim,
    layer_types,
    norm_rules,
    rename,
)
from converters.architectures.experts import MOVED, TRAINING
from converters.architectures.family import Family
from converters.architectures.mixtral import DEFAULTS
from converters.architectures.mixtral import FAMILY as MIXTRAL
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Gate, LinearAttention, ModelSpec, Moe, Norm, Router


def linear(take: Take, layer: int) -> LinearAttention:
    """The linear attention of a layer: heads forget at rates in a geometric series, later layers more slowly."""
    heads, last = take("num_attention_heads"), take("num_hidden_layers") - 1
    ratio = 2.0 ** (-8 / heads)
    slower = 1 - layer / (last + 1e-5) + 1e-5
    return LinearAttention(
        heads, head_dim(take), ratio * slower, ratio, Norm(1e-6), Gate(), activation(take, "hidden_act")
    )


def attention(take: Take) -> Attention:
    """Softmax attention, its heads rotated whole or, in older configs, in part."""
    size = head_dim(take)
    rope = read_rope(take, size, partial=take("rotary_dim", size) / size)
    return replace(grouped_attention(take, rope), window=take("sliding_window", None))


def config(take: Take) -> ModelSpec:
    """Norms before each branch; what a branch is added to is the output of that norm, and both have a weight."""
    rename(take, {"num_local_experts": "num_experts"})
    take.assume(DEFAULTS)
    take.ignore(*TRAINING, "block_size")  # how many tokens are computed together
    norm, count, full = Norm(take("rms_norm_eps")), take("num_hidden_layers"), attention(take)
    router = Router(take("num_local_experts"), take("num_experts_per_tok"), renorm=1.0)
    moe = Moe(router, take("intermediate_size"), activation(take, "hidden_act"))
    kinds = layer_types(
        take, count, [("full_attention", "linear_attention")[i % 2] for i in range(count)], "linear_attention"
    )
    (kept, added), (kept_linear, added_linear), (kept_mlp, added_mlp) = (
        [float(take(f"{name}_{part}_factor", 1)) for part in ("alpha", "beta")]
        for name in ("full_attn", "linear_attn", "mlp")
    )
    last = Branch("moe", moe, norm, scale=added_mlp, keep=kept_mlp)

    def block(layer: int, kind: str) -> Block:
        if kind == "full_attention":
            first = Branch("attention", full, norm, scale=added, keep=kept)
        else:
            first = Branch("linear", linear(take, layer), norm, scale=added_linear, keep=kept_linear)
        return Block((first, last), residual="normed")

    return decoder(take, [block(i, kind) for i, kind in enumerate(kinds)], norm)


OURS, THEIRS = "layers.{l}.linear", f"{LAYER}.self_attn"

FAMILY = Family(
    ("minimax",),
    config,
    (
        *MIXTRAL.rules,
        Rule(tuple(f"{OURS}.{part}" for part in "qkv"), f"{THEIRS}.qkv_proj.weight", "(n q h) d -> q d n h"),
        Rule(f"{OURS}.norm.scale", f"{THEIRS}.norm.weight", "(n h) -> n h"),
        Rule(f"{OURS}.gate", f"{THEIRS}.output_gate.weight", "(n h) d -> d n h"),
        Rule(f"{OURS}.o", f"{THEIRS}.out_proj.weight", "d (n h) -> n h d"),
        *norm_rules(f"{OURS}.pre", f"{LAYER}.input_layernorm"),
    ),
    # they follow from the config
    buffers=tuple(f"{THEIRS}.{name}" for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay")),
    trained=MOVED,
)
