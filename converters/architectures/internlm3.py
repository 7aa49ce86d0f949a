"""InternLM 3: llama with other names for its biases."""

from converters.architectures import llama
from converters.architectures.common import COMMON, rename
from converters.architectures.family import Family
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
}


def config(take: Take) -> ModelSpec:
    """Read an InternLM 3 config.

    Raises:
        ValueError: biases in attention without biases in the feed-forward layers, or the other way round, which the
            reference cannot run either.
    """
    rename(take, {"attention_bias": "qkv_bias", "mlp_bias": "bias"})
    take.assume(DEFAULTS)
    if take("attention_bias", False) != take("mlp_bias", False):
        raise ValueError(f"{take.where}: qkv_bias and bias differ; expected both or neither")
    return llama.config(take)


FAMILY = Family(("internlm3",), config, COMMON)
