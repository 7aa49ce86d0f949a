"""GLM-4.7-Flash: the layers of DeepSeek-V3, dense or a mixture as the config lists."""

from dataclasses import replace

from converters.architectures import deepseek_v3
from converters.architectures.common import rename
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = deepseek_v3.DEFAULTS | {
    "vocab_size": 154880,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.8,
    "q_lora_rank": 768,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated."""
    rename(take, {"n_routed_experts": "num_local_experts", "qk_rope_head_dim": "head_dim"})
    take.assume(DEFAULTS)
    return deepseek_v3.assemble(take)


FAMILY = replace(deepseek_v3.FAMILY, model_types=("glm4_moe_lite",), config=config)
