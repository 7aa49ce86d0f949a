"""The parameters of a model: `abstract(spec)` is the one source of their shapes, sharding axes and initial values.

A parameter tree is a Flax "params" collection: nested dicts with string keys, one entry a layer, heads as explicit
axes. Stacking layers for a scan is an execution transform (`forge_jax.decoder`), never the format.
Knows no architecture, no file and no device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from forge_jax.params.compressed import compressed_params
from forge_jax.params.conv_attention import conv_attention_params
from forge_jax.params.differential import differential_params
from forge_jax.params.exchange import constant_params
from forge_jax.params.head_mixture import head_mixture_params
from forge_jax.params.joined import adapter_params, joined_params, project_params
from forge_jax.params.latent import latent_params
from forge_jax.params.layers import attention_params, mlp_params, norm_params, transform_params
from forge_jax.params.linear import delta_net_params, linear_attention_params, mlstm_params, short_conv_params
from forge_jax.params.message import message_params
from forge_jax.params.moe import moe_params
from forge_jax.params.ngrams import ngram_params
from forge_jax.params.own import altup_params, mixing_params, own_input_params, own_inputs_params, stream_ends_params
from forge_jax.params.recurrent import rg_lru_params
from forge_jax.params.selective import selective_params
from forge_jax.params.ssm import channel_mix_params, mamba2_params, mamba_params, wkv_params
from forge_jax.params.tree import Param, Tree, flatten, prune, unflatten
from forge_jax.spec import (
    Again,
    AltUp,
    Attention,
    Block,
    Branch,
    Chain,
    ChannelMix,
    Compressed,
    Constant,
    ConvAttention,
    DeltaNet,
    Differential,
    Exchange,
    GatedStreams,
    HeadMixture,
    Hyper,
    Joined,
    Latent,
    LinearAttention,
    Mamba,
    Mamba2,
    Mlp,
    Mlstm,
    ModelSpec,
    Moe,
    NgramInput,
    Norm,
    Op,
    OwnInput,
    Positions,
    Project,
    RgLru,
    Selective,
    ShortConv,
    Sum,
    Toward,
    Wkv,
)

__all__ = [
    "Param",
    "Tree",
    "abstract",
    "count",
    "flatten",
    "init",
    "map_params",
    "op_params",
    "unflatten",
]

TOWARD = 0.05  # which part of the way to a branch a new model moves, as in arXiv:2410.01131

OPS: dict[type, Callable[[Any, int], Tree]] = {
    Again: lambda op, dim: {},
    Attention: attention_params,
    ChannelMix: channel_mix_params,
    Compressed: compressed_params,
    Mamba: mamba_params,
    Mamba2: mamba2_params,
    Latent: latent_params,
    ConvAttention: conv_attention_params,
    Constant: constant_params,
    Joined: joined_params,
    Project: project_params,
    Selective: selective_params,
    Differential: differential_params,
    Exchange: lambda op, dim: {},
    HeadMixture: head_mixture_params,
    Wkv: wkv_params,
    RgLru: rg_lru_params,
    DeltaNet: delta_net_params,
    LinearAttention: linear_attention_params,
    Mlp: mlp_params,
    Mlstm: mlstm_params,
    Moe: moe_params,
    NgramInput: ngram_params,
    ShortConv: short_conv_params,
    OwnInput: own_input_params,
}


def op_params(op: Op, dim: int) -> Tree:
    """The parameters of any op on a stream of width `dim`."""
    return OPS[type(op)](op, dim)


def block_params(block: Block, dim: int) -> Tree:
    """The parameters of one layer: an entry a branch with what it does not share, and what belongs to none."""
    out: Tree = {"pre": norm_params(block.pre, (dim,), ("embed",))} if block.pre else {}
    if isinstance(block.streams, AltUp):
        out["streams"] = altup_params(block.streams, dim)
    if block.scalar:
        out["scalar"] = Param((1,), (None,), fill=1.0)
    out |= {branch.name: own_params(branch, dim) for branch in block.every()}
    if isinstance(block.streams, GatedStreams | Hyper):
        for branch in (branch for branch in block.branches if not branch.whole):
            out[branch.name]["streams"] = mixing_params(block.streams, dim)
    return out


def own_params(branch: Branch, dim: int) -> Tree:
    """The parameters that a branch has for itself."""
    out = branch_params(branch, dim) if branch.shared is None else {}
    if branch.adapters and not isinstance(branch.op, Sum | Chain):
        out["adapters"] = adapter_params(branch.adapters, op_params(branch.op, dim))
    return out


def branch_params(branch: Branch, dim: int) -> Tree:
    """The parameters of one branch that may be shared: its op's, and those of its norms."""
    out = {} if isinstance(branch.op, Sum | Chain) else op_params(branch.op, dim)
    if branch.recall is not None and branch.recall.queries:
        several = (branch.recall.queries,) if branch.recall.queries > 1 else ()
        out["recall"] = Param((*several, dim), (*(None for _ in several), "embed"), fill=0.0)
    if branch.message is not None:
        out["message"] = message_params(branch.message, dim)
    for place, norm in (("pre", branch.pre), ("post", branch.post), ("after", branch.after)):
        if norm is not None:
            out[place] = norm_params(norm, (dim,), ("embed",))
    if branch.smooth is not None:
        out["smooth"] = Param((dim, branch.smooth.taps), ("embed", None), stacked=1)
    if isinstance(branch.keep, Norm):
        out["keep"] = norm_params(branch.keep, (dim,), ("embed",))
    elif branch.keep == "learned":
        out["keep"] = Param((dim,), ("embed",), fill=1.0)
    elif isinstance(branch.keep, Toward):
        out["keep"] = Param((dim,), ("embed",), fill=TOWARD / branch.keep.gain)
    return out


def shared_params(spec: ModelSpec) -> Tree:
    """The parameters that several branches use, by name: whatever one of them has."""
    out: Tree = {}
    for branch in (branch for block in spec.layers for branch in block.every()):
        if branch.shared is not None:
            out[branch.shared] = out.get(branch.shared, {}) | branch_params(branch, spec.dim)
    return out


def abstract(spec: ModelSpec) -> Tree:
    """The tree of `Param` that a model of this spec has."""
    width = spec.embed_dim or spec.dim
    out: Tree = {"embed": Param((spec.vocab_size, width), ("vocab", "embed"), inputs=0)}
    if spec.embed_norm is not None:
        out["embed_norm"] = norm_params(spec.embed_norm, (width,), ("embed",))
    if spec.own is not None:
        out["own"] = own_inputs_params(spec.own, len(spec.layers), spec.dim)
    if spec.streams is not None:
        out["streams"] = stream_ends_params(spec.streams, spec.dim)
    if isinstance(spec.positions, Positions):
        out["positions"] = Param((spec.positions.size + spec.positions.offset, spec.dim), (None, "embed"), inputs=0)
    if width != spec.dim:
        out["embed_in"] = Param((width, spec.dim), (None, "embed"))
        out["embed_out"] = Param((spec.dim, width), ("embed", None))
    out["layers"] = {str(i): block_params(block, spec.dim) for i, block in enumerate(spec.layers)}
    out["shared"] = shared_params(spec)
    if spec.final_norm is not None:
        out["final_norm"] = norm_params(spec.final_norm, (spec.dim,), ("embed",))
    if spec.head_transform is not None:
        out["head_transform"] = transform_params(spec.head_transform, spec.dim)
    if not spec.tied:
        out["head"] = Param((width, spec.head_rows), ("embed", "vocab"))
    if spec.head_bias:
        out["head_bias"] = Param((spec.head_rows,), ("vocab",), fill=0.0)
    if spec.token_gain is not None:
        out["token_gain"] = Param((spec.head_rows,), ("vocab",), fill=1 / spec.token_gain)
    return prune(out)


def init(spec: ModelSpec, key: jax.Array, dtype: Any = jnp.float32) -> Tree:
    """Draw the parameters of a new model, a leaf depending only on (key, its place in the tree)."""
    described = dict(flatten(abstract(spec)))

    def draw(param: Param, leaf_key: jax.Array) -> jax.Array:
        if param.fill is not None:
            return jnp.full(param.shape, param.fill, dtype)
        std = param.fan_in**-0.5 if param.inputs else 0.02
        return (std * jax.random.normal(leaf_key, param.shape, jnp.float32)).astype(dtype)

    keys = jax.random.split(key, len(described))
    return unflatten({path: draw(p, keys[i]) for i, (path, p) in enumerate(described.items())})


def count(spec: ModelSpec) -> int:
    """The number of parameters, tied weights once."""
    return sum(param.size for _, param in flatten(abstract(spec)))


def map_params(function: Callable[[Param], Any], spec: ModelSpec) -> Tree:
    """The tree of `function(param)` over every parameter of a spec."""
    return unflatten({path: function(param) for path, param in flatten(abstract(spec))})
