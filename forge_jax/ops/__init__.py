"""The mathematics of a layer, one file an op. `apply` is the only door: (op, params, x, state, call) to (y, state)."""

from collections.abc import Callable
from typing import Any

from jax import Array

from forge_jax.ops.attention import attention
from forge_jax.ops.call import Call, Context
from forge_jax.ops.compressed import compressed
from forge_jax.ops.conv_attention import conv_attention
from forge_jax.ops.delta import delta_net
from forge_jax.ops.differential import differential
from forge_jax.ops.exchange import constant, exchange
from forge_jax.ops.head_mixture import head_mixture
from forge_jax.ops.joined import joined, project
from forge_jax.ops.latent import latent_attention
from forge_jax.ops.linear import linear_attention
from forge_jax.ops.mamba import mamba
from forge_jax.ops.mamba2 import mamba2
from forge_jax.ops.message import again
from forge_jax.ops.mlp import activate, mlp
from forge_jax.ops.mlstm import mlstm
from forge_jax.ops.moe import moe
from forge_jax.ops.ngrams import ngram_input
from forge_jax.ops.norm import norm
from forge_jax.ops.own import own_input
from forge_jax.ops.rg_lru import rg_lru
from forge_jax.ops.rope import sinusoids
from forge_jax.ops.selective import selective
from forge_jax.ops.short_conv import short_conv
from forge_jax.ops.wkv import channel_mix, wkv
from forge_jax.params import Tree
from forge_jax.spec import (
    Again,
    Attention,
    ChannelMix,
    Compressed,
    Constant,
    ConvAttention,
    DeltaNet,
    Differential,
    Exchange,
    HeadMixture,
    Joined,
    Latent,
    LinearAttention,
    Mamba,
    Mamba2,
    Mlp,
    Mlstm,
    Moe,
    NgramInput,
    Op,
    OwnInput,
    Project,
    RgLru,
    Selective,
    ShortConv,
    Wkv,
)

__all__ = ["Call", "Context", "activate", "apply", "norm", "sinusoids"]

OPS: dict[type, Callable[..., tuple[Array, Any]]] = {
    Again: again,
    Attention: attention,
    ChannelMix: channel_mix,
    Compressed: compressed,
    Mamba: mamba,
    Wkv: wkv,
    Mamba2: mamba2,
    RgLru: rg_lru,
    Latent: latent_attention,
    ConvAttention: conv_attention,
    Constant: constant,
    Joined: joined,
    Project: project,
    Selective: selective,
    Differential: differential,
    Exchange: exchange,
    HeadMixture: head_mixture,
    DeltaNet: delta_net,
    LinearAttention: linear_attention,
    Mlp: mlp,
    Mlstm: mlstm,
    Moe: moe,
    NgramInput: ngram_input,
    ShortConv: short_conv,
    OwnInput: own_input,
}


def apply(op: Op, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context) -> tuple[Array, Any]:
    """Run one op. Returns (y_BTD, new state); ops without memory hand back the state they got."""
    return OPS[type(op)](op, params, x_BTD, state, call, ctx)
