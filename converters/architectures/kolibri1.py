"""Kolibri 1: norms before and after each branch, windows with rotary layers, experts chosen by biased logits."""

from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    activation,
    attention_rules,
    decoder,
    end_rules,
    layer_types,
    norm_rules,
    rename,
    rotary_attention,
    windows,
)
from converters.architectures.experts import OURS, TRAINING, expert_rules, router_rules, shared_rules
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "vocab_size": 128000,
    "hidden_size": 2560,
    "num_hidden_layers": 50,
    "num_attention_heads": 48,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "sliding_window": 513,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 6,
    "num_experts": 384,
}


def config(take: Take) -> ModelSpec:
    """Sandwich norms, gated; a layer is rotary if it has a window, or if none has."""
    rename(take, {"num_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    count, norm, size = take("num_hidden_layers"), Norm(take("rms_norm_eps")), take("sliding_window", None)
    kinds = layer_types(take, count, ["sliding_attention" if (i + 1) % 5 else "full_attention" for i in range(count)])
    attention, act = replace(rotary_attention(take), qk_norm=norm), activation(take, "hidden_act")
    renorm = 1.0 if take("norm_topk_prob", False) else None
    router = Router(take("num_experts"), take("num_experts_per_tok"), "chosen_sigmoid", choice_bias=True, renorm=renorm)
    shared = Mlp(take("shared_expert_intermediate_size"), act)
    moe = Branch("moe", Moe(router, take("moe_intermediate_size"), act, shared=shared), pre=norm, post=norm)

    def layer(window: int | None) -> Block:
        rope = attention.rope if size is None or window is not None else None
        return Block((Branch("attention", replace(attention, window=window, rope=rope), pre=norm, post=norm), moe))

    return decoder(take, map(layer, windows(take, kinds, size)), norm)


FAMILY = Family(
    ("kolibri1",),
    config,
    (
        *end_rules(),
        *attention_rules(f"{LAYER}.self_attn"),
        *router_rules(f"{LAYER}.mlp.gate"),
        Rule(f"{OURS}.choice_bias", f"{LAYER}.moe.router.expert_bias"),
        *expert_rules(f"{LAYER}.mlp.experts"),
        *shared_rules(f"{LAYER}.mlp.shared_experts"),
        *norm_rules("layers.{l}.attention.pre", f"{LAYER}.input_layernorm"),
        *norm_rules("layers.{l}.attention.post", f"{LAYER}.post_attn_norm"),
        *norm_rules(f"{OURS}.pre", f"{LAYER}.post_attention_layernorm"),
        *norm_rules(f"{OURS}.post", f"{LAYER}.post_ffn_norm"),
    ),
)
