"""MiniCPM3: dense, latent attention with ropes in halves; embedding, residual branches and logits scaled."""

import math
from dataclasses import replace

from converters.architectures.common import LAYER, decoder, end_rules, gated_mlp, mlp_rules, pre_norm, pre_norm_rules
from converters.architectures.family import Family
from converters.architectures.latent import direct_queries, latent_attention, latent_rules
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 73448,
    "hidden_size": 2560,
    "intermediate_size": 6400,
    "num_hidden_layers": 62,
    "num_attention_heads": 40,
    "kv_lora_rank": 256,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated. What scales by null does not scale."""
    take.assume(DEFAULTS)
    take.ignore("pretraining_tp")
    dim, count = take("hidden_size"), take("num_hidden_layers")
    norm, mlp = Norm(take("rms_norm_eps")), replace(gated_mlp(take), bias=take("mlp_bias", False))
    depth, base = take("scale_depth", None), take("dim_model_base", dim)
    scale = 1.0 if depth is None else depth / math.sqrt(count)
    block = pre_norm(latent_attention(take, interleaved=False), mlp, norm, scale)
    return replace(decoder(take, (block,) * count, norm), embed_scale=float(take("scale_emb")), logit_scale=base / dim)


RULES = (
    *end_rules(),
    *latent_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *pre_norm_rules(LAYER),
)

FAMILY = Family(("minicpm3",), config, RULES, first=direct_queries(f"{LAYER}.self_attn"))
