"""Solar Open: every layer a mixture whose experts are chosen within the best groups of them."""

from dataclasses import replace

from converters.architectures.common import rename, rotary_attention
from converters.architectures.experts import grouped_moe
from converters.architectures.family import Family
from converters.architectures.glm4_moe import RULES, assemble
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "moe_intermediate_size": 1280,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "rope_theta": 1000000.0,
}


def config(take: Take) -> ModelSpec:
    """Rotary."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.require("first_k_dense_replace", 0)
    take.require("use_qk_norm", False)
    attention, count = (
        replace(rotary_attention(take), qkv_bias=take("attention_bias", False)),
        take("num_hidden_layers"),
    )
    return assemble(take, (attention,) * count, (True,) * count, grouped_moe(take))


FAMILY = Family(("solar_open",), config, RULES)
