"""AFMoE (Trinity): sandwich norms, gated heads, a rope only where there is a window, experts behind dense layers."""

from dataclasses import replace

from converters.architectures.common import (
    HEADS_OUT,
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    layer_types,
    mlp_rules,
    norm_rules,
    rename,
    rotary_attention,
    windows,
)
from converters.architectures.experts import OURS, TRAINING, expert_rules, router_rules, sandwich, shared_rules
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Gate, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "num_dense_layers": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "num_shared_experts": 2,
    "route_scale": 1.0,
    "global_attn_every_n_layers": 4,
    "sliding_window": 1024,
}
# what the released configs say of a router that can only be this one
ONLY = {"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1}
IDLE = ("load_balance_coeff", "num_expert_groups", "num_limited_groups", "use_grouped_mm")


def attentions(take: Take, norm: Norm) -> list[Attention]:
    """The attention of each layer."""
    count, bias, every = take("num_hidden_layers"), take("attention_bias", False), take("global_attn_every_n_layers")
    kinds = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    sizes = windows(take, layer_types(take, count, kinds), take("sliding_window", None))
    turned = replace(rotary_attention(take), qk_norm=norm, qkv_bias=bias, o_bias=bias, gate=Gate())
    return [replace(turned, window=size, rope=None if size is None else turned.rope) for size in sizes]


def mixture(take: Take) -> Moe:
    """The experts and the shared one."""
    count, chosen = take("num_experts"), take("num_experts_per_tok")
    scale, width, act = take("route_scale"), take("moe_intermediate_size"), activation(take, "hidden_act")
    router = Router(count, chosen, "sigmoid", choice_bias=True, renorm=1.0, renorm_eps=1e-20, scale=scale)
    return Moe(router, width, act, shared=Mlp(width * take("num_shared_experts"), act))


def config(take: Take) -> ModelSpec:
    """The embedding may be scaled by the root of its width."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*IDLE, *TRAINING)
    for key, value in ONLY.items():
        take.require(key, value)
    norm, dense, mlp, moe = Norm(take("rms_norm_eps")), take("num_dense_layers"), gated_mlp(take), mixture(take)
    layers = (sandwich(op, mlp if i < dense else moe, norm) for i, op in enumerate(attentions(take, norm)))
    spec = decoder(take, layers, norm)
    return replace(spec, embed_scale=spec.dim**0.5 if take("mup_enabled", False) else 1.0)


MLP = f"{LAYER}.mlp"

FAMILY = Family(
    ("afmoe",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        Rule("layers.{l}.attention.gate", f"{LAYER}.self_attn.gate_proj.weight", HEADS_OUT),
        *mlp_rules(MLP),
        *router_rules(f"{MLP}.router.gate"),
        Rule(f"{OURS}.choice_bias", f"{MLP}.expert_bias"),
        *expert_rules(f"{MLP}.experts"),
        *shared_rules(f"{MLP}.shared_experts"),
        *norm_rules("layers.{l}.attention.pre", f"{LAYER}.input_layernorm"),
        *norm_rules("layers.{l}.attention.post", f"{LAYER}.post_attention_layernorm"),
        *(
            rule
            for branch in ("mlp", "moe")
            for rule in norm_rules(f"layers.{{l}}.{branch}.pre", f"{LAYER}.pre_mlp_layernorm")
        ),
        *(
            rule
            for branch in ("mlp", "moe")
            for rule in norm_rules(f"layers.{{l}}.{branch}.post", f"{LAYER}.post_mlp_layernorm")
        ),
    ),
)
