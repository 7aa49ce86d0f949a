"""GLM 4.5 to 4.7: heads rotated in part, behind a few dense layers experts chosen within the best groups of them."""

from collections.abc import Iterable
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    grouped_attention,
    head_dim,
    mlp_rules,
    rename,
)
from converters.architectures.deepseek_v3 import IDLE
from converters.architectures.experts import grouped_moe, grouped_moe_rules, pre_norm, pre_norm_rules
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Attention, ModelSpec, Moe, Norm

DEFAULTS = {
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}


def assemble(take: Take, attentions: Iterable[Attention], mixed: Iterable[bool], moe: Moe) -> ModelSpec:
    """Pre-norm layers, some of them a mixture."""
    take.ignore("intermediate_size", *IDLE)  # read below if a layer is dense
    norm, pairs = Norm(take("rms_norm_eps")), zip(attentions, mixed, strict=True)
    return decoder(take, (pre_norm(op, moe if is_mixed else gated_mlp(take), norm) for op, is_mixed in pairs), norm)


def beyond(take: Take) -> list[bool]:
    """Which layers are mixtures: all but the first few."""
    dense = take("first_k_dense_replace")
    return [i >= dense for i in range(take("num_hidden_layers"))]


def rotated(take: Take, partial: float) -> ModelSpec:
    """Layers whose heads are rotated in this part; queries and keys may be normalised over a head."""
    norm = Norm(take("rms_norm_eps")) if take("use_qk_norm", False) else None
    attention = grouped_attention(take, read_rope(take, head_dim(take), partial=partial))
    attention = replace(attention, qk_norm=norm, qkv_bias=take("attention_bias", False))
    return assemble(take, (attention,) * take("num_hidden_layers"), beyond(take), grouped_moe(take))


def config(take: Take) -> ModelSpec:
    """Half of each head is rotated, unless the config says otherwise."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    return rotated(take, 0.5)


RULES = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *grouped_moe_rules(f"{LAYER}.mlp"),
    *pre_norm_rules(LAYER),
)

FAMILY = Family(("glm4_moe",), config, RULES, drafts=("model.layers.{l}.",))
