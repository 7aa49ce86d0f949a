"""VaultGemma: Gemma 2 without the norms after its branches."""

from converters.architectures.common import SANDWICH, pre_norm
from converters.architectures.family import Family
from converters.architectures.gemma2 import DEFAULTS, assemble, attentions
from converters.take import Take
from forge_jax.spec import ModelSpec, Norm


def config(take: Take) -> ModelSpec:
    """Pre-norm, rotary, gated."""
    take.assume(DEFAULTS)
    return assemble(take, attentions(take), Norm(take("rms_norm_eps"), offset=1.0), pre_norm)


FAMILY = Family(("vaultgemma",), config, SANDWICH)
