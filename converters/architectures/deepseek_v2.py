"""DeepSeek-V2, its Lite and Coder: latent attention; behind a few dense layers, softmax experts, from all or groups."""

from dataclasses import replace

from converters.architectures.common import LAYER, activation, decoder, gated_mlp, rename
from converters.architectures.deepseek_v3 import IDLE, RULES
from converters.architectures.experts import pre_norm, sparse_layers
from converters.architectures.family import Family
from converters.architectures.latent import direct_queries, latent_attention
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "first_k_dense_replace": 0,
    "topk_method": "greedy",
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


def router(take: Take) -> Router:
    """Softmax over all experts, the best of all or of the best groups; a group is as good as its best expert.

    Raises:
        ValueError: another method.
    """
    take.require("scoring_func", "softmax")
    take.require("norm_topk_prob", False)
    out = Router(take("n_routed_experts"), take("num_experts_per_tok"), scale=take("routed_scaling_factor"))
    match take("topk_method"):
        case "greedy":
            take.ignore("n_group", "topk_group")
            return out
        case "group_limited_greedy":
            return replace(out, groups=(take("n_group"), take("topk_group")))
        case other:
            known = "greedy, group_limited_greedy"
            raise ValueError(f"{take.where}: topk_method = {other!r} is not implemented; known are {known}")


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated; the first layers dense."""
    rename(take, {"n_routed_experts": "num_experts"})
    take.assume(DEFAULTS)
    take.ignore(*IDLE)
    norm, attention, bias = Norm(take("rms_norm_eps")), latent_attention(take), take("mlp_bias", False)
    act, width = activation(take, "hidden_act"), take("moe_intermediate_size")
    shared = Mlp(width * take("n_shared_experts"), act, bias=bias)
    mlp, moe = replace(gated_mlp(take), bias=bias), Moe(router(take), width, act, shared=shared)
    layers = (pre_norm(attention, moe if sparse else mlp, norm) for sparse in sparse_layers(take))
    return decoder(take, layers, norm)


FAMILY = Family(("deepseek_v2",), config, RULES, first=direct_queries(f"{LAYER}.self_attn"))
