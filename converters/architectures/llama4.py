"""Llama 4, text: attention in chunks, every fourth layer without rope or chunks, mixtures that scale their input."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    head_dim,
    layer_types,
    mlp_rules,
)
from converters.architectures.experts import (
    TRAINING,
    fused_expert_rules,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.architectures.smollm3 import rotated
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Attention, Mlp, ModelSpec, Moe, Norm, QueryScaling, Router

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "intermediate_size_mlp": 16384,
    "use_qk_norm": True,
    "rope_theta": 500000.0,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
}


def attentions(take: Take, count: int) -> list[Attention]:
    """The attention of each layer: rotated and normalised ones, in chunks; without a rope, ones whose queries grow."""
    norm, bias = Norm(take("rms_norm_eps"), scale=False), take("attention_bias", False)
    turns, chunk = rotated(take, count), take("attention_chunk_size", None)
    kinds = ["chunked_attention" if turn and chunk is not None else "full_attention" for turn in turns]
    kinds = layer_types(take, count, kinds, "chunked_attention")
    if chunk is None and "chunked_attention" in kinds:
        raise ValueError(f"{take.where}: layer_types has chunked_attention, no attention_chunk_size")
    plain = replace(grouped_attention(take), qkv_bias=bias, o_bias=bias)
    take.ignore("attn_scale", "floor_scale")  # read below if queries grow
    tuned = take("attn_temperature_tuning", False)
    still = replace(plain, query_scaling=QueryScaling(take("attn_scale"), take("floor_scale"), 1) if tuned else None)
    rope = read_rope(take, head_dim(take), interleaved=True)
    turned = replace(plain, rope=rope, qk_norm=norm if take("use_qk_norm", False) else None, qk_norm_late=True)
    return [
        replace(turned if turn else still, chunk=chunk if kind == "chunked_attention" else None)
        for turn, kind in zip(turns, kinds, strict=True)
    ]


def config(take: Take) -> ModelSpec:
    """Pre-norm, gated; the router's sigmoids multiply what enters the experts that it chose."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    count, step, norm = take("num_hidden_layers"), take("interleave_moe_layer_step"), Norm(take("rms_norm_eps"))
    mixed, act = take("moe_layers", None), activation(take, "hidden_act")
    mixed = range(step - 1, count, step) if mixed is None else mixed
    router = Router(take("num_local_experts"), take("num_experts_per_tok"), "chosen_sigmoid")
    expert = Mlp(take("intermediate_size"), act)
    moe, dense = Moe(router, expert.dim, act, shared=expert, scale_input=True), Mlp(take("intermediate_size_mlp"), act)
    layers = (
        pre_norm(attention, moe if i in mixed else dense, norm) for i, attention in enumerate(attentions(take, count))
    )
    return decoder(take, layers, norm)


THEIRS = f"{LAYER}.feed_forward"

FAMILY = Family(
    ("llama4_text",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *mlp_rules(THEIRS),
        *router_rules(f"{THEIRS}.router"),
        *fused_expert_rules(
            f"{THEIRS}.experts.gate_up_proj", f"{THEIRS}.experts.down_proj", "e d (q f) -> q e d f", ""
        ),
        *shared_rules(f"{THEIRS}.shared_expert"),
        *pre_norm_rules(LAYER),
    ),
)
