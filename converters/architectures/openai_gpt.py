"""GPT (2018): a norm on the sum after each branch, none at the end."""

from dataclasses import replace

from converters.architectures.common import (
    GPT_NAMES,
    SUMMARY,
    decoder,
    end_rules,
    grouped_attention,
    norm_rules,
    rename,
)
from converters.architectures.family import Family
from converters.architectures.gpt2 import fused_rules
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Activation, Block, Branch, Mlp, ModelSpec, Norm, Positions

DEFAULTS = {
    "afn": "gelu",
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
# it has its own table, in which "gelu" is the approximation
ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def config(take: Take) -> ModelSpec:
    """Post-norm on the stream, learned positions, not gated."""
    rename(take, GPT_NAMES)
    take.assume(DEFAULTS)
    take.ignore("n_ctx", "n_special", "predict_special_tokens", *SUMMARY)  # vocab_size counts the special tokens
    if (name := take("afn")) not in ACTIVATIONS:
        raise ValueError(f"{take.where}: afn = {name!r} is not one of {', '.join(ACTIVATIONS)}")
    norm = Norm(take("layer_norm_epsilon"), "layer", bias=True)
    mlp = Mlp(4 * take("hidden_size"), ACTIVATIONS[name], gated=False, bias=True)
    op = replace(grouped_attention(take), qkv_bias=True, o_bias=True)
    block = Block((Branch("attention", op, after=norm), Branch("mlp", mlp, after=norm)))
    spec = decoder(take, (block,) * take("num_hidden_layers"), norm)
    return replace(spec, final_norm=None, positions=Positions(spec.max_seq_len))


LAYER = "transformer.h.{l}"
FAMILY = Family(
    ("openai-gpt",),
    config,
    (
        *end_rules("transformer.tokens_embed"),
        Rule("positions", "transformer.positions_embed.weight"),
        *fused_rules(LAYER),
        *norm_rules("layers.{l}.attention.after", f"{LAYER}.ln_1"),
        *norm_rules("layers.{l}.mlp.after", f"{LAYER}.ln_2"),
    ),
    prefix="transformer.",
    buffers=(f"{LAYER}.attn.bias",),
)
