"""Granite 4: Granite with Mamba 2 for most attention, and a mixture beside an expert for all, or the latter alone."""

from dataclasses import replace

from converters.architectures import ssm
from converters.architectures.common import (
    LAYER,
    TRANSPOSED,
    activation,
    attention_rules,
    decoder,
    end_rules,
    fused_gate_up,
    grouped_attention,
    head_dim,
)
from converters.architectures.experts import AS_EXPERTS, OURS, TRAINING, fused_expert_rules, router_rules
from converters.architectures.family import Family
from converters.rope import DIALECT, read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = ssm.DEFAULTS | {
    "vocab_size": 32000,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 1024,
}


def feed_forward(take: Take) -> Mlp | Moe:
    """A mixture beside an expert for all, or that expert alone where there is no mixture."""
    act, experts = activation(take, "hidden_act"), take("num_local_experts")
    shared = Mlp(take("shared_intermediate_size"), act)
    take.ignore("intermediate_size", "num_experts_per_tok")
    if not experts:
        return shared
    router = Router(experts, take("num_experts_per_tok"), "chosen_softmax")
    return Moe(router, take("intermediate_size"), act, shared=shared)


def config(take: Take) -> ModelSpec:
    """Pre-norm; scores, residual branches, embedding and logits scaled; attention has a rope only if it says so."""
    take.assume(DEFAULTS)
    take.ignore(*ssm.QUIET, *TRAINING, *DIALECT, "init_method")
    take.require("normalization_function", "rmsnorm")
    norm, bias, count = Norm(take("rms_norm_eps")), take("attention_bias", False), take("num_hidden_layers")
    rope = read_rope(take, head_dim(take)) if take("position_embedding_type", None) == "rope" else None
    attention = replace(grouped_attention(take, rope), scale=take("attention_multiplier"), qkv_bias=bias, o_bias=bias)
    mixers = {"full_attention": attention, "linear_attention": ssm.read_mamba2(take, norm)}
    given = take.either("layer_types", "layers_block_type", default=("linear_attention",) * count)
    scale, second = take("residual_multiplier"), feed_forward(take)
    layers = [ssm.layer(norm, mixers[kind], second, scale=scale) for kind in ssm.kinds(take, given, count)]
    spec = decoder(take, layers, norm)
    return replace(spec, embed_scale=take("embedding_multiplier"), logit_scale=1 / take("logits_scaling"))


SHARED, MIXTURE = f"{LAYER}.shared_mlp", f"{LAYER}.block_sparse_moe"

RULES = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    *ssm.mamba2_rules(f"{LAYER}.mamba"),
    fused_gate_up(f"{SHARED}.input_linear"),
    Rule("layers.{l}.mlp.down", f"{SHARED}.output_linear.weight", TRANSPOSED),
    Rule((f"{OURS}.shared.gate", f"{OURS}.shared.up"), f"{SHARED}.input_linear.weight", "(q f) d -> q d f"),
    Rule(f"{OURS}.shared.down", f"{SHARED}.output_linear.weight", TRANSPOSED),
    *fused_expert_rules(f"{MIXTURE}.input_linear.weight", f"{MIXTURE}.output_linear.weight"),
    *router_rules(f"{MIXTURE}.router.layer"),
    *ssm.pre_rules(LAYER, "input_layernorm", "post_attention_layernorm"),
)

FAMILY = Family(("granitemoehybrid",), config, RULES, trained=AS_EXPERTS)
