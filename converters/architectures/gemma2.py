"""Gemma 2: norms before and after each branch, every other layer with a window, soft caps on scores and logits."""

from collections.abc import Callable
from dataclasses import replace

from converters.architectures.common import (
    SANDWICH,
    decoder,
    gated_mlp,
    layer_types,
    rotary_attention,
    sandwich,
    windows,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Attention, Block, Mlp, ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "tie_word_embeddings": True,
}


def assemble(
    take: Take, attentions: list[Attention], norm: Norm, block: Callable[[Attention, Mlp, Norm], Block] = sandwich
) -> ModelSpec:
    """The decoder around the attention of each layer; shared with Gemma 3 and VaultGemma."""
    take.require("use_bidirectional_attention", False)
    take.ignore("hidden_act")  # an older name; hidden_activation is the one that is read
    mlp = gated_mlp(take, "hidden_activation")
    spec = decoder(take, (block(attention, mlp, norm) for attention in attentions), norm)
    return replace(spec, embed_scale=spec.dim**0.5, logit_softcap=take("final_logit_softcapping", None))


def attentions(take: Take) -> list[Attention]:
    """The attention of each layer."""
    count, size = take("num_hidden_layers"), take("sliding_window", None)
    kinds = layer_types(take, count, [("sliding_attention", "full_attention")[i % 2] for i in range(count)])
    bias, cap = take("attention_bias", False), take("attn_logit_softcapping", None)
    scale = take("query_pre_attn_scalar") ** -0.5
    attention = replace(rotary_attention(take), scale=scale, softcap=cap, qkv_bias=bias, o_bias=bias)
    return [replace(attention, window=window) for window in windows(take, kinds, size)]


def config(take: Take) -> ModelSpec:
    """Sandwich norms, rotary, gated."""
    take.assume(DEFAULTS)
    return assemble(take, attentions(take), Norm(take("rms_norm_eps"), offset=1.0))


FAMILY = Family(("gemma2",), config, SANDWICH)
