"""Qwen 3, mixtures of experts: queries and keys normalised over a head, no shared expert."""

from dataclasses import replace

from converters.architectures.common import rename, rotary_attention
from converters.architectures.family import Family
from converters.architectures.qwen2_moe import RULES, assemble, mixture
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
}


def config(take: Take) -> ModelSpec:
    """Rotary; the window, if it is switched on, is on every layer."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore("max_window_layers")  # of the dense models' configs, read by nobody
    norm, bias, size = Norm(take("rms_norm_eps")), take("attention_bias", False), take("sliding_window", None)
    attention = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias)
    attention = replace(attention, window=size if take("use_sliding_window", False) else None)
    return assemble(take, (attention,) * take("num_hidden_layers"), mixture(take))


FAMILY = Family(("qwen3_moe",), config, RULES)
