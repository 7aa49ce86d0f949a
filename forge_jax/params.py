"""The parameters of a model: `abstract(spec)` is the one source of their shapes, sharding axes and initial values.

A parameter tree is a Flax "params" collection: nested dicts with string keys, one entry a layer, heads as explicit
axes. Stacking layers for a scan is an execution transform (`forge_jax.decoder`), never the format.
Knows no architecture, no file and no device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from forge_jax.spec import Attention, Block, Mlp, ModelSpec, Norm, Op

Tree = dict[str, Any]


@dataclass(frozen=True)
class Param:
    """The description of one parameter.

    `axes` names each dimension for sharding: "vocab", "embed", "heads", "kv_heads", "head", "ff" or None.
    `fill` is the constant it starts at; None draws from a normal of variance 1 / fan_in, `fan_in` being the product
    of the leading `inputs` dimensions.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    fill: float | None = None
    inputs: int = 1

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


def norm_params(norm: Norm, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Tree:
    """The parameters of one norm over features of `shape`."""
    out: Tree = {}
    if norm.scale:
        out["scale"] = Param(shape, axes, fill=1.0 - norm.offset)
    if norm.bias:
        out["bias"] = Param(shape, axes, fill=0.0)
    return out


def attention_params(op: Attention, dim: int) -> Tree:
    """q [D, N, H], k and v [D, K, H], o [N, H, D] and what the op's options add."""
    n, k, h = op.heads, op.kv_heads, op.head_dim
    query, key = ("embed", "heads", "head"), ("embed", "kv_heads", "head")
    out: Tree = {
        "q": Param((dim, n, h), query),
        "k": Param((dim, k, h), key),
        "v": Param((dim, k, h), key),
        "o": Param((n, h, dim), ("heads", "head", "embed"), inputs=2),
    }
    if op.qkv_bias:
        out["q_bias"] = Param((n, h), query[1:], fill=0.0)
        out["k_bias"] = Param((k, h), key[1:], fill=0.0)
        out["v_bias"] = Param((k, h), key[1:], fill=0.0)
    if op.o_bias:
        out["o_bias"] = Param((dim,), ("embed",), fill=0.0)
    if op.qk_norm is not None:
        own = op.qk_norm_over != "head"
        out["q_norm"] = norm_params(op.qk_norm, (n, h) if own else (h,), query[1:] if own else ("head",))
        out["k_norm"] = norm_params(op.qk_norm, (k, h) if own else (h,), key[1:] if own else ("head",))
    if op.sinks:
        out["sinks"] = Param((n,), ("heads",), fill=0.0)
    return out


def mlp_params(op: Mlp, dim: int) -> Tree:
    """gate and up [D, F], down [F, D], and their biases."""
    names = ("gate", "up") if op.gated else ("up",)
    out: Tree = {name: Param((dim, op.dim), ("embed", "ff")) for name in names}
    out["down"] = Param((op.dim, dim), ("ff", "embed"))
    if op.bias:
        out |= {f"{name}_bias": Param((op.dim,), ("ff",), fill=0.0) for name in names}
        out["down_bias"] = Param((dim,), ("embed",), fill=0.0)
    return out


def op_params(op: Op, dim: int) -> Tree:
    """The parameters of any op."""
    match op:
        case Attention():
            return attention_params(op, dim)
        case Mlp():
            return mlp_params(op, dim)


def block_params(block: Block, dim: int) -> Tree:
    """The parameters of one layer: an entry a branch, and the shared norm if there is one."""
    out: Tree = {"pre": norm_params(block.pre, (dim,), ("embed",))} if block.pre else {}
    for branch in block.branches:
        entry = op_params(branch.op, dim)
        for place, norm in (("pre", branch.pre), ("post", branch.post), ("after", branch.after)):
            if norm is not None:
                entry[place] = norm_params(norm, (dim,), ("embed",))
        out[branch.name] = entry
    return out


def abstract(spec: ModelSpec) -> Tree:
    """The tree of `Param` that a model of this spec has."""
    width = spec.embed_dim or spec.dim
    out: Tree = {"embed": Param((spec.vocab_size, width), ("vocab", "embed"), inputs=0)}
    if spec.embed_norm is not None:
        out["embed_norm"] = norm_params(spec.embed_norm, (width,), ("embed",))
    if spec.positions is not None:
        out["positions"] = Param((spec.positions.size + spec.positions.offset, spec.dim), (None, "embed"), inputs=0)
    if width != spec.dim:
        out["embed_in"] = Param((width, spec.dim), (None, "embed"))
        out["embed_out"] = Param((spec.dim, width), ("embed", None))
    out["layers"] = {str(i): block_params(block, spec.dim) for i, block in enumerate(spec.layers)}
    if spec.final_norm is not None:
        out["final_norm"] = norm_params(spec.final_norm, (spec.dim,), ("embed",))
    if not spec.tied:
        out["head"] = Param((width, spec.vocab_size), ("embed", "vocab"))
    if spec.head_bias:
        out["head_bias"] = Param((spec.vocab_size,), ("vocab",), fill=0.0)
    return prune(out)


def prune(tree: Tree) -> Tree:
    """Drop empty sub-trees (norms without parameters), so that a tree has leaves only where there are numbers."""
    out = {key: prune(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in out.items() if value != {}}


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("layers.0.attention.q", leaf) for every leaf that is no dict."""
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            yield from flatten(value, path)
        else:
            yield path, value


def unflatten(leaves: dict[str, Any]) -> Tree:
    """Build the nested dict whose flattened form is `leaves`."""
    out: Tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split(".")
        node = out
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return out


def init(spec: ModelSpec, key: jax.Array, dtype: Any = jnp.float32) -> Tree:
    """Draw the parameters of a new model, a leaf depending only on (key, its place in the tree)."""
    described = dict(flatten(abstract(spec)))

    def draw(param: Param, leaf_key: jax.Array) -> jax.Array:
        if param.fill is not None:
            return jnp.full(param.shape, param.fill, dtype)
        std = prod(param.shape[: param.inputs]) ** -0.5 if param.inputs else 0.02
        return (std * jax.random.normal(leaf_key, param.shape, jnp.float32)).astype(dtype)

    keys = jax.random.split(key, len(described))
    return unflatten({path: draw(p, keys[i]) for i, (path, p) in enumerate(described.items())})


def count(spec: ModelSpec) -> int:
    """The number of parameters, tied weights once."""
    return sum(param.size for _, param in flatten(abstract(spec)))


def map_params(function: Callable[[Param], Any], spec: ModelSpec) -> Tree:
    """The tree of `function(param)` over every parameter of a spec."""
    return unflatten({path: function(param) for path, param in flatten(abstract(spec))})
