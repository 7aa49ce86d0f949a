"""Doge, dense: queries see the keys that matter most, and branches add to a stream that is weighed by feature."""

from dataclasses import replace

from converters.architectures.common import COMMON, LAYER, decoder, gated_mlp, rotary_attention
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, ModelSpec, Norm, Selective

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "keep_window_size": 2048}
# of the mixture's experts
MIXTURE = ("num_experts", "num_experts_per_tok", "norm_topk_prob", "output_router_logits", "router_aux_loss_coef")


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated.

    Raises:
        ValueError: a mixture of experts, whose router in the reference confuses the tokens of a batch; or a rope that
            turns otherwise as the sequence grows.
    """
    take.assume(DEFAULTS)
    take.require("is_moe", False)
    take.ignore(*MIXTURE)
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    op = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias, window=take("sliding_window", None))
    if op.rope is not None and op.rope.varies:
        raise ValueError(f"{take.where}: the rope's frequencies depend on the length, which is not implemented")
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))
    branches = (
        Branch("attention", Selective(op, take("keep_window_size"), bias), pre=norm, keep="learned"),
        Branch("mlp", mlp, pre=norm, keep="learned"),
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
        Rule("layers.{l}.mlp.keep", f"{LAYER}.post_attention_residual"),
        *COMMON,
    ),
)
