"""Doge: queries see the keys that matter most, and branches add to a stream that is weighed by feature.

The feed-forward layer may have experts of one feature beside it, chosen by pairs of keys.
"""

from dataclasses import replace
from math import isqrt

from converters.architectures.common import COMMON, LAYER, TRANSPOSED, activation, decoder, gated_mlp, rotary_attention
from converters.architectures.experts import OURS as MOE
from converters.architectures.experts import TRAINING, pre_norm_rules, shared_rules
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, Mlp, ModelSpec, Moe, Norm, Router, Selective

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "keep_window_size": 2048,
    "num_experts": 16384,
    "num_experts_per_tok": 64,
}


def experts(take: Take, shared: Mlp) -> Moe:
    """Experts of a single feature beside the feed-forward layer.

    In the reference a full forward mixes the keys' scores of different tokens; a token alone has its own, as here.

    Raises:
        ValueError: the number of experts is no square.
    """
    count = take("num_experts")
    if isqrt(count) ** 2 != count:
        raise ValueError(f"{take.where}: num_experts = {count}; expected a square, for pairs of keys")
    router = Router(count, take("num_experts_per_tok"), "chosen_softmax", product=True)
    return Moe(router, 1, activation(take, "hidden_act"), gated=False, shared=shared)


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated.

    Raises:
        ValueError: experts that are no pairs of keys; or a rope that turns otherwise as the sequence grows.
    """
    take.assume(DEFAULTS)
    take.ignore("num_experts", "num_experts_per_tok", *TRAINING)  # read where there are experts
    take.ignore("norm_topk_prob")  # weights sum to one anyway
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    op = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias, window=take("sliding_window", None))
    if op.rope is not None and op.rope.varies:
        raise ValueError(f"{take.where}: the rope's frequencies depend on the length, which is not implemented")
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    branches = (
        Branch("attention", Selective(op, take("keep_window_size"), bias), pre=norm, keep="learned"),
        Branch("moe", experts(take, mlp), pre=norm, keep="learned")
        if take("is_moe", False)
        else Branch("mlp", mlp, pre=norm, keep="learned"),
    )
    return decoder(take, (Block(branches),) * take("num_hidden_layers"), norm)


OURS, THEIRS = "layers.{l}.attention", f"{LAYER}.self_attn"
FAMILY = Family(
    ("doge",),
    config,
    (
        Rule(f"{OURS}.rate", f"{THEIRS}.A"),
        Rule(f"{OURS}.merit", f"{THEIRS}.dt_proj.weight", "j (k h) -> k h j"),
        Rule(f"{OURS}.merit_bias", f"{THEIRS}.dt_proj.bias"),
        Rule(f"{OURS}.keep", f"{LAYER}.input_residual"),
        *(Rule(f"layers.{{l}}.{name}.keep", f"{LAYER}.post_attention_residual") for name in ("mlp", "moe")),
        Rule(f"{MOE}.router", f"{LAYER}.mlp.router_gate.weight", TRANSPOSED),
        Rule(f"{MOE}.up", f"{LAYER}.mlp.down_embed.weight", "(e 1) d -> e d 1"),
        Rule(f"{MOE}.down", f"{LAYER}.mlp.up_embed.weight", "(e 1) d -> e 1 d"),
        *shared_rules(f"{LAYER}.mlp"),
        *pre_norm_rules(LAYER),
        *COMMON,
    ),
)
