"""Maincoder (1B): llama whose heads are rotated in adjacent pairs, queries and keys normalised after that."""

from dataclasses import replace

from converters.architectures.common import COMMON, decoder, gated_mlp, grouped_attention, head_dim, pre_norm
from converters.architectures.family import Family
from converters.rope import read_rope
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    take.require("use_qk_norm", True)
    norm = Norm(take("rms_norm_eps"))
    op = grouped_attention(take, read_rope(take, head_dim(take), interleaved=True))
    block = pre_norm(replace(op, qk_norm=norm, qk_norm_late=True), gated_mlp(take), norm)
    return decoder(take, (block,) * take("num_hidden_layers"), norm)


FAMILY = Family(("maincoder",), config, COMMON)
