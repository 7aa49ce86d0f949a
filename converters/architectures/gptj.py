"""GPT-J: rotary positions on neighbouring features, parallel branches behind one norm, a bias on the head."""

from dataclasses import replace

from converters.architectures.common import (
    GPT_NAMES,
    SUMMARY,
    activation,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    mlp_rules,
    norm_rules,
    parallel,
    rename,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm, Rope

DEFAULTS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "rotary_dim": 64,
    "tie_word_embeddings": False,
}


def config(take: Take) -> ModelSpec:
    """Read a GPT-J config.

    Raises:
        ValueError: rotary_dim is null or not an even part of a head; the reference cannot run that either.
    """
    rename(take, GPT_NAMES)
    take.assume(DEFAULTS)
    # keys of an early release, which had nothing else
    take.require("rotary", True)
    take.require("scale_attn_weights", True)
    take.ignore(*SUMMARY)
    norm = Norm(take("layer_norm_epsilon"), "layer", bias=True)
    op, dim = grouped_attention(take), take("rotary_dim")
    if not 0 < dim <= op.head_dim or dim % 2:
        raise ValueError(f"{take.where}: rotary_dim = {dim}; expected an even number from 2 to {op.head_dim}")
    op = replace(op, rope=Rope(dim, interleaved=True))
    inner = take("n_inner", 4 * take("hidden_size"))
    mlp = Mlp(inner, activation(take, "activation_function"), gated=False, bias=True)
    layers = (parallel(op, mlp, norm),) * take("num_hidden_layers")
    return replace(decoder(take, layers, norm), head_bias=True)


LAYER = "transformer.h.{l}"
FAMILY = Family(
    ("gptj",),
    config,
    (
        *end_rules("transformer.wte", "transformer.ln_f"),
        *attention_rules(f"{LAYER}.attn", o="out_proj"),
        *mlp_rules(f"{LAYER}.mlp", up="fc_in", down="fc_out"),
        *norm_rules("layers.{l}.pre", f"{LAYER}.ln_1"),
    ),
    prefix="transformer.",
    buffers=(f"{LAYER}.attn.bias", f"{LAYER}.attn.masked_bias"),
)
