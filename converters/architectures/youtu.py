"""Youtu-LLM: dense, with the latent attention of DeepSeek-V3."""

from converters.architectures.common import LAYER, decoder, gated_mlp, pre_norm
from converters.architectures.family import Family
from converters.architectures.latent import direct_queries, latent_attention
from converters.architectures.minicpm3 import RULES
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_interleave": True,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated."""
    take.assume(DEFAULTS)
    take.ignore("embedding_initializer_range")
    take.require("mlp_bias", False)
    norm, attention = Norm(take("rms_norm_eps")), latent_attention(take, interleaved=take("rope_interleave"))
    return decoder(take, (pre_norm(attention, gated_mlp(take), norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("youtu",), config, RULES, first=direct_queries(f"{LAYER}.self_attn"))
