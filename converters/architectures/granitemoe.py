"""Granite 3, mixtures of experts, with and without a shared expert: Granite's multipliers, experts stored as one."""

from converters.architectures.common import LAYER, TRANSPOSED, activation, attention_rules, end_rules, rename
from converters.architectures.experts import (
    AS_EXPERTS,
    OURS,
    TRAINING,
    fused_expert_rules,
    pre_norm_rules,
    router_rules,
)
from converters.architectures.family import Family
from converters.architectures.granite import DEFAULTS, assemble, attention
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Router


def mixture(take: Take) -> Moe:
    """The router chooses by its logits, and the chosen share a softmax."""
    take.assume({"num_local_experts": 8, "num_experts_per_tok": 2})
    take.ignore(*TRAINING)
    router = Router(take("num_local_experts"), take("num_experts_per_tok"), "chosen_softmax")
    act, width = activation(take, "hidden_act"), take("shared_intermediate_size", 0)
    return Moe(router, take("intermediate_size"), act, shared=Mlp(width, act) if width else None)


def config(take: Take) -> ModelSpec:
    """Granite, with a mixture in the place of the feed-forward layer."""
    rename(take, {"num_local_experts": "num_experts"})
    take.assume(DEFAULTS)
    return assemble(take, (attention(take),) * take("num_hidden_layers"), mixture(take))


EXPERTS = f"{LAYER}.block_sparse_moe"
SHARED = f"{LAYER}.shared_mlp"

FAMILY = Family(
    ("granitemoe", "granitemoeshared"),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *router_rules(f"{EXPERTS}.router.layer"),
        *fused_expert_rules(f"{EXPERTS}.input_linear.weight", f"{EXPERTS}.output_linear.weight"),
        Rule((f"{OURS}.shared.gate", f"{OURS}.shared.up"), f"{SHARED}.input_linear.weight", "(q f) d -> q d f"),
        Rule(f"{OURS}.shared.down", f"{SHARED}.output_linear.weight", TRANSPOSED),
        *pre_norm_rules(LAYER),
    ),
    trained=AS_EXPERTS,
)
