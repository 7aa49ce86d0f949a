"""MiMo-V2-Flash: windowed layers with sinks and twice the key-value heads, values narrower than keys."""

from collections.abc import Iterator
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    grouped_attention,
    layer_types,
    mlp_rules,
    rename,
    windows,
)
from converters.architectures.experts import (
    TRAINING,
    grouped_moe,
    grouped_moe_rules,
    mixed_layers,
    pre_norm,
    pre_norm_rules,
)
from converters.architectures.family import Family
from converters.rope import read_ropes
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Mlp, ModelSpec, Moe, Norm

DEFAULTS = {
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "moe_intermediate_size": 2048,
    "num_experts_per_tok": 8,
    "n_routed_experts": 256,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "head_dim": 192,
    "v_head_dim": 128,
    "sliding_window": 129,
    "attention_value_scale": 0.707,
}
# what released configs say of windowed layers is either so in every model of the line, or repeats another key
ONLY = {"add_full_attention_sink_bias": False, "add_swa_attention_sink_bias": True}
SAME = {
    "swa_head_dim": "head_dim",
    "swa_num_attention_heads": "num_attention_heads",
    "swa_v_head_dim": "v_head_dim",
}


def attentions(take: Take) -> Iterator[Attention]:
    """The attention of each layer: the first sees everything, as does every sixth."""
    take.ignore("sliding_window")  # the other key, which does not count the token that looks, goes first
    count, reach = take("num_hidden_layers"), take("sliding_window_size", None)
    size = take("sliding_window", None) if reach is None else reach + 1
    marks = take("hybrid_layer_pattern", None) or [int(i > 0 and (i + 1) % 6 > 0) for i in range(count)]
    kinds = layer_types(take, count, ["sliding_attention" if mark else "full_attention" for mark in marks])
    thetas = {"full_attention": take("rope_theta", 5e6), "sliding_attention": take("swa_rope_theta", 1e4)}
    ropes = read_ropes(take, take("head_dim"), thetas, partial=take("partial_rotary_factor", 0.334))
    full = replace(grouped_attention(take), qkv_bias=take("attention_bias", False), value_dim=take("v_head_dim"))
    near = replace(full, kv_heads=take("swa_num_key_value_heads", 2 * full.kv_heads), sinks=True)
    for kind, window in zip(kinds, windows(take, kinds, size), strict=True):
        yield replace(full if window is None else near, rope=ropes[kind], window=window)


def layer(attention: Attention, feed_forward: Mlp | Moe, norm: Norm, scale: float) -> Block:
    """Pre-norm; a scale on values is one on what the attention adds."""
    block = pre_norm(attention, feed_forward, norm)
    return replace(block, branches=(replace(block.branches[0], scale=scale), block.branches[1]))


def config(take: Take) -> ModelSpec:
    """Rotated in part; experts without a shared one."""
    rename(take, {"n_routed_experts": "num_local_experts", "rms_norm_eps": "layernorm_epsilon"})
    take.assume(DEFAULTS)
    take.ignore("attention_chunk_size", *TRAINING)
    for key, value in (ONLY | {key: take(same) for key, same in SAME.items()}).items():
        take.require(key, value)
    norm, scale, moe = Norm(take("rms_norm_eps")), take("attention_value_scale", 1.0), grouped_moe(take)
    mlp, count = gated_mlp(take), take("num_hidden_layers")
    marks = take("moe_layer_freq", None) or [i > 0 for i in range(count)]
    pairs = zip(attentions(take), mixed_layers(take, marks), strict=True)
    return decoder(take, (layer(op, moe if mixed else mlp, norm, scale) for op, mixed in pairs), norm)


FAMILY = Family(
    ("mimo_v2_flash",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        Rule("layers.{l}.attention.sinks", f"{LAYER}.self_attn.attention_sink_bias"),
        *mlp_rules(f"{LAYER}.mlp"),
        *grouped_moe_rules(f"{LAYER}.mlp"),
        *pre_norm_rules(LAYER),
    ),
    drafts=("model.mtp.",),
)
