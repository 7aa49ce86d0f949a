"""Hunyuan-Large and A13B: Hunyuan whose feed-forward layer is a mixture of experts with a shared one."""

from dataclasses import replace

from converters.architectures.common import LAYER, activation, attention_rules, decoder, end_rules, rename
from converters.architectures.experts import (
    TRAINING,
    expert_rules,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.architectures.hunyuan_v1_dense import DEFAULTS, NORMS, UNUSED, attention
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Norm, Router

# what the releases spell out and every one of them has
FIXED = {
    "group_limited_greedy": False,
    "mlp_bias": False,
    "moe_layer_num_skipped": 0,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "use_cla": False,
    "use_mixed_mlp_moe": True,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
}
IDLE = ("capacity_factor", "moe_drop_tokens", "moe_random_routing_dropped_token", "n_group", "topk_group")


def everywhere(take: Take, key: str, expected: int) -> None:
    """Check a setting, given once or for each layer, of which only one value is implemented.

    Raises:
        ValueError: another value.
    """
    given = take(key, expected)
    if any(value != expected for value in (given if isinstance(given, list) else [given])):
        raise ValueError(f"{take.where}: {key} = {given!r} is not implemented; only {expected!r} is")


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary; each layer may choose another number of experts."""
    rename(take, {"moe_topk": "num_experts_per_tok", "num_experts": "num_local_experts"})
    take.assume(DEFAULTS | {"num_experts": 1, "moe_topk": 1})
    take.ignore(*UNUSED, *IDLE, *TRAINING)
    for key, value in FIXED.items():
        take.require(key, value)
    expert, count = Mlp(take("intermediate_size"), activation(take, "hidden_act")), take("num_hidden_layers")
    everywhere(take, "moe_intermediate_size", expert.dim)
    everywhere(take, "num_shared_expert", 1)
    chosen = take("moe_topk")
    chosen = chosen if isinstance(chosen, list) else [chosen] * count
    if len(chosen) != count:
        raise ValueError(f"{take.where}: moe_topk has {len(chosen)} entries for {count} layers")
    norm = Norm(take("rms_norm_eps"))
    op = attention(take, norm)
    moe = Moe(Router(take("num_experts"), 1, renorm=1.0), expert.dim, activation(take, "hidden_act"), shared=expert)
    layers = (pre_norm(op, replace(moe, router=replace(moe.router, top_k=top_k)), norm) for top_k in chosen)
    return decoder(take, layers, norm)


FAMILY = Family(
    ("hunyuan_v1_moe",),
    config,
    (
        *NORMS,
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *router_rules(f"{LAYER}.mlp.gate.wg"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        *shared_rules(f"{LAYER}.mlp.shared_mlp"),
        *pre_norm_rules(LAYER),
    ),
)
