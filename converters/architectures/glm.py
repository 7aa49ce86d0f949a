"""GLM-4 (9B) and GLM-Edge: llama with half of each head rotated in pairs and biases on queries, keys and values."""

from converters.architectures.common import COMMON, LAYER, decoder, fused_gate_up, gated_mlp, pre_norm
from converters.architectures.family import Family
from converters.architectures.glm4 import DEFAULTS, attention
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    norm = Norm(take("rms_norm_eps"))
    return decoder(take, (pre_norm(attention(take), gated_mlp(take), norm),) * take("num_hidden_layers"), norm)


FAMILY = Family(("glm",), config, (fused_gate_up(f"{LAYER}.mlp.gate_up_proj"), *COMMON))
