"""CodeGen: GPT-J whose q, v and k lie in one matrix, cut into four as it was trained."""

from converters.architectures import gptj
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import ModelSpec

LAYER = gptj.LAYER
FUSED = Rule(
    tuple(f"layers.{{l}}.attention.{part}" for part in "qvk"),
    f"{LAYER}.attn.qkv_proj.weight",
    "(4 q n h) d -> q d (4 n) h",
)


def config(take: Take) -> ModelSpec:
    """Read a CodeGen config, which is one of GPT-J.

    Raises:
        ValueError: heads that do not fit the four pieces.
    """
    take.ignore("n_ctx")  # repeats n_positions
    spec = gptj.config(take)
    if take("num_attention_heads") % 4:
        raise ValueError(f"{take.where}: {take('num_attention_heads')} heads; expected a multiple of 4")
    return spec


FAMILY = Family(("codegen",), config, (FUSED, *gptj.FAMILY.rules), "transformer.", buffers=gptj.FAMILY.buffers)
