"""Flint: windows with rotary layers and full ones without, sinks, sigmoid experts beside an ungated shared one."""

from dataclasses import replace

from converters.architectures.common import LAYER, activation, layer_types, rename, rotary_attention, windows
from converters.architectures.experts import shared_rules
from converters.architectures.family import Family
from converters.architectures.qwen2_moe import RULES, assemble, mixture
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 150144,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 49,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "sliding_window": 513,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 1024,
    "num_experts_per_tok": 6,
    "num_experts": 256,
    "norm_topk_prob": True,
    "mlp_only_layers": [0, 1],
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated; queries and keys normalised over a head."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    count, norm, bias = take("num_hidden_layers"), Norm(take("rms_norm_eps")), take("attention_bias", False)
    full = [i < 2 or i % 4 == 1 or i == count - 1 for i in range(count)]
    kinds = layer_types(take, count, ["full_attention" if whole else "sliding_attention" for whole in full])
    attention = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias, sinks=True)
    attentions = [
        replace(attention, window=window, rope=None if window is None else attention.rope)
        for window in windows(take, kinds, take("sliding_window", None))
    ]
    moe = mixture(take)
    shared = Mlp(take("shared_expert_intermediate_size"), activation(take, "hidden_act"))
    return assemble(take, attentions, replace(moe, router=replace(moe.router, score="sigmoid"), shared=shared))


FAMILY = Family(
    ("flint",),
    config,
    (
        *RULES,
        *shared_rules(f"{LAYER}.mlp.shared_expert"),
        Rule("layers.{l}.attention.sinks", f"{LAYER}.self_attn.softmax_offset"),
    ),
)
