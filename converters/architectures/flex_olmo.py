"""FlexOlmo: OLMo 2 whose feed-forward layer is a mixture of experts."""

from dataclasses import replace

from converters.architectures.common import LAYER, head_dim, norm_rules, rename
from converters.architectures.experts import OURS, TRAINING, expert_rules, router_rules
from converters.architectures.family import Family
from converters.architectures.olmo2 import RULES, assemble, attention
from converters.architectures.qwen2_moe import mixture
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "num_experts_per_tok": 5,
    "num_experts": 7,
    "rope_theta": 500000.0,
}


def config(take: Take) -> ModelSpec:
    """Post-norm inside the residual branch, rotary."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    op = replace(attention(take), rope=read_rope(take, head_dim(take)))
    return assemble(take, (op,) * take("num_hidden_layers"), mixture(take, "intermediate_size"))


FAMILY = Family(
    ("flex_olmo",),
    config,
    (
        *RULES,
        *router_rules(f"{LAYER}.mlp.gate"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        *norm_rules(f"{OURS}.post", f"{LAYER}.post_feedforward_layernorm"),
    ),
)
