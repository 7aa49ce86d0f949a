"""BitNet b1.58: llama with a norm inside each branch, before its last projection."""

from dataclasses import replace

from converters.architectures.common import COMMON, LAYER, decoder, gated_mlp, pre_norm, rotary_attention
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "num_key_value_heads": 5,
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 500000.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    norm, bias = Norm(take("rms_norm_eps")), take("attention_bias", False)
    attention = replace(rotary_attention(take), out_norm=norm, qkv_bias=bias, o_bias=bias)
    mlp = replace(gated_mlp(take), norm=norm)
    return decoder(take, (pre_norm(attention, mlp, norm),) * take("num_hidden_layers"), norm)


RULES = (
    Rule("layers.{l}.attention.out_norm.scale", f"{LAYER}.self_attn.attn_sub_norm.weight", "(n h) -> n h"),
    Rule("layers.{l}.mlp.norm.scale", f"{LAYER}.mlp.ffn_sub_norm.weight"),
    *COMMON,
)

FAMILY = Family(("bitnet",), config, RULES)
