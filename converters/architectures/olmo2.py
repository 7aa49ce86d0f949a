"""OLMo 2: norms after each branch instead of before, queries and keys normalised over all heads together."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    mlp_rules,
    norm_rules,
    rotary_attention,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, ModelSpec, Norm

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}


def config(take: Take) -> ModelSpec:
    """Post-norm inside the residual branch, rotary, gated."""
    take.assume(DEFAULTS)
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    attention = replace(rotary_attention(take), qk_norm=norm, qk_norm_over="all", qkv_bias=bias, o_bias=bias)
    block = Block((Branch("attention", attention, post=norm), Branch("mlp", gated_mlp(take), post=norm)))
    return decoder(take, (block,) * take("num_hidden_layers"), norm)


RULES = (
    *end_rules(),
    *(
        Rule(f"layers.{{l}}.attention.{name}.scale", f"{LAYER}.self_attn.{name}.weight", "(n h) -> n h")
        for name in ("q_norm", "k_norm")
    ),
    *attention_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *norm_rules("layers.{l}.attention.post", f"{LAYER}.post_attention_layernorm"),
    *norm_rules("layers.{l}.mlp.post", f"{LAYER}.post_feedforward_layernorm"),
)

FAMILY = Family(("olmo2",), config, RULES)
