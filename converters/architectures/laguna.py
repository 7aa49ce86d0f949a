"""Laguna: windows and full layers with their own ropes and head counts, gates on the heads, biased sigmoid experts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from converters.architectures.common import (
    HEADS_OUT,
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    grouped_attention,
    layer_types,
    mlp_rules,
    windows,
)
from converters.architectures.experts import (
    OURS,
    TRAINING,
    expert_rules,
    mlp_layer_types,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.rope import DIALECT, read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Gate, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS: dict[str, Any] = {
    "vocab_size": 100352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 40,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8,
    "num_experts": 256,
    "gating": True,
    "moe_routed_scaling_factor": 1.0,
    "moe_router_logit_softcapping": 0.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    },
}


def attentions(take: Take, kinds: Sequence[str], norm: Norm) -> list[Attention]:
    """The attention of each layer.

    Raises:
        ValueError: as many head counts as layers are needed, or an unknown gate.
    """
    take.ignore(*DIALECT, "num_attention_heads")
    gates: dict[Any, Literal["head", "feature"]] = {
        True: "head",
        "per-head": "head",
        False: "feature",
        "per-element": "feature",
    }
    over, bias = gates.get(take("gating")), take("attention_bias", False)
    heads = take("num_attention_heads_per_layer", None) or [take("num_attention_heads")] * len(kinds)
    if over is None or len(heads) != len(kinds):
        raise ValueError(f"{take.where}: gating = {take('gating')!r}, {len(heads)} head counts, {len(kinds)} layers")

    def layer(kind: str, window: int | None, count: int) -> Attention:
        one = Take(take.config | {"num_attention_heads": count}, take.where)
        one = grouped_attention(one, read_rope(one, one("head_dim"), layer_type=kind))
        return replace(one, window=window, qk_norm=norm, qkv_bias=bias, o_bias=bias, gate=Gate(over, "softplus"))

    take.ignore("num_key_value_heads", "head_dim")
    return list(map(layer, kinds, windows(take, kinds, take("sliding_window", None)), heads))


def mixture(take: Take) -> Moe:
    """A biased sigmoid chooses; the weights sum to the scaling factor, and a shared expert is added."""
    router = Router(
        take("num_experts"),
        take("num_experts_per_tok"),
        "sigmoid",
        choice_bias=True,
        renorm=1.0,
        scale=take("moe_routed_scaling_factor"),
        softcap=take("moe_router_logit_softcapping") or None,
    )
    act = activation(take, "hidden_act")
    return Moe(router, take("moe_intermediate_size"), act, shared=Mlp(take("shared_expert_intermediate_size"), act))


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated; the first layer dense."""
    take.assume(DEFAULTS)
    take.require("moe_apply_router_weight_on_input", False)
    take.ignore(*TRAINING)
    count, norm = take("num_hidden_layers"), Norm(take("rms_norm_eps"))
    kinds = layer_types(take, count, ["full_attention"] * count)
    by_kind = {"dense": gated_mlp(take), "sparse": mixture(take)}
    layers = [
        pre_norm(attention, by_kind[kind], norm)
        for attention, kind in zip(attentions(take, kinds, norm), mlp_layer_types(take, count, 1), strict=True)
    ]
    return decoder(take, layers, norm)


def gate_rules(spec: ModelSpec) -> tuple[Rule, ...]:
    """The gate has a number a head, or one a feature."""
    gates = [branch.op.gate for branch in spec.layers[0].every() if isinstance(branch.op, Attention)]
    over = {"head": "n d -> d n", "feature": HEADS_OUT}
    return tuple(
        Rule("layers.{l}.attention.gate", f"{LAYER}.self_attn.g_proj.weight", over[gate.over]) for gate in gates if gate
    )


FAMILY = Family(
    ("laguna",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *mlp_rules(f"{LAYER}.mlp"),
        *router_rules(f"{LAYER}.mlp.gate"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        Rule(f"{OURS}.choice_bias", f"{LAYER}.mlp.experts.e_score_correction_bias"),
        *shared_rules(f"{LAYER}.mlp.shared_expert"),
        *pre_norm_rules(LAYER),
    ),
    first=gate_rules,
)
