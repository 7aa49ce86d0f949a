"""Making every split axis divisible by the number of shards, without changing what the model computes.

Feed-forward features and vocabulary rows are padded with zeros, heads are arranged as `forge_jax.ops.call.head_slots`
says: kv heads repeated, padding with zero weights. Knows shapes and kinds of leaves, no mesh and no device.

For inference: an optimiser would pull the copies of a head apart.
"""

import warnings
from dataclasses import replace
from functools import partial
from math import gcd, lcm, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forge_jax.lora import Apart, Chosen, Lora, Replaced, Turned
from forge_jax.ops.call import head_slots
from forge_jax.parallel.axes import described, lora_axes, replaced_axes, turned
from forge_jax.params import Param, Tree, unflatten
from forge_jax.quantization.ordered import Ordered
from forge_jax.quantization.schemes import Grouped
from forge_jax.quantization.swift import plain_rows
from forge_jax.quantization.tiles import Tiles
from forge_jax.spec import (
    Attention,
    Chain,
    ChannelMix,
    Compressed,
    ConvAttention,
    DeltaNet,
    Differential,
    HeadMixture,
    Joined,
    Latent,
    LinearAttention,
    Mamba,
    Mamba2,
    Mlp,
    Mlstm,
    ModelSpec,
    Moe,
    Op,
    RgLru,
    ShortConv,
    Sum,
    Wkv,
)
from forge_jax.tensor import QTensor

Slots = dict[str | None, np.ndarray]
"""For each split axis the entry that each slot holds, -1 where it is padding."""


def padded(size: int, shards: int) -> np.ndarray:
    """The slots of an axis that is padded at its end to a multiple of `shards`."""
    slots = np.arange(-(-size // shards) * shards)
    return np.where(slots < size, slots, -1)


def op_slots(op: Op | Sum | Chain, shards: int) -> Slots:
    """The slots of the split axes of one op."""
    match op:
        case Attention():
            heads = head_slots(op.heads, op.kv_heads, shards)
            return {"heads": np.asarray(heads.queries), "kv_heads": np.asarray(heads.kvs)}
        case Differential() | HeadMixture() | ConvAttention() | Joined():
            return op_slots(op.attention, shards)
        case Mamba():
            return {"ff": padded(op.dim // op.heads, shards)}
        case Mamba2():
            return {"heads": padded(op.heads, lcm(shards, op.groups))}
        case Latent() | LinearAttention() | RgLru() | Mlstm() | Compressed():
            return {"heads": padded(op.heads, shards)}
        case DeltaNet():
            heads = head_slots(op.value_heads, op.key_heads, shards)
            return {"heads": np.asarray(heads.queries), "kv_heads": np.asarray(heads.kvs)}
        case Mlp() | ShortConv() | Wkv() | ChannelMix():
            return {"ff": padded(op.dim, shards)}
        case Moe():
            shared = {"shared_ff": padded(op.shared.dim, shards)} if op.shared else {}
            return {"ff": padded(op.dim, shards), **shared}
        case _:  # every device has the whole of it
            return {}


def path_slots(spec: ModelSpec, path: str, shards: int) -> Slots:
    """The slots of the split axes of the parameter at "layers.0.attention.q"."""
    if shards < 1:
        raise ValueError(f"sharding: {shards} shards; expected at least 1")
    match path.split("."):
        case ["layers", layer, name, *_]:
            ops = [branch.op for branch in spec.layers[int(layer)].every() if branch.name == name]
            return op_slots(ops[0], shards) if ops else {}
        case ["shared", name, *_]:
            ops = [branch.op for block in spec.layers for branch in block.every() if branch.shared == name]
            return op_slots(ops[0], shards)
        case ["own", *_] if spec.own is not None:
            return {"vocab": padded(spec.own.vocab_size, shards)}
        case ["head" | "head_bias" | "token_gain"]:
            return {"vocab": padded(spec.head_rows, shards)}
        case _:
            return {"vocab": padded(spec.vocab_size, shards)}


# ------------------------------------------------------------------------------------------------ the spec
def widened(spec: ModelSpec, shards: int) -> ModelSpec:
    """The spec whose `abstract` has the shapes of the prepared parameters, and whose caches fit them.

    It describes storage (shapes, memory, caches). What is run is always the model's own spec.
    """

    def op(old: Op) -> Op:
        slots = {axis: len(entries) for axis, entries in op_slots(old, shards).items()}
        match old:
            case Attention():
                return replace(old, heads=slots["heads"], kv_heads=slots["kv_heads"])
            case ConvAttention() | Differential() | HeadMixture() | Joined():
                inner = replace(old.attention, heads=slots["heads"], kv_heads=slots["kv_heads"])
                return replace(old, attention=inner)
            case Mamba():
                return replace(old, dim=slots["ff"] * old.heads)
            case RgLru():
                return replace(old, heads=slots["heads"], dim=slots["heads"] * old.head_dim)
            case Mamba2() | Latent() | LinearAttention() | Mlstm() | Compressed():
                return replace(old, heads=slots["heads"])
            case DeltaNet():
                return replace(old, value_heads=slots["heads"], key_heads=slots["kv_heads"])
            case Mlp() | ShortConv() | Wkv() | ChannelMix():
                return replace(old, dim=slots["ff"])
            case Moe():
                shared = replace(old.shared, dim=slots["shared_ff"]) if old.shared else None
                return replace(old, dim=slots["ff"], shared=shared)
            case _:
                return old

    def rows(size: int) -> int:
        return len(padded(size, shards))

    own = spec.own and replace(spec.own, vocab_size=rows(spec.own.vocab_size))
    layers = tuple(layer.with_ops(op) for layer in spec.layers)
    outputs = None if spec.outputs is None or spec.head_padded else rows(spec.outputs)
    return replace(spec, vocab_size=rows(spec.vocab_size), layers=layers, own=own, outputs=outputs)


# ------------------------------------------------------------------------------------------------ the arrays
def arrange(x: Any, axis: int, slots: np.ndarray) -> Any:
    """x[slots] along one axis, zeros for padding; numpy in numpy out. An arrangement that is none copies nothing."""
    if np.array_equal(slots, np.arange(x.shape[axis])):
        return x
    if not isinstance(x, np.ndarray):
        outside = np.where(slots < 0, x.shape[axis], slots)
        return jnp.take(x, outside, axis=axis, mode="fill", fill_value=0)
    out = np.take(x, slots, axis)
    out[(slice(None),) * axis + (slots < 0,)] = 0
    return out


def arrange_axes(x: Any, axes: tuple[str | None, ...], slots: Slots) -> Any:
    """Arrange every axis of an array that has slots."""
    for i, axis in enumerate(axes):
        if axis in slots:
            x = arrange(x, i, slots[axis])
    return x


def arrange_packed(leaf: QTensor, param: Param, slots: Slots, shards: int) -> QTensor | None:
    """Arrange a packed weight; None if its rows would have to be cut within what is packed together."""
    end = leaf.first + len(leaf.summed)
    outputs, (along, *inner) = (*param.axes[: leaf.first], *param.axes[end:]), param.axes[leaf.first : end]
    if any(axis in slots for axis in inner):
        return None
    parts = dict(leaf.parts)
    for i, axis in enumerate(outputs):
        if axis in slots:
            parts = {name: arrange(x, i, slots[axis]) if x.shape[i] > 1 else x for name, x in parts.items()}
    leaf = replace(leaf, parts=parts)
    return arrange_rows(leaf, slots[along], shards) if along in slots else leaf


def arrange_rows(leaf: QTensor, slots: np.ndarray, shards: int) -> QTensor | None:
    """Arrange what a weight sums over, in pieces of whole bytes and blocks; scales are made finer if need be."""
    size, unit = leaf.summed[0], prod(leaf.inner)
    if "index" in leaf.parts:
        return leaf if shards == 1 and np.array_equal(slots, np.arange(size)) else None
    # the last group of a row may be cut off
    group = gcd(leaf.scheme.group, size * unit) if isinstance(leaf.scheme, Grouped) else 1
    for share in (group, gcd(group, len(slots) // shards * unit), gcd(group, unit)):
        scheme, parts = leaf.scheme.finer(leaf.parts, share)
        runs = {name: x for name, x in parts.items() if name not in scheme.whole and x.shape[-1] > 1}
        piece = lcm(1, *(size // gcd(size, x.shape[-1]) for x in runs.values()))
        order = pieces_of(slots, piece) if len(slots) // shards % piece == 0 else None
        if order is not None:
            moved = {name: by_piece(x, order, size // piece) for name, x in runs.items()}
            return replace(leaf, scheme=scheme, parts=parts | moved)
    return None


def pieces_of(slots: np.ndarray, piece: int) -> np.ndarray | None:
    """Slots as slots of whole pieces; None if some piece is not moved as one."""
    runs = slots.reshape(-1, piece)
    first = runs[:, :1]
    moved = (runs == first + np.arange(piece)) & (first % piece == 0)
    return np.where(first < 0, -1, first // piece)[:, 0] if (moved | ((first < 0) & (runs < 0))).all() else None


def by_piece(x: Any, order: np.ndarray, pieces: int) -> Any:
    """Arrange the last axis, cut into equal pieces."""
    lead = x.shape[:-1]
    return arrange(x.reshape(*lead, pieces, -1), len(lead), order).reshape(*lead, -1)


def arrange_leaf(leaf: Any, param: Param, slots: Slots, shards: int) -> Any:
    """Arrange a leaf of any kind. A packed one becomes dense, with a warning, where it cannot be cut as it is."""
    match leaf:
        case QTensor(scheme=Tiles() as scheme) | QTensor(scheme=Ordered(rows=Tiles() as scheme)):
            warnings.warn(
                f"{scheme.name} in tiles for kernels that round is for one device; on a mesh it is multiplied exactly",
                stacklevel=2,
            )
            return arrange_leaf(plain_rows(leaf), param, slots, shards)
        case QTensor():
            leaf = plain_rows(leaf)
            packed = arrange_packed(leaf, param, slots, shards)
            if packed is None:
                warnings.warn(
                    f"{leaf.scheme.name} of shape {list(leaf.shape)} cannot be cut for {shards} devices within what is "
                    "packed together; it is decoded",
                    stacklevel=2,
                )
            return arrange_axes(leaf.dense(), param.axes, slots) if packed is None else packed
        case Lora(base):
            axes = lora_axes(param, leaf.row_B is not None)
            new = axes.map(leaf, arrange_leaf(base, param, slots, shards), lambda x, own: arrange_axes(x, own, slots))
            if new.bias is None or not any(axis in slots for axis in axes.a):
                return new
            # where inputs are split every device adds its part of the sum, and so a part of the bias
            return replace(new, bias=new.bias / shards)
        case Replaced(base):
            which, rows = replaced_axes(param, leaf.row_B is not None)
            parts = {"which": arrange_axes(leaf.which, which, slots), "rows": arrange_axes(leaf.rows, rows, slots)}
            return replace(leaf, base=arrange_leaf(base, param, slots, shards), **parts)
        case Apart(base, head):
            return Apart(arrange_leaf(base, param, slots, shards), arrange_leaf(head, turned(param), slots, shards))
        case Turned(base):
            return Turned(arrange_leaf(base, turned(param), slots, shards))
        case Chosen(options):
            return replace(leaf, options=tuple(arrange_leaf(option, param, slots, shards) for option in options))
        case _:
            return arrange_axes(leaf, param.axes, slots)


def prepare_leaf(spec: ModelSpec, path: str, param: Param, leaf: Any, shards: int) -> Any:
    """One leaf of `prepare`: the parameter at `path`, described by `param` in `abstract(spec)`.

    Host arrays stay on the host, arrays of jax on their device; of jax.ShapeDtypeStruct only the shape is worked out.

    Raises:
        ValueError: the leaf does not have the shape that the spec gives it.
    """
    if tuple(leaf.shape) != param.shape:
        prepared = tuple(leaf.shape) == prepared_shape(spec, path, param, shards)
        raise ValueError(
            f"{path}: found shape {tuple(leaf.shape)}, the spec asks {param.shape}"
            + (f"; it is prepared for {shards} shards already, pass the original" if prepared else "")
        )
    arranged = partial(arrange_leaf, param=param, slots=path_slots(spec, path, shards), shards=shards)
    if any(isinstance(part, jax.ShapeDtypeStruct) for part in jax.tree.leaves(leaf)):
        return jax.eval_shape(arranged, leaf)
    return arranged(leaf)


def prepared_shape(spec: ModelSpec, path: str, param: Param, shards: int) -> tuple[int, ...]:
    """The shape of a parameter after `prepare`."""
    slots = path_slots(spec, path, shards)
    return tuple(len(slots[axis]) if axis in slots else n for axis, n in zip(param.axes, param.shape, strict=True))


def prepare(spec: ModelSpec, params: Tree, shards: int) -> Tree:
    """Parameters of the same function in which every split axis is divisible by `shards`, a leaf at a time."""
    leaves = described(spec, params).items()
    return unflatten({path: prepare_leaf(spec, path, param, leaf, shards) for path, (leaf, param) in leaves})
