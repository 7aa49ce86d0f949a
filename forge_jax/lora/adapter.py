"""An adapter as a small pytree, and the pure functions that put one, or several at once, on the parameters of a model.

Paths are those of the parameters, "layers.0.attention.q"; "head" stands for how a tied embedding reads out, "embed" for
what it gives when tokens are looked up. Arrays may be of jax or of NumPy. Knows no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from forge_jax.lora.leaves import NONE, Apart, Chosen, Lora, Replaced, Turned, mapped
from forge_jax.params import Tree, flatten, unflatten
from forge_jax.tensor import Around, QTensor, Weight, dense

Factors = tuple[Array, Array, Array | None, Array | None]
"""a, b (times its scale), gain and bias of one update."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Update:
    """The low-rank update of one weight: scale * a b, see `Lora` for the shapes.

    magnitude: the length that every output's weights have after the update (DoRA, arXiv:2402.09353), [*trailing].
    bias: what b adds to the low-rank product, scaled with it, [*trailing].
    stacked: how many axes number weights (experts).
    """

    a: Any
    b: Any
    magnitude: Any = None
    bias: Any = None
    scale: float = field(metadata={"static": True}, default=1.0)
    stacked: int = field(metadata={"static": True}, default=0)

    @property
    def rank(self) -> int:
        """How many directions it has."""
        return self.a.shape[-1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """Rows [K, D] that replace those of some ids [K] of a table."""

    ids: Any
    rows: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapter:
    """What was trained beside a model: updates of weights, parameters replaced whole, rows of tables replaced."""

    updates: dict[str, Update] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Tokens] = field(default_factory=dict)

    def paths(self) -> list[str]:
        """Every parameter that it changes."""
        return sorted({*self.updates, *self.values, *self.tokens})

    def __repr__(self) -> str:
        """How much of what."""
        ranks = sorted({update.rank for update in self.updates.values()})
        kinds = [f"{len(self.updates)} updates of rank {', '.join(map(str, ranks))}" if ranks else ""]
        kinds += [f"{len(self.values)} parameters replaced" if self.values else ""]
        kinds += [f"{sum(len(t.ids) for t in self.tokens.values())} tokens replaced" if self.tokens else ""]
        return f"Adapter({', '.join(kind for kind in kinds if kind)})"


# ------------------------------------------------------------------------------------------------ one weight
def gain_of(base: Weight, a: Array, b: Array, update: Update) -> Array:
    """What DoRA multiplies each output with: its magnitude by the length of its updated weights, which is no variable
    of training (arXiv:2402.09353, section 4.3)."""
    whole = Lora(dense(base).astype(jnp.float32), a.astype(jnp.float32), b.astype(jnp.float32), stacked=update.stacked)
    first = update.stacked
    axes = tuple(range(first, update.a.ndim - 1))
    length = jnp.sqrt(jnp.square(whole.dense()).sum(axes))
    return jnp.asarray(update.magnitude).astype(jnp.float32) / jax.lax.stop_gradient(length)


def check_update(path: str, base: Weight, update: Update) -> None:
    """Raise ValueError if an update does not fit its weight."""
    s, a, b = update.stacked, update.a.shape, update.b.shape
    if (*a[:-1], *b[s + 1 :]) != tuple(base.shape) or (*a[:s], a[-1]) != b[: s + 1]:
        raise ValueError(
            f"adapter: {path} is {list(base.shape)}, the update's factors are {list(a)} and {list(b)}; it belongs to "
            "another model"
        )


def of_update(path: str, base: Weight, update: Update) -> Factors:
    """The factors of an update of a weight."""
    check_update(path, base, update)
    a, b = jnp.asarray(update.a), jnp.asarray(update.b)
    b = b * jnp.asarray(update.scale, b.dtype)
    gain = None if update.magnitude is None else gain_of(base, a, b, update)
    return a, b, gain, None if update.bias is None else jnp.asarray(update.bias) * update.scale


def check_tokens(path: str, table: Weight, tokens: Tokens) -> None:
    """Raise ValueError if replaced rows do not fit their table [V, D]."""
    size, width = table.shape
    if tokens.rows.shape != (tokens.ids.shape[0], width):
        raise ValueError(f"adapter: {path} has rows of {width}, those of its tokens are {list(tokens.rows.shape)}")
    if not isinstance(tokens.ids, Tracer) and (odd := [int(i) for i in np.asarray(tokens.ids) if not 0 <= i < size]):
        raise ValueError(f"adapter: {path} has {size} rows, and the adapter replaces number {odd[0]}")


def replaced(path: str, table: Weight, every: Sequence[Tokens | None], row_B: Array | None = None) -> Weight:
    """A table [V, D] with the rows of its only adapter; or, with `row_B`, of that which each row of a batch has, and
    its own rows after the last."""
    some = [tokens for tokens in every if tokens is not None]
    if not some:
        return table
    for tokens in some:
        check_tokens(path, table, tokens)
    most = max(tokens.ids.shape[0] for tokens in some)
    which = [jnp.zeros(table.shape[0], jnp.int32)] * (len(every) + 1)
    rows = [jnp.zeros((most, table.shape[1]))] * (len(every) + 1)
    for i, tokens in enumerate(every):
        if tokens is not None:
            count = tokens.ids.shape[0]
            which[i] = which[i].at[jnp.asarray(tokens.ids)].set(jnp.arange(1, count + 1, dtype=jnp.int32))
            rows[i] = jnp.pad(jnp.asarray(tokens.rows).astype(jnp.float32), ((0, most - count), (0, 0)))
    if row_B is None:
        return Replaced(table, which[0], rows[0])
    return Replaced(table, jnp.stack(which), jnp.stack(rows), row_B)


def with_tokens(path: str, leaf: Weight, adapters: Sequence[Adapter], row_B: Array | None = None) -> Weight:
    """A leaf with the rows that adapters replace. A head [D, V] is a table read the other way."""
    every = [adapter.tokens.get(path) for adapter in adapters]
    if path != "head" or all(tokens is None for tokens in every):
        return replaced(path, leaf, every, row_B)
    return Turned(replaced(path, leaf.base if isinstance(leaf, Turned) else Turned(leaf), every, row_B))


def factors(path: str, base: Weight, adapter: Adapter) -> Factors | None:
    """What an adapter adds to one weight.

    Raises:
        ValueError: it does not fit, or an update and replaced rows of one table.
    """
    update = adapter.updates.get(path)
    if update is not None and path in adapter.tokens:
        raise ValueError(f"adapter: {path} has an update and replaced rows; which of them comes first is unknown")
    return None if update is None else of_update(path, base, update)


def value_of(path: str, base: Weight, adapter: Adapter) -> Weight:
    """What a parameter is before updates: replaced, or as it was."""
    if path not in adapter.values:
        return base
    value = jnp.asarray(adapter.values[path])
    if value.shape != tuple(base.shape):
        raise ValueError(f"adapter: {path} is {list(base.shape)}, the adapter's is {list(value.shape)}")
    return value


# ------------------------------------------------------------------------------------------------ whole trees
def attach(params: Tree, adapter: Adapter | Sequence[Adapter]) -> Tree:
    """The parameters with an adapter beside them; `params` stay as they are, and are the way back.

    Of several adapters, each row of a batch has one, see `choose_adapters`; none until then. Differentiable with
    respect to the adapter: training is a gradient through this function.

    Raises:
        ValueError: the adapter is for another model, or (several) changes weights that rows cannot have apart.
    """
    if "stacked" in params:
        raise ValueError("attach: the layers are stacked; put the adapter on before `stack`, or `unstack` first")
    several = not isinstance(adapter, Adapter)
    adapters = list(adapter) if several else [adapter]
    leaves = dict(flatten(params))
    tied = "head" not in leaves
    touched = sorted({path for each in adapters for path in each.paths()})
    if unknown := [path for path in touched if path not in leaves and not (tied and path == "head")]:
        raise ValueError(f"adapter: the model has no {', '.join(unknown[:5])}; it belongs to another model")
    put = among if several else alone
    if tied and {"embed", "head"} & set(touched):
        table = leaves["embed"]
        head = table.head if isinstance(table, Apart) else Turned(table)
        table = table.base if isinstance(table, Apart) else table
        leaves["embed"] = Apart(put("embed", table, adapters), put("head", head, adapters))
        touched = [path for path in touched if path not in ("embed", "head")]
    return unflatten(leaves | {path: put(path, leaves[path], adapters) for path in touched})


def alone(path: str, leaf: Weight, adapters: Sequence[Adapter]) -> Weight:
    """A leaf with its only adapter."""
    (adapter,) = adapters
    base = with_tokens(path, value_of(path, leaf, adapter), adapters)
    found = factors(path, base, adapter)
    return base if found is None else Lora(base, *found, stacked=stacked_of(path, adapter))


def stacked_of(path: str, adapter: Adapter) -> int:
    """How many axes of a weight number weights of a kind."""
    return adapter.updates[path].stacked if path in adapter.updates else 0


def among(path: str, leaf: Weight, adapters: Sequence[Adapter]) -> Weight:
    """A leaf with several adapters, of which each row chooses."""
    if any(stacked_of(path, adapter) for adapter in adapters):
        raise ValueError(
            f"adapters by row: {path} is a stack of weights (experts take tokens of all rows together), so an update "
            "of it cannot differ from row to row; run the rows with each adapter by themselves"
        )
    none, bases = jnp.full((1,), NONE), [value_of(path, leaf, adapter) for adapter in adapters]
    options = [leaf, *(base for base in bases if base is not leaf)]
    if len(options) > 1:
        at = {id(option): i for i, option in enumerate(options)}
        leaf = Chosen(tuple(options), jnp.array([*(at[id(base)] for base in bases), 0]), none)
    leaf = with_tokens(path, leaf, adapters, none)
    every = [factors(path, base, adapter) for base, adapter in zip(bases, adapters, strict=True)]
    if all(found is None for found in every):
        return leaf
    return Lora(leaf, *pooled(every), row_B=none)


def pooled(every: Sequence[Factors | None]) -> Factors:
    """The factors of all adapters along a new axis, ranks padded with zeros; after the last comes what changes
    nothing."""
    like = next(found for found in every if found is not None)
    rank = max(found[0].shape[-1] for found in every if found is not None)
    a, b, gains, biases = [], [], [], []
    for found in (*every, None):
        mine, gain, bias = (like[0][..., :0], like[1][:0]), None, None
        if found is not None:
            mine, gain, bias = found[:2], *found[2:]
        more = rank - mine[0].shape[-1]
        a.append(jnp.pad(mine[0], [(0, 0)] * (like[0].ndim - 1) + [(0, more)]).astype(like[0].dtype))
        b.append(jnp.pad(mine[1], [(0, more)] + [(0, 0)] * (like[1].ndim - 1)).astype(like[1].dtype))
        gains.append(gain)
        biases.append(bias)
    outputs = like[1].shape[1:]
    return jnp.stack(a), jnp.stack(b), filled(gains, 1.0, outputs), filled(biases, 0.0, outputs)


def filled(given: Sequence[Array | None], other: float, shape: tuple[int, ...]) -> Array | None:
    """Arrays of a shape along a new axis, `other` where there is none; None if there is none at all."""
    if all(each is None for each in given):
        return None
    return jnp.stack([jnp.full(shape, other) if each is None else each.astype(jnp.float32) for each in given])


def is_leaf(leaf: Any) -> bool:
    """Whether trees of parameters end here."""
    return isinstance(leaf, Around | QTensor)


def choose_adapters(params: Tree, adapters: Sequence[int] | np.ndarray | Array) -> Tree:
    """The parameters for a batch whose row i has the adapter of number adapters[i], -1 for none.

    The numbers are those of the list given to `attach`. A traced array is taken as it is.

    Raises:
        ValueError: there is no adapter of a number, or the parameters have none to choose among.
    """
    if not isinstance(adapters, Tracer):
        count = pool_size(params)
        if odd := [int(i) for i in np.asarray(adapters) if not NONE <= i < count]:
            raise ValueError(f"adapters: there is none of number {odd[0]}; expected -1 (none) to {count - 1}")
    row_B = jnp.asarray(adapters, jnp.int32)
    return jax.tree.map(lambda leaf: mapped(leaf, row_B), params, is_leaf=is_leaf)


def pool_size(params: Tree) -> int:
    """Among how many adapters rows can choose.

    Raises:
        ValueError: none.
    """
    waiting = jax.tree.leaves(params, is_leaf=is_leaf)
    while waiting:
        match waiting.pop():
            case Lora(a=a, row_B=row_B) if row_B is not None:
                return a.shape[0] - 1
            case Chosen(table=table):
                return table.shape[0] - 1
            case Replaced(which=which, row_B=row_B) if row_B is not None:
                return which.shape[0] - 1
            case Apart(base, head):
                waiting += [base, head]
            case Lora(base) | Replaced(base) | Turned(base):
                waiting.append(base)
            case _:
                pass
    raise ValueError("adapters: the parameters have none to choose among; `attach` a list of them first")


def merge(params: Tree) -> Tree:
    """The parameters with every update added to its weight: plain arrays, as fast as the base. Packed weights that
    were adapted are decoded.

    The parameters before `attach` are the way back, bit for bit. A tied embedding that was adapted stays `Apart`.

    Raises:
        ValueError: rows have different adapters, or an update has a bias and the model no place for it.
    """
    leaves = dict(flatten(params))
    biases: dict[str, Array] = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, Lora) and leaf.bias is not None and leaf.row_B is None:
            if f"{path}_bias" not in leaves:
                raise ValueError(
                    f"merge: the update of {path} has a bias, and the model has none there; keep it attached"
                )
            old = dense(leaves[f"{path}_bias"])
            biases[f"{path}_bias"] = old + leaf.bias.astype(old.dtype)
    return unflatten({path: merged(leaf) for path, leaf in (leaves | biases).items()})


def merged(leaf: Weight) -> Weight:
    """One leaf without adapters."""
    match leaf:
        case Apart(base, head):
            return Apart(merged(base), dense(head))
        case Lora(base, a, b, gain, stacked=stacked) if leaf.row_B is None:
            return Lora(merged(base), a, b, gain, stacked=stacked).dense()
        case Lora() | Replaced() | Turned() | Chosen():
            return leaf.dense()
        case _:
            return leaf
