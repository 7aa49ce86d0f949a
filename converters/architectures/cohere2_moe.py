"""Command A, mixtures of experts: Cohere 2 whose feed-forward layers are mixtures, behind a few dense layers."""

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
    norm_rules,
    windows,
)
from converters.architectures.experts import TRAINING, expert_rules, mlp_layer_types, router_rules, shared_rules
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Moe, Norm, Router

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "head_dim": 128,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "logit_scale": 0.0625,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "tie_word_embeddings": True,
    "num_experts_per_tok": 2,
    "num_experts": 8,
    "num_shared_experts": 0,
    "shared_expert_combination_strategy": "average",
    "expert_selection_fn": "softmax",
    "prefix_dense_sliding_window_pattern": 1,
    "norm_topk_prob": True,
}


def mixture(take: Take) -> Branch:
    """The chosen logits, of a softmax or each of a sigmoid; what all tokens go through is added, or the mean taken.

    Raises:
        ValueError: another way to choose or to combine.
    """
    score, joined = take("expert_selection_fn"), take("shared_expert_combination_strategy")
    if score not in ("softmax", "sigmoid") or joined not in ("average", "sum"):
        raise ValueError(f"{take.where}: expert_selection_fn {score!r}, shared_expert_combination_strategy {joined!r}")
    each, shared, act = take("intermediate_size"), take("num_shared_experts"), activation(take, "hidden_act")
    renorm = 1.0 if take("norm_topk_prob") and score == "sigmoid" else None
    chosen = "chosen_softmax" if score == "softmax" else "chosen_sigmoid"
    router = Router(take("num_experts"), take("num_experts_per_tok"), chosen, renorm=renorm)
    moe = Moe(router, each, act, shared=Mlp(each * shared, act) if shared else None)
    return Branch("moe", moe, scale=0.5 if shared and joined == "average" else 1.0)


def config(take: Take) -> ModelSpec:
    """Parallel branches behind one norm; a layer is rotary if it has a window, or is dense and dense ones have none."""
    take.assume(DEFAULTS)
    take.ignore(*TRAINING)
    count, first = take("num_hidden_layers"), take("first_k_dense_replace", 0)
    every, early = take("sliding_window_pattern"), take("prefix_dense_sliding_window_pattern")
    slides = [(i + 1) % early if i < first else (i - first + 1) % every for i in range(count)]
    kinds = layer_types(take, count, ["sliding_attention" if slide else "full_attention" for slide in slides])
    feed_forwards = mlp_layer_types(take, count, first)
    eps, bias = take("rms_norm_eps", None), take("attention_bias", False)
    norm = Norm(take("layer_norm_eps"), kind="layer") if eps is None else Norm(eps)
    take.ignore("layer_norm_eps")  # where the other is given
    wide = take("prefix_dense_intermediate_size", None) or take("intermediate_size")
    dense, moe = Branch("mlp", Mlp(wide, activation(take, "hidden_act"))), mixture(take)
    rope = read_rope(take, head_dim(take), interleaved=True)
    attention = replace(grouped_attention(take), qkv_bias=bias, o_bias=bias)

    def layer(window: int | None, kind: str) -> Block:
        rotary = window is not None or (kind == "dense" and early == 1)
        mixing: Attention = replace(attention, window=window, rope=rope if rotary else None)
        return Block((Branch("attention", mixing), dense if kind == "dense" else moe), parallel=True, pre=norm)

    spec = decoder(take, map(layer, windows(take, kinds, take("sliding_window", None)), feed_forwards), norm)
    return replace(spec, logit_scale=take("logit_scale"))


RULES = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *router_rules(f"{LAYER}.mlp.gate"),
    *expert_rules(f"{LAYER}.mlp.experts"),
    *shared_rules(f"{LAYER}.mlp.shared_experts"),
    *norm_rules("layers.{l}.pre", f"{LAYER}.input_layernorm"),
)

FAMILY = Family(("cohere2_moe",), config, RULES)
