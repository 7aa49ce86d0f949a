"""MiniMax M2: experts chosen by biased sigmoids, queries and keys normalised over all heads, heads rotated in part."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    head_dim,
    rename,
    whole_norm_rules,
)
from converters.architectures.experts import (
    MOVED,
    OURS,
    TRAINING,
    expert_rules,
    pre_norm,
    pre_norm_rules,
    router_rules,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 196608,
    "rms_norm_eps": 1e-6,
    "num_experts_per_tok": 8,
    "num_local_experts": 256,
    "rope_theta": 5000000.0,
}

# of modules that guess further tokens, or of earlier models whose config this is
IDLE = (
    "attn_type_list",
    "layernorm_full_attention_beta",
    "layernorm_linear_attention_beta",
    "layernorm_mlp_beta",
    "mlp_intermediate_size",
    "mtp_transformer_layers",
    "num_mtp_modules",
    "shared_moe_mode",
    "use_mtp",
)
ONLY = {
    "qk_norm_type": "per_layer",
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "use_qk_norm": True,
    "use_routing_bias": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary; the weights of the chosen sum to one."""
    rename(take, {"num_local_experts": "num_experts"})
    take.assume(DEFAULTS)
    take.ignore(*IDLE, *TRAINING)
    for key, value in ONLY.items():
        take.require(key, value)
    size, norm = head_dim(take), Norm(take("rms_norm_eps"))
    rope = read_rope(take, size, partial=take("rotary_dim", size) / size)
    attention = replace(grouped_attention(take, rope), qk_norm=norm, qk_norm_over="all")
    router = Router(take("num_local_experts"), take("num_experts_per_tok"), "sigmoid", choice_bias=True, renorm=1.0)
    moe = Moe(router, take("intermediate_size"), activation(take, "hidden_act"))
    return decoder(take, (pre_norm(attention, moe, norm),) * take("num_hidden_layers"), norm)


EXPERTS = f"{LAYER}.block_sparse_moe"

FAMILY = Family(
    ("minimax_m2",),
    config,
    (
        *end_rules(),
        *whole_norm_rules(f"{LAYER}.self_attn"),
        *attention_rules(f"{LAYER}.self_attn"),
        *router_rules(f"{EXPERTS}.gate"),
        Rule(f"{OURS}.choice_bias", f"{EXPERTS}.e_score_correction_bias"),
        *expert_rules(f"{EXPERTS}.experts", gate="w1", down="w2", up="w3"),
        *pre_norm_rules(LAYER),
    ),
    trained=MOVED,
)
