"""LFM2, mixtures of experts: behind a few dense layers, experts chosen by a biased sigmoid."""

from converters.architectures.common import LAYER, end_rules, mlp_rules, norm_rules
from converters.architectures.experts import OURS, TRAINING, expert_rules, pre_norm, router_rules
from converters.architectures.family import Family
from converters.architectures.lfm2 import CONV_RULES, assemble, mixers
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "conv_L_cache": 3,
    "num_dense_layers": 2,
    "num_experts_per_tok": 4,
    "num_experts": 32,
    "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated; the config must list the kinds of its layers."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    router = Router(
        take("num_experts"),
        take("num_experts_per_tok"),
        "sigmoid",
        choice_bias=take("use_expert_bias", False),
        renorm=1.0 if take("norm_topk_prob", False) else None,
        renorm_eps=1e-6,
        scale=take("routed_scaling_factor"),
    )
    norm, mlp, moe = Norm(take("norm_eps")), Mlp(take("intermediate_size")), Moe(router, take("moe_intermediate_size"))
    dense = take("num_dense_layers")
    first = enumerate(mixers(take, take("layer_types")))
    return assemble(take, (pre_norm(mixer, mlp if i < dense else moe, norm) for i, mixer in first))


THEIRS, NAMES = f"{LAYER}.feed_forward", {"gate": "w1", "up": "w3", "down": "w2"}

FAMILY = Family(
    ("lfm2_moe",),
    config,
    (
        *end_rules(norm="model.embedding_norm"),
        *CONV_RULES,
        *mlp_rules(THEIRS, **NAMES),
        *router_rules(f"{THEIRS}.gate"),
        Rule(f"{OURS}.choice_bias", f"{THEIRS}.expert_bias"),
        *expert_rules(f"{THEIRS}.experts", **NAMES),
        *(rule for part in ("mlp", "moe") for rule in norm_rules(f"layers.{{l}}.{part}.pre", f"{LAYER}.ffn_norm")),
    ),
)
