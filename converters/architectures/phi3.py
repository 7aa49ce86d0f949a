"""Phi-3, Phi-3.5 and Phi-4 (mini included): fused projections, longrope, heads rotated in part."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converters.architectures.common import (
    HEADS_IN,
    LAYER,
    TRANSPOSED,
    decoder,
    end_rules,
    fused_gate_up,
    gated_mlp,
    pre_norm,
    pre_norm_rules,
    rotary_attention,
    stacked_qkv,
)
from converters.architectures.family import Family
from converters.rope import rope_dict
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated, no biases."""
    take.assume(DEFAULTS)
    rope: Mapping[str, Any] = rope_dict(take)
    if "yarn" in (rope.get("rope_type"), rope.get("type")):
        # the first files call longrope "yarn"; its factors show that it is not
        take.config["rope_parameters"] = {**rope, "rope_type": "longrope"}
    norm = Norm(take("rms_norm_eps"))
    attention = replace(rotary_attention(take), window=take("sliding_window", None))
    return decoder(take, (pre_norm(attention, gated_mlp(take), norm),) * take("num_hidden_layers"), norm)


RULES = (
    *end_rules(),
    stacked_qkv(f"{LAYER}.self_attn.qkv_proj"),
    Rule("layers.{l}.attention.o", f"{LAYER}.self_attn.o_proj.weight", HEADS_IN),
    fused_gate_up(f"{LAYER}.mlp.gate_up_proj"),
    Rule("layers.{l}.mlp.down", f"{LAYER}.mlp.down_proj.weight", TRANSPOSED),
    *pre_norm_rules(LAYER),
)

FAMILY = Family(("phi3",), config, RULES)
