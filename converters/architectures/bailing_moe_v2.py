"""Ling 2 and Ring 2: GLM 4.5 with names of its own and queries and keys normalised, q, k and v in one matrix."""

from converters.architectures.common import rename
from converters.architectures.family import Family
from converters.architectures.glm4_moe import DEFAULTS as GLM
from converters.architectures.glm4_moe import RULES, rotated
from converters.architectures.sarvam_moe import PUBLISHED
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = GLM | {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "moe_intermediate_size": 512,
    "n_routed_experts": 256,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
}
# what every release has
FIXED = {"use_bias": False, "use_rmsnorm": True, "moe_router_enable_expert_bias": True, "use_sliding_window": False}
IDLE = ("output_dropout", "router_dtype", "max_window_layers", "mtp_loss_scaling_factor", "rotary_dim")


def config(take: Take) -> ModelSpec:
    """Half of each head is rotated, unless the config says otherwise; one or more shared experts as one.

    Raises:
        ValueError: the shared experts' width is not that of so many experts.
    """
    rename(take, {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"})
    rename(take, {"attention_bias": "use_qkv_bias", "scoring_func": "score_function"})
    take.assume(DEFAULTS)
    for key, value in FIXED.items():
        take.require(key, value)
    take.require("moe_shared_expert_intermediate_size", take("moe_intermediate_size") * take("n_shared_experts"))
    take.ignore(*IDLE)
    return rotated(take, 0.5)


FAMILY = Family(("bailing_moe_v2",), config, (*PUBLISHED, *RULES), drafts=("model.layers.{l}.",))
