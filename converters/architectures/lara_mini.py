"""Lara Mini: the gated delta rule, windows with a rope and full layers without, by turns; every layer a mixture."""

from dataclasses import replace

from converters.architectures.common import activation, decoder, layer_types, rotary_attention, windows
from converters.architectures.experts import TRAINING, Mixer, pre_norm
from converters.architectures.family import Family
from converters.architectures.qwen2_moe import SHARED_RULES, mixture
from converters.architectures.qwen3_next import DELTA_RULES, OURS, THEIRS, delta
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 4,
    "num_experts": 128,
    "norm_topk_prob": True,
    "sliding_window": 512,
}
PATTERN = ("linear_attention", "sliding_attention", "linear_attention", "full_attention", "sliding_attention")


def mixers(take: Take, norm: Norm) -> list[Mixer]:
    """What mixes the tokens of each layer."""
    count, bias, linear = take("num_hidden_layers"), take("attention_bias", False), delta(take, norm)
    kinds = layer_types(take, count, [PATTERN[i % 5] for i in range(count)], *PATTERN[:2])
    turned = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias)
    sizes = windows(take, kinds, take("sliding_window", None))
    attentions = [replace(turned, window=size, rope=None if size is None else turned.rope) for size in sizes]
    return [linear if kind == "linear_attention" else op for kind, op in zip(kinds, attentions, strict=True)]


def config(take: Take) -> ModelSpec:
    """Pre-norm, a shared expert beside the chosen."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    norm, shared = (
        Norm(take("rms_norm_eps")),
        Mlp(take("shared_expert_intermediate_size"), activation(take, "hidden_act")),
    )
    moe = replace(mixture(take), shared=shared)
    return decoder(take, (pre_norm(mixer, moe, norm) for mixer in mixers(take, norm)), norm)


KEYS, VALUES, HEADS = "(k h) d -> d k h", "(n v) d -> d n v", "n d -> d n"

FAMILY = Family(
    ("lara_mini",),
    config,
    (
        Rule(
            tuple(f"{OURS}.{part}" for part in ("q", "k", "v", "gate", "beta", "decay")),
            f"{THEIRS}.in_proj.weight",
            (KEYS, KEYS, VALUES, VALUES, HEADS, HEADS),
            "c d",
        ),
        Rule(f"{OURS}.norm.scale", f"{THEIRS}.out_norm.weight"),
        *DELTA_RULES,
        *SHARED_RULES,
    ),
)
