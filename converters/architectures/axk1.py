"""A.X K1: DeepSeek-V3 with a norm on what the experts give."""

from dataclasses import replace

from converters.architectures import deepseek_v3
from converters.architectures.common import LAYER, norm_rules, rename
from converters.architectures.experts import pre_norm
from converters.take import Take
from forge_jax.spec import Block, Latent, Mlp, ModelSpec, Moe, Norm

DEFAULTS = deepseek_v3.DEFAULTS | {
    "vocab_size": 163840,
    "num_attention_heads": 64,
    "n_routed_experts": 192,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 32768,
}


def layer(attention: Latent, feed_forward: Mlp | Moe, norm: Norm) -> Block:
    """Pre-norm, and a norm after a mixture."""
    block = pre_norm(attention, feed_forward, norm)
    if isinstance(feed_forward, Mlp):
        return block
    first, second = block.branches
    return Block((first, replace(second, post=norm)))


def config(take: Take) -> ModelSpec:
    """Pre-norm, latent attention, gated; the first layers dense."""
    rename(take, {"n_routed_experts": "num_local_experts"})
    take.assume(DEFAULTS)
    return deepseek_v3.assemble(take, layer)


NORM = f"{LAYER}.post_mlp_layernorm"

FAMILY = replace(
    deepseek_v3.FAMILY,
    model_types=("axk1",),
    config=config,
    rules=(*deepseek_v3.RULES, *norm_rules("layers.{l}.moe.post", NORM)),
    buffers=(f"{NORM}.weight",),  # dense layers have it too, and do not use it
)
