"""Sarvam-30B: GLM 4.5 whose heads are rotated whole, with names of its own."""

from converters.architectures.common import HEADS_IN, LAYER, norm_rules, rename, stacked_qkv
from converters.architectures.experts import OURS
from converters.architectures.family import Family
from converters.architectures.glm4_moe import DEFAULTS as GLM
from converters.architectures.glm4_moe import RULES, rotated
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = GLM | {
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "moe_intermediate_size": 1024,
    "num_experts_per_tok": 6,
    "routed_scaling_factor": 2.5,
    "rope_theta": 8000000.0,
    "use_qk_norm": True,
}


def config(take: Take) -> ModelSpec:
    """Whole heads are rotated."""
    rename(take, {"n_routed_experts": "num_local_experts", "n_shared_experts": "num_shared_experts"})
    rename(take, {"n_routed_experts": "num_experts", "attention_bias": "use_qkv_bias"})
    take.assume(DEFAULTS)
    return rotated(take, 1.0)


ATTENTION, THEIRS = "layers.{l}.attention", f"{LAYER}.attention"
PARTS = ("n h", "k h", "k h")

PUBLISHED = (
    Rule("embed", "model.word_embeddings.weight"),
    stacked_qkv(f"{THEIRS}.query_key_value"),
    Rule(
        tuple(f"{ATTENTION}.{part}_bias" for part in "qkv"),
        f"{THEIRS}.query_key_value.bias",
        tuple(f"({part}) -> {part}" for part in PARTS),
        cat="c",
    ),
    Rule(f"{ATTENTION}.o", f"{THEIRS}.dense.weight", HEADS_IN),
    *norm_rules(f"{ATTENTION}.q_norm", f"{THEIRS}.query_layernorm"),
    *norm_rules(f"{ATTENTION}.k_norm", f"{THEIRS}.key_layernorm"),
    Rule(f"{OURS}.choice_bias", f"{LAYER}.mlp.gate.expert_bias"),
)

FAMILY = Family(("sarvam_moe",), config, (*PUBLISHED, *RULES), drafts=("model.layers.{l}.",))
