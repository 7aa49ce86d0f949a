"""DeepSeek-V3 and R1: latent attention; behind a few dense layers, experts chosen within the best groups of them."""

from collections.abc import Callable

from converters.architectures.common import LAYER, decoder, end_rules, gated_mlp, mlp_rules, rename
from converters.architectures.experts import (
    TRAINING,
    grouped_moe,
    grouped_moe_rules,
    pre_norm,
    pre_norm_rules,
    sparse_layers,
)
from converters.architectures.family import Family
from converters.architectures.latent import direct_queries, latent_attention, latent_rules
from converters.take import Take
from forge_jax.spec import Block, Latent, Mlp, ModelSpec, Moe, Norm

DEFAULTS = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_interleave": True,
}

# of training, or of the modules that guess further tokens
IDLE = (
    *TRAINING,
    "aux_loss_alpha",
    "seq_aux",
    "ep_size",
    "pretraining_tp",
    "num_nextn_predict_layers",
    "num_mtp_layers",
)


def assemble(take: Take, layer: Callable[[Latent, Mlp | Moe, Norm], Block] = pre_norm) -> ModelSpec:
    """Latent attention and gated layers, dense or mixtures, put together by `layer`."""
    take.ignore(*IDLE)
    norm, attention = Norm(take("rms_norm_eps")), latent_attention(take, interleaved=take("rope_interleave"))
    mlp, moe = gated_mlp(take), grouped_moe(take)
    return decoder(take, (layer(attention, moe if sparse else mlp, norm) for sparse in sparse_layers(take)), norm)


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated; the first layers dense."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    return assemble(take)


RULES = (
    *end_rules(),
    *latent_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *grouped_moe_rules(f"{LAYER}.mlp"),
    *pre_norm_rules(LAYER),
)

FAMILY = Family(
    ("deepseek_v3",), config, RULES, first=direct_queries(f"{LAYER}.self_attn"), drafts=("model.layers.{l}.",)
)
