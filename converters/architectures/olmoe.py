"""OLMoE: queries and keys normalised over all heads, every layer a mixture."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    head_dim,
    rename,
    whole_norm_rules,
)
from converters.architectures.experts import TRAINING, expert_rules, pre_norm, pre_norm_rules, router_rules
from converters.architectures.family import Family
from converters.architectures.olmo2 import attention
from converters.architectures.qwen2_moe import mixture
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 8,
    "num_experts": 64,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary; queries, keys and values may be cut."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    norm, moe = Norm(take("rms_norm_eps")), mixture(take, "intermediate_size")
    op = replace(attention(take), rope=read_rope(take, head_dim(take)), clip=take("clip_qkv", None))
    return decoder(take, (pre_norm(op, moe, norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(
    ("olmoe",),
    config,
    (
        *end_rules(),
        *whole_norm_rules(f"{LAYER}.self_attn"),
        *attention_rules(f"{LAYER}.self_attn"),
        *router_rules(f"{LAYER}.mlp.gate"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        *pre_norm_rules(LAYER),
    ),
)
