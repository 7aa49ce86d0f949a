"""The language model of Emu3: llama with other defaults."""

from dataclasses import replace

from converters.architectures import llama
from converters.take import Take
from forge_jax.spec import ModelSpec

DEFAULTS = {
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 9216,
    "rope_theta": 1000000.0,
}


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    return llama.config(take)


FAMILY = replace(llama.FAMILY, model_types=("emu3_text_model",), config=config)
