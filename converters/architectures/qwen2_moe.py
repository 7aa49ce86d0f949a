"""Qwen 1.5 and 2, mixtures of experts: a shared expert behind a gate, dense layers among the others."""

from collections.abc import Iterable
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    layer_types,
    mlp_rules,
    rename,
    rotary_attention,
    windows,
)
from converters.architectures.experts import (
    OURS,
    TRAINING,
    Mixer,
    expert_rules,
    pre_norm,
    pre_norm_rules,
    router_rules,
    shared_rules,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "num_key_value_heads": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "qkv_bias": True,
}


def mixture(take: Take, width: str = "moe_intermediate_size") -> Moe:
    """Weights of a softmax over all experts, which sum to one only if norm_topk_prob says so."""
    renorm = 1.0 if take("norm_topk_prob", False) else None
    router = Router(take("num_experts"), take("num_experts_per_tok"), renorm=renorm)
    return Moe(router, take(width), activation(take, "hidden_act"))


def assemble(take: Take, mixers: Iterable[Mixer], moe: Moe, offset: float = 0.0) -> ModelSpec:
    """Pre-norm layers, of which every decoder_sparse_step-th is a mixture unless mlp_only_layers has it."""
    take.ignore("intermediate_size", *TRAINING)  # read below if a layer is dense
    norm = Norm(take("rms_norm_eps"), offset=offset)
    step, dense = take("decoder_sparse_step", 1), take("mlp_only_layers", ())
    layers = (
        pre_norm(mixer, gated_mlp(take) if i in dense or (i + 1) % step else moe, norm)
        for i, mixer in enumerate(mixers)
    )
    return decoder(take, layers, norm)


def config(take: Take) -> ModelSpec:
    """Rotary; a window on every other one of the lower layers if it is switched on."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    size, lower, count = take("sliding_window", None), take("max_window_layers"), take("num_hidden_layers")
    size = size if take("use_sliding_window", False) else None
    slides = [size is not None and i % 2 == 0 and i < lower for i in range(count)]
    kinds = layer_types(take, count, ["sliding_attention" if slide else "full_attention" for slide in slides])
    attention = replace(rotary_attention(take), qkv_bias=take("qkv_bias", False))
    attentions = (replace(attention, window=window) for window in windows(take, kinds, size))
    shared = Mlp(take("shared_expert_intermediate_size"), activation(take, "hidden_act"))
    return assemble(take, attentions, replace(mixture(take), shared=shared, shared_gate=True))


RULES = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *router_rules(f"{LAYER}.mlp.gate"),
    *expert_rules(f"{LAYER}.mlp.experts"),
    *pre_norm_rules(LAYER),
)

SHARED_RULES = (
    *RULES,
    *shared_rules(f"{LAYER}.mlp.shared_expert"),
    Rule(f"{OURS}.shared_gate", f"{LAYER}.mlp.shared_expert_gate.weight", "a b -> b a"),
)

FAMILY = Family(("qwen2_moe",), config, SHARED_RULES)
