"""GLM-4 (0414): sandwich norms, half of each head rotated in pairs, biases on queries, keys and values."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    TRANSPOSED,
    attention_rules,
    decoder,
    end_rules,
    fused_gate_up,
    gated_mlp,
    grouped_attention,
    head_dim,
    norm_rules,
    sandwich,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1.5625e-7,
    "max_position_embeddings": 131072,
    "attention_bias": True,
}


def attention(take: Take) -> Attention:
    """Grouped, the front half of each head rotated in pairs, biases before but not behind."""
    rope = read_rope(take, head_dim(take), interleaved=True, partial=0.5)
    return replace(grouped_attention(take, rope), qkv_bias=take("attention_bias", False))


def config(take: Take) -> ModelSpec:
    """Sandwich norms, rotary, gated."""
    take.assume(DEFAULTS)
    norm = Norm(take("rms_norm_eps"))
    return decoder(take, (sandwich(attention(take), gated_mlp(take), norm),) * take("num_hidden_layers"), norm)


RULES = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    fused_gate_up(f"{LAYER}.mlp.gate_up_proj"),
    Rule("layers.{l}.mlp.down", f"{LAYER}.mlp.down_proj.weight", TRANSPOSED),
    *norm_rules("layers.{l}.attention.pre", f"{LAYER}.input_layernorm"),
    *norm_rules("layers.{l}.attention.post", f"{LAYER}.post_self_attn_layernorm"),
    *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.post_attention_layernorm"),
    *norm_rules("layers.{l}.mlp.post", f"{LAYER}.post_mlp_layernorm"),
)

FAMILY = Family(("glm4",), config, RULES)
