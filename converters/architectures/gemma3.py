"""Gemma 3, text: Gemma 2 without the cap on scores, with normalised queries and keys and a rope a layer type."""

from dataclasses import replace

from converters.architectures.common import SANDWICH, grouped_attention, head_dim, layer_types, windows
from converters.architectures.family import Family
from converters.architectures.gemma2 import assemble
from converters.rope import read_ropes
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm, Rope

DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "tie_word_embeddings": True,
}


def ropes(take: Take) -> dict[str, Rope]:
    """The rope of each layer type. Only the full layers are ever stretched in the older dialect."""
    thetas = {"full_attention": take("rope_theta"), "sliding_attention": take("rope_local_base_freq")}
    return read_ropes(take, head_dim(take), thetas)


def config(take: Take) -> ModelSpec:
    """Sandwich norms, rotary, gated."""
    take.assume(DEFAULTS)
    take.ignore("attn_logit_softcapping", "_sliding_window_pattern")  # read by no released model and no reference
    count, size, every = take("num_hidden_layers"), take("sliding_window", None), take("sliding_window_pattern")
    kinds = layer_types(
        take, count, ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    )
    norm, bias = Norm(take("rms_norm_eps"), offset=1.0), take("attention_bias", False)
    scale, rope = take("query_pre_attn_scalar") ** -0.5, ropes(take)
    attention = replace(grouped_attention(take, None), scale=scale, qkv_bias=bias, o_bias=bias, qk_norm=norm)
    layers = [
        replace(attention, rope=rope[kind], window=window)
        for kind, window in zip(kinds, windows(take, kinds, size), strict=True)
    ]
    return assemble(take, layers, norm)


FAMILY = Family(("gemma3_text",), config, SANDWICH)
