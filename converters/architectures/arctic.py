"""Arctic: llama with a narrow feed-forward layer, and beside both branches a mixture that sees what they began with."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    mlp_rules,
    norm_rules,
    rotary_attention,
)
from converters.architectures.experts import OURS, TRAINING, expert_rules, router_rules
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Block, Branch, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "num_experts_per_tok": 1,
    "rope_theta": 1000000.0,
    "moe_layer_frequency": 2,
    "parallel_attn_mlp_res": False,
}
# as in every release; other numbers are layers without a mixture, or without a feed-forward layer of their own
FIXED = {"moe_layer_frequency": 1, "parallel_attn_mlp_res": True, "use_residual": True, "sliding_window": None}
IDLE = ("moe_eval_capacity_factor", "moe_train_capacity_factor", "moe_min_capacity", "moe_token_dropping")


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated; the weights of the chosen sum to one."""
    take.assume(DEFAULTS)
    for key, value in FIXED.items():
        take.require(key, value)
    take.ignore("enable_expert_tensor_parallelism", "quantization", *IDLE, *TRAINING)
    norm, bias, act = Norm(take("rms_norm_eps")), take("attention_bias", False), activation(take, "hidden_act")
    router = Router(take("num_local_experts"), take("num_experts_per_tok"), renorm=1.0)
    block = Block(
        (
            Branch("moe", Moe(router, take("intermediate_size"), act), pre=norm, late=True),
            Branch("attention", replace(rotary_attention(take), qkv_bias=bias, o_bias=bias), pre=norm),
            Branch("mlp", Mlp(take("hidden_size"), act), pre=norm),
        )
    )
    return decoder(take, (block,) * take("num_hidden_layers"), norm)


NAMES = {"gate": "w1", "up": "w3", "down": "w2"}

FAMILY = Family(
    ("arctic",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *mlp_rules(f"{LAYER}.residual_mlp", **NAMES),
        *router_rules(f"{LAYER}.block_sparse_moe.gate"),
        *expert_rules(f"{LAYER}.block_sparse_moe.experts", **NAMES),
        *norm_rules("layers.{l}.attention.pre", f"{LAYER}.input_layernorm"),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.residual_layernorm"),
        *norm_rules(f"{OURS}.pre", f"{LAYER}.post_attention_layernorm"),
    ),
)
