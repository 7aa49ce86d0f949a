"""GPT-Neo: learned positions, layers with and without a window, scores that are not divided."""

from collections.abc import Sequence
from dataclasses import replace

from converters.architectures.common import (
    SUMMARY,
    activation,
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
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Mlp, ModelSpec, Norm, Positions

NAMES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
DEFAULTS = {
    "activation_function": "gelu_new",
    "attention_types": [[["global", "local"], 12]],
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "window_size": 256,
}


def kinds(take: Take, count: int) -> Sequence[str]:
    """The kind of each layer: attention_layers, or attention_types with its repetitions written out.

    Raises:
        ValueError: not one kind a layer, or a kind that is neither global nor local.
    """
    types = take("attention_types")
    out = take("attention_layers", None)
    length = sum(len(group) * repeats for group, repeats in types) if out is None else len(out)
    if length != count:
        raise ValueError(
            f"{take.where}: attention_layers or attention_types name {length} layers, the model has {count}"
        )
    if out is None:
        out = [kind for group, repeats in types for _ in range(repeats) for kind in group]
    if odd := sorted(set(out) - {"global", "local"}):
        raise ValueError(f"{take.where}: attention kinds {odd}; expected global or local")
    return out


def config(take: Take) -> ModelSpec:
    """Read a GPT-Neo config."""
    rename(take, NAMES)
    take.assume(DEFAULTS)
    take.ignore(*SUMMARY)
    norm = Norm(take("layer_norm_epsilon"), "layer", bias=True)
    inner = take("intermediate_size", 4 * take("hidden_size"))
    mlp = Mlp(inner, activation(take, "activation_function"), gated=False, bias=True)
    everything = replace(grouped_attention(take), scale=1.0, o_bias=True)
    ops = {"global": everything, "local": replace(everything, window=take("window_size"))}
    layers = [pre_norm(ops[kind], mlp, norm) for kind in kinds(take, take("num_hidden_layers"))]
    spec = decoder(take, layers, norm)
    return replace(spec, positions=Positions(spec.max_seq_len))


LAYER = "transformer.h.{l}"
FAMILY = Family(
    ("gpt_neo",),
    config,
    (
        *end_rules("transformer.wte", "transformer.ln_f"),
        Rule("positions", "transformer.wpe.weight"),
        *attention_rules(f"{LAYER}.attn.attention", o="out_proj"),
        *mlp_rules(f"{LAYER}.mlp", up="c_fc", down="c_proj"),
        *pre_norm_rules(LAYER, "ln_1", "ln_2"),
    ),
    prefix="transformer.",
    buffers=(f"{LAYER}.attn.attention.bias", f"{LAYER}.attn.attention.masked_bias"),
)
