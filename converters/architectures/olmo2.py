"""OLMo 2: norms after each branch instead of before, queries and keys normalised over all heads together."""

from collections.abc import Iterable
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    grouped_attention,
    head_dim,
    mlp_rules,
    norm_rules,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, ModelSpec, Norm

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}


def attention(take: Take) -> Attention:
    """Grouped attention without positions, queries and keys normalised."""
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    return replace(grouped_attention(take), qk_norm=norm, qk_norm_over="all", qkv_bias=bias, o_bias=bias)


def assemble(take: Take, attentions: Iterable[Attention]) -> ModelSpec:
    """The decoder around the attention of each layer; shared with OLMo 3."""
    norm = Norm(take("rms_norm_eps"))
    mlp = Branch("mlp", gated_mlp(take), post=norm)
    return decoder(take, (Block((Branch("attention", op, post=norm), mlp)) for op in attentions), norm)


def config(take: Take) -> ModelSpec:
    """Post-norm inside the residual branch, rotary, gated."""
    take.assume(DEFAULTS)
    op = replace(attention(take), rope=read_rope(take, head_dim(take)))
    return assemble(take, (op,) * take("num_hidden_layers"))


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
