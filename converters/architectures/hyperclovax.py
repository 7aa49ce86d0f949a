"""HyperCLOVA X SEED: Granite's multipliers, with a norm after each branch as well where the config asks for it."""

from dataclasses import replace

from converters.architectures.common import COMMON, LAYER, decoder, gated_mlp, norm_rules, rotary_attention
from converters.architectures.family import Family
from converters.architectures.granite import DEFAULTS as GRANITE
from converters.take import Take
from forge_jax.spec import Block, Branch, ModelSpec, Norm, Op

DEFAULTS = {key: value for key, value in GRANITE.items() if key != "attention_multiplier"} | {"use_post_norm": True}


def config(take: Take) -> ModelSpec:
    """Norms around each branch, rotary, gated. Unlike in Granite, logits are multiplied by their setting."""
    take.assume(DEFAULTS)
    norm, bias, scale = Norm(take("rms_norm_eps")), take("attention_bias", False), take("residual_multiplier")
    post = norm if take("use_post_norm") else None
    attention = replace(rotary_attention(take), qkv_bias=bias, o_bias=bias)
    attention = replace(attention, scale=take("attention_multiplier", attention.scale))
    mlp = replace(gated_mlp(take), bias=take("mlp_bias", False))

    def branch(name: str, op: Op) -> Branch:
        return Branch(name, op, pre=norm, post=post, scale=scale)

    layers = (Block((branch("attention", attention), branch("mlp", mlp))),) * take("num_hidden_layers")
    spec = decoder(take, layers, norm)
    return replace(spec, embed_scale=take("embedding_multiplier"), logit_scale=take("logits_scaling"))


FAMILY = Family(
    ("hyperclovax",),
    config,
    (
        *COMMON,
        *norm_rules("layers.{l}.attention.post", f"{LAYER}.post_norm1"),
        *norm_rules("layers.{l}.mlp.post", f"{LAYER}.post_norm2"),
    ),
)
