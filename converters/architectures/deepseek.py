"""DeepSeek-MoE (16B): llama; behind a few dense layers, softmax experts beside shared ones."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    mlp_rules,
    rotary_attention,
)
from converters.architectures.experts import (
    TRAINING,
    expert_rules,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
    sparse_layers,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Attention, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "moe_intermediate_size": 1407,
    "first_k_dense_replace": 0,
}


def assemble(take: Take, attention: Attention) -> ModelSpec:
    """Pre-norm, gated; the weights of the chosen experts may be made to sum to one."""
    take.require("scoring_func", "softmax")
    take.ignore("pretraining_tp", "aux_loss_alpha", "seq_aux", *TRAINING)
    norm, act = Norm(take("rms_norm_eps")), activation(take, "hidden_act")
    renorm = 1.0 if take("norm_topk_prob", False) else None
    router = Router(take("n_routed_experts"), take("num_experts_per_tok"), renorm=renorm, renorm_eps=1e-20)
    width, count = take("moe_intermediate_size"), take("n_shared_experts", None) or 0
    moe = Moe(router, width, act, shared=Mlp(width * count, act) if count else None)
    take.ignore("intermediate_size")  # read below if a layer is dense
    layers = (pre_norm(attention, moe if mixed else gated_mlp(take), norm) for mixed in sparse_layers(take))
    return decoder(take, layers, norm)


def config(take: Take) -> ModelSpec:
    """Read a DeepSeek-MoE config."""
    take.assume(DEFAULTS)
    bias = take("attention_bias", False)
    return assemble(take, replace(rotary_attention(take), qkv_bias=bias, o_bias=bias))


RULES = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *router_rules(f"{LAYER}.mlp.gate"),
    *expert_rules(f"{LAYER}.mlp.experts"),
    *shared_rules(f"{LAYER}.mlp.shared_experts"),
    *pre_norm_rules(LAYER),
)

FAMILY = Family(("deepseek",), config, RULES)
