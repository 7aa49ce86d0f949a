"""Llama 1 to 3, and what shares its code (TinyLlama, SmolLM, Yi, DeepSeek-LLM, ...)."""

from converters.architectures.common import COMMON, activation, head_dim, pre_norm
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Attention, Mlp, ModelSpec, Norm


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    heads, size = take("num_attention_heads"), head_dim(take)
    bias = take("attention_bias", False)
    norm = Norm(take("rms_norm_eps", 1e-6))
    attention = Attention(
        heads,
        take("num_key_value_heads", heads),
        size,
        size**-0.5,
        read_rope(take, size, max_len=take("max_position_embeddings", 2048)),
        qkv_bias=bias,
        o_bias=bias,
    )
    mlp = Mlp(take("intermediate_size"), activation(take, "hidden_act", default="silu"), bias=take("mlp_bias", False))
    take.ignore("pretraining_tp")
    return ModelSpec(
        take("vocab_size"),
        take("hidden_size"),
        (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"),
        take("max_position_embeddings", 2048),
        norm,
        tied=take("tie_word_embeddings", False),
    )


FAMILY = Family(("llama",), config, COMMON, buffers=("model.layers.{l}.self_attn.rotary_emb.inv_freq",))
