"""K-EXAONE: a rope only where there is a window, queries and keys normalised, experts in groups behind dense layers."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    end_rules,
    mlp_rules,
    rotary_attention,
    windows,
)
from converters.architectures.exaone4 import kinds
from converters.architectures.experts import grouped_moe, grouped_moe_rules, mixed_layers, pre_norm_rules
from converters.architectures.family import Family
from converters.architectures.glm4_moe import assemble, beyond
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm."""
    take.assume(DEFAULTS)
    moe = grouped_moe(take, "num_experts", "num_shared_experts")
    size, count = take("sliding_window", None), take("num_hidden_layers")
    turned = replace(rotary_attention(take), qk_norm=Norm(take("rms_norm_eps")))
    still = turned if size is None else replace(turned, rope=None)
    sizes = windows(take, kinds(take, count, size), size)
    attentions = (still if window is None else replace(turned, window=window) for window in sizes)
    return assemble(take, attentions, mixed_layers(take, beyond(take)), moe)


FAMILY = Family(
    ("exaone_moe",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *mlp_rules(f"{LAYER}.mlp"),
        *grouped_moe_rules(f"{LAYER}.mlp", bias="e_score_correction_bias"),
        *pre_norm_rules(LAYER),
    ),
    drafts=("mtp.",),
)
