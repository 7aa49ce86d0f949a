"""OLMo 2: norms after each branch instead of before, queries and keys normalised over all heads together."""

from collections.abc import Iterable
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    POST_NORM,
    decoder,
    gated_mlp,
    grouped_attention,
    head_dim,
    whole_norm_rules,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Moe, Norm

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}


def attention(take: Take) -> Attention:
    """Grouped attention without positions, queries and keys normalised."""
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    return replace(grouped_attention(take), qk_norm=norm, qk_norm_over="all", qkv_bias=bias, o_bias=bias)


def assemble(take: Take, attentions: Iterable[Attention], feed_forward: Mlp | Moe) -> ModelSpec:
    """The decoder around the attention of each layer; shared with OLMo 3 and FlexOlmo."""
    norm = Norm(take("rms_norm_eps"))
    second = Branch("moe" if isinstance(feed_forward, Moe) else "mlp", feed_forward, post=norm)
    return decoder(take, (Block((Branch("attention", op, post=norm), second)) for op in attentions), norm)


def config(take: Take) -> ModelSpec:
    """Post-norm inside the residual branch, rotary, gated."""
    take.assume(DEFAULTS)
    op = replace(attention(take), rope=read_rope(take, head_dim(take)))
    return assemble(take, (op,) * take("num_hidden_layers"), gated_mlp(take))


RULES = (
    *whole_norm_rules(f"{LAYER}.self_attn"),
    *POST_NORM,
)

FAMILY = Family(("olmo2",), config, RULES)
