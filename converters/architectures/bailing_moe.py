"""Ling and Ring: up to 1.5 DeepSeek-MoE with names of its own, q, k and v in one matrix; 2 by the same name."""

from dataclasses import replace

from converters.architectures import bailing_moe_v2
from converters.architectures.common import rename, rotary_attention
from converters.architectures.deepseek import RULES, assemble
from converters.architectures.family import Family
from converters.architectures.sarvam_moe import PUBLISHED
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 16384,
    "moe_intermediate_size": 1408,
    "norm_topk_prob": True,
    "first_k_dense_replace": 0,
}
# what no release has, or (norm_head) only some, whose head is then to be normalised column by column
FIXED = {"use_bias": False, "multi_gate": False, "norm_softmax": False, "norm_head": False}


def config(take: Take) -> ModelSpec:
    """Read a Ling config; experts that are scored by sigmoids are those of the second."""
    if take("score_function", "softmax") == "sigmoid":
        return bailing_moe_v2.config(take)
    rename(take, {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"})
    take.assume(DEFAULTS)
    for key, value in FIXED.items():
        take.require(key, value)
    take.ignore("output_dropout")
    return assemble(take, replace(rotary_attention(take), qkv_bias=take("use_qkv_bias", False)))


FAMILY = Family(("bailing_moe",), config, (*PUBLISHED, *RULES), drafts=("model.layers.{l}.",))
