"""Jamba: attention without positions among selective state spaces, mixtures of experts among dense layers."""

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    grouped_attention,
    mlp_rules,
    rename,
)
from converters.architectures.experts import TRAINING, expert_rules, router_rules
from converters.architectures.family import Family
from converters.architectures.ssm import QUIET, layer, mamba_rules, pre_rules, rank
from converters.take import Take
from forge_jax.spec import Mamba, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "vocab_size": 65536,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262144,
    "num_experts_per_tok": 2,
    "num_experts": 16,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": "auto",
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


def periodic(take: Take, kind: str) -> list[bool]:
    """Whether each layer is the one of its period that is of this kind."""
    period, offset = take(f"{kind}_layer_period"), take(f"{kind}_layer_offset")
    return [i % period == offset for i in range(take("num_hidden_layers"))]


def config(take: Take) -> ModelSpec:
    """Which layer has what follows from two periods."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*QUIET, *TRAINING, "calc_logits_for_entire_prompt", "n_ctx")
    take.require("mamba_inner_layernorms", True)
    take.require("sliding_window", None)
    norm, experts = Norm(take("rms_norm_eps")), take("num_experts")
    mamba = Mamba(
        take("mamba_expand") * take("hidden_size"),
        take("mamba_d_state"),
        rank(take, "mamba_dt_rank"),
        take("mamba_d_conv"),
        act=activation(take, "hidden_act"),
        bias=take("mamba_proj_bias"),
        conv_bias=take("mamba_conv_bias"),
        norm=norm,
    )
    attention, mlp = grouped_attention(take), gated_mlp(take)
    firsts = [attention if yes else mamba for yes in periodic(take, "attn")]
    seconds: list[Mlp | Moe] = [mlp] * len(firsts)
    take.ignore("num_experts_per_tok", "expert_layer_period", "expert_layer_offset")  # without effect if all are dense
    if experts > 1:
        moe = Moe(Router(experts, take("num_experts_per_tok")), mlp.dim, activation(take, "hidden_act"))
        seconds = [moe if yes else mlp for yes in periodic(take, "expert")]
    return decoder(take, [layer(norm, *pair) for pair in zip(firsts, seconds, strict=True)], norm)


RULES = (
    *end_rules(norm="model.final_layernorm"),
    *attention_rules(f"{LAYER}.self_attn"),
    *mamba_rules(f"{LAYER}.mamba"),
    *mlp_rules(f"{LAYER}.feed_forward"),
    *expert_rules(f"{LAYER}.feed_forward.experts"),
    *router_rules(f"{LAYER}.feed_forward.router"),
    *pre_rules(LAYER, "input_layernorm", "pre_ff_layernorm"),
)

FAMILY = Family(("jamba",), config, RULES)
