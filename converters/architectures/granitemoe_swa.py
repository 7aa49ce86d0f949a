"""Granite with mixtures of experts and windows: the feed-forward of granitemoe, the attention of granite_swa."""

from converters.architectures import granite_swa, granitemoe
from converters.architectures.common import LAYER
from converters.architectures.experts import fused_expert_rules, router_rules
from converters.architectures.family import Family
from converters.architectures.granite import DEFAULTS, assemble
from converters.take import Take
from forge_jax.spec import ModelSpec


def config(take: Take) -> ModelSpec:
    """Pre-norm, with Granite's four multipliers."""
    take.assume(DEFAULTS | {"sliding_window": 128})
    return assemble(take, granite_swa.attentions(take), granitemoe.mixture(take))


THEIRS = f"{LAYER}.block_sparse_moe"

FAMILY = Family(
    ("granitemoe_swa",),
    config,
    (
        *router_rules(f"{THEIRS}.router"),
        *fused_expert_rules(f"{THEIRS}.experts.gate_up_proj", f"{THEIRS}.experts.down_proj"),
        *granitemoe.FAMILY.rules,
        granite_swa.SINKS,
    ),
)
