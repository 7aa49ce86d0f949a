"""GPT-2: learned positions, q, k and v in one matrix, weights stored [in, out]."""

from dataclasses import replace

from converters.architectures.common import (
    GPT_NAMES,
    SUMMARY,
    activation,
    decoder,
    end_rules,
    grouped_attention,
    pre_norm,
    pre_norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Mlp, ModelSpec, Norm, Positions

DEFAULTS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 1024,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}


def config(take: Take) -> ModelSpec:
    """Read a GPT-2 config; the scores may be divided by the number of the layer."""
    rename(take, GPT_NAMES)
    take.assume(DEFAULTS)
    take.require("add_cross_attention", False)
    # the order of the same operations; n_ctx repeats n_positions
    take.ignore("reorder_and_upcast_attn", "n_ctx", *SUMMARY)
    norm = Norm(take("layer_norm_epsilon"), "layer", bias=True)
    inner = take("n_inner", 4 * take("hidden_size"))
    mlp = Mlp(inner, activation(take, "activation_function"), gated=False, bias=True)
    op = replace(grouped_attention(take), qkv_bias=True, o_bias=True)
    scale = op.scale if take("scale_attn_weights") else 1.0
    by_layer = take("scale_attn_by_inverse_layer_idx", False)

    def layer(i: int) -> Block:
        return pre_norm(replace(op, scale=scale / (i + 1) if by_layer else scale), mlp, norm)

    spec = decoder(take, map(layer, range(take("num_hidden_layers"))), norm)
    return replace(spec, positions=Positions(spec.max_seq_len))


LAYER = "transformer.h.{l}"


def fused_rules(layer: str) -> tuple[Rule, ...]:
    """Attention and feed-forward, weights stored [in, out]; shared with the first GPT."""
    parts = tuple(f"layers.{{l}}.attention.{part}" for part in "qkv")
    return (
        Rule(parts, f"{layer}.attn.c_attn.weight", "d (q n h) -> q d n h"),
        Rule(tuple(f"{part}_bias" for part in parts), f"{layer}.attn.c_attn.bias", "(q n h) -> q n h"),
        *weight_and_bias("layers.{l}.attention.o", f"{layer}.attn.c_proj", "(n h) d -> n h d"),
        *weight_and_bias("layers.{l}.mlp.up", f"{layer}.mlp.c_fc", ""),
        *weight_and_bias("layers.{l}.mlp.down", f"{layer}.mlp.c_proj", ""),
    )


FAMILY = Family(
    ("gpt2", "gpt-sw3"),
    config,
    (
        *end_rules("transformer.wte", "transformer.ln_f"),
        Rule("positions", "transformer.wpe.weight"),
        *fused_rules(LAYER),
        *pre_norm_rules(LAYER, "ln_1", "ln_2"),
    ),
    prefix="transformer.",
    buffers=(f"{LAYER}.attn.bias", f"{LAYER}.attn.masked_bias"),
)
