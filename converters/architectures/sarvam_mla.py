"""Sarvam-105B: DeepSeek-V3 with other names for some settings."""

from dataclasses import replace

from converters.architectures import deepseek_v3
from converters.architectures.common import rename
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = deepseek_v3.DEFAULTS | {
    "vocab_size": 262144,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 64,
    "n_routed_experts": 128,
    "q_lora_rank": None,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated; the first layers dense."""
    rename(take, {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"})
    rename(take, {"n_routed_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore("q_head_dim")  # it follows from the two parts of a head
    return deepseek_v3.assemble(take)


FAMILY = replace(deepseek_v3.FAMILY, model_types=("sarvam_mla",), config=config)
