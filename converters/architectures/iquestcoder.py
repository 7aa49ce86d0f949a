"""IQuest-Coder: llama with other defaults."""

from converters.architectures import llama
from converters.architectures.common import COMMON
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
}


def config(take: Take) -> ModelSpec:
    """Read an IQuest-Coder config; no release clips its projections or has windows, and the reference refuses both."""
    take.assume(DEFAULTS)
    take.require("clip_qkv", None)
    take.require("use_sliding_window", False)
    take.ignore("sliding_window", "max_window_layers")
    return llama.config(take)


FAMILY = Family(("iquestcoder",), config, COMMON)
