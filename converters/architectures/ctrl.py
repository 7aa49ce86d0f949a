"""CTRL: fixed sinusoidal positions, scaled embedding, layer norms, a bias on the head."""

from dataclasses import replace

from converters.architectures.common import (
    GPT_NAMES,
    SUMMARY,
    attention_rules,
    decoder,
    end_rules,
    grouped_attention,
    mlp_rules,
    pre_norm,
    pre_norm_rules,
    rename,
)
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm, Sinusoids

DEFAULTS = {"layer_norm_epsilon": 1e-6, "max_position_embeddings": 256, "tie_word_embeddings": True}


def config(take: Take) -> ModelSpec:
    """Read a CTRL config; its eps is that of the final norm only."""
    rename(take, GPT_NAMES)
    take.assume(DEFAULTS)
    take.ignore("n_ctx", "num_labels", *SUMMARY)  # repeats n_positions; of a classification head
    norm = Norm(1e-6, "layer", bias=True)
    op = replace(grouped_attention(take), qkv_bias=True, o_bias=True)
    mlp = Mlp(take("dff"), "relu", gated=False, bias=True)
    layers = (pre_norm(op, mlp, norm),) * take("num_hidden_layers")
    spec = decoder(take, layers, replace(norm, eps=take("layer_norm_epsilon")))
    return replace(spec, embed_scale=spec.dim**0.5, positions=Sinusoids(), head_bias=True)


LAYER = "transformer.h.{l}"
FAMILY = Family(
    ("ctrl",),
    config,
    (
        *end_rules("transformer.w", "transformer.layernorm"),
        *attention_rules(f"{LAYER}.multi_head_attention", "Wq", "Wk", "Wv", "dense"),
        *mlp_rules(f"{LAYER}.ffn", up="0", down="2"),
        *pre_norm_rules(LAYER, "layernorm1", "layernorm2"),
    ),
    prefix="transformer.",
)
