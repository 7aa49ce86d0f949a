"""Command R7B and Command A: parallel branches behind one norm, windows with rotary layers and full ones without."""

from collections.abc import Iterable
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    grouped_attention,
    head_dim,
    layer_types,
    mlp_rules,
    norm_rules,
    parallel,
    windows,
)
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Attention, ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "logit_scale": 0.0625,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "tie_word_embeddings": True,
}
# what the first releases spell out and every one of them has
FIXED = {
    "position_embedding_type": "rope_gptj",
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_qk_norm": False,
    "order_of_interleaved_layers": "local_attn_first",
}


def assemble(take: Take, attentions: Iterable[Attention], logit_scale: float) -> ModelSpec:
    """The decoder around the attention of each layer."""
    norm, mlp = Norm(take("layer_norm_eps"), kind="layer"), gated_mlp(take)
    spec = decoder(take, (parallel(op, mlp, norm) for op in attentions), norm)
    return replace(spec, logit_scale=logit_scale)


def config(take: Take) -> ModelSpec:
    """Parallel, gated, layer norms without bias; a layer is rotary exactly if it has a window."""
    take.assume(DEFAULTS)
    for key, value in FIXED.items():
        take.require(key, value)
    take.ignore("layer_switch", "use_parallel_embedding")  # the pattern's older name; how training was sharded
    bias = take("attention_bias", False)
    count, size, every = take("num_hidden_layers"), take("sliding_window", None), take("sliding_window_pattern")
    kinds = layer_types(
        take, count, ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    )
    rope = read_rope(take, head_dim(take), interleaved=True)
    base = replace(grouped_attention(take, None), qkv_bias=bias, o_bias=bias)
    sizes = windows(take, kinds, size)
    layers = [replace(base, window=size, rope=None if size is None else rope) for size in sizes]
    return assemble(take, layers, take("logit_scale"))


RULES = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *norm_rules("layers.{l}.pre", f"{LAYER}.input_layernorm"),
)

FAMILY = Family(("cohere2",), config, RULES)
