"""Packing the parameters of a model, a leaf at a time."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from forge_jax.lora import Lora, Replaced
from forge_jax.params import Param, Tree, abstract, flatten, unflatten
from forge_jax.quantization.packers import Packer
from forge_jax.quantization.policy import choose, row_length
from forge_jax.spec import ModelSpec
from forge_jax.tensor import Around, QTensor, dense


def quantize(
    spec: ModelSpec,
    params: Tree,
    scheme: str,
    *,
    policy: Mapping[str, str | None] | None = None,
    outside: str | None = "int8",
    importance: Mapping[str, np.ndarray] | None = None,
    fallback: str | None = None,
    requantize: bool = False,
) -> Tree:
    """The same parameters, packed: what is packed how is in `policy`, the names of schemes are in `packers`.

    Leaves are packed on the host, one after another, and go back to where they were: the new ones of arrays of jax are
    arrays of jax. Of adapted leaves the base is packed.

    Args:
        scheme: of the matrices of the layers, such as "int4-g64", "nf4" or "Q4_K".
        policy: patterns of paths and the schemes of what they match, None to leave it; the first that matches decides.
        outside: the scheme of the embedding, the head and whatever else stands outside of the layers, None to leave it.
        importance: how much the columns of a matrix matter, by its path: mean squares of what they are multiplied by,
            float32 [row], or [stacked, row] for experts. Schemes that search for scales weigh errors by it.
        fallback: the scheme of rows that are no whole number of a scheme's blocks.
        requantize: pack what is packed already from its decoded values.

    Raises:
        ValueError: as `policy.choose`; a leaf that is packed already, unless `requantize`; a leaf of another shape than
            the spec says or with numbers that are not finite; importance of other paths or shapes.
    """
    chosen = choose(spec, scheme, policy=policy, outside=outside, fallback=fallback)
    described, leaves = dict(flatten(abstract(spec))), dict(flatten(params))
    importance = importance or {}
    check(described, leaves, chosen, importance, requantize)

    def converted(path: str, leaf: Any) -> Any:
        if path not in chosen:
            return leaf
        return encode_leaf(leaf, described[path], chosen[path], importance.get(path), path)

    return unflatten({path: converted(path, leaf) for path, leaf in leaves.items()})


def check(
    described: Mapping[str, Param],
    leaves: Mapping[str, Any],
    chosen: Mapping[str, Packer],
    importance: Mapping[str, np.ndarray],
    requantize: bool,
) -> None:
    """Raise ValueError for what `quantize` cannot do, before it begins."""
    if odd := sorted(described.keys() ^ leaves.keys()):
        raise ValueError(f"quantize: parameters and spec differ in {len(odd)} leaves, for example {', '.join(odd[:5])}")
    for path in chosen:
        if any(isinstance(x, jax.Array) and not x.is_fully_replicated for x in jax.tree.leaves(leaves[path])):
            raise ValueError(f"quantize: {path} is split over devices; quantise parameters before they are split")
        if tuple(leaves[path].shape) != described[path].shape:
            raise ValueError(
                f"quantize: {path} is {list(leaves[path].shape)}, the spec asks {list(described[path].shape)}; "
                "quantise parameters before they are stacked or split over a mesh"
            )
    packed = [path for path in chosen if isinstance(base_of(leaves[path]), QTensor)]
    if packed and not requantize:
        raise ValueError(
            f"quantize: {len(packed)} parameters are packed already, for example {packed[0]} as "
            f"{base_of(leaves[packed[0]]).scheme.name}; errors would add up. Load with packed=False, or pass "
            "requantize=True to pack what they decode to"
        )
    for path, weights in importance.items():
        if path not in described:
            raise ValueError(f"quantize: importance is given for {path}, and there is no such parameter")
        param = described[path]
        shapes = ((row_length(param),), (*param.shape[: param.stacked], row_length(param)))
        if weights.dtype != np.float32 or weights.shape not in shapes:
            raise ValueError(
                f"quantize: importance of {path} is {weights.dtype} {list(weights.shape)}, expected float32 "
                f"{list(shapes[0])}" + (f" or {list(shapes[1])}" if param.stacked else "")
            )
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError(f"quantize: importance of {path} has numbers that are negative or not finite")


def base_of(leaf: Any) -> Any:
    """A leaf without what adapters put beside it."""
    return base_of(leaf.base) if isinstance(leaf, Lora | Replaced) else leaf


def encode_leaf(
    w: Any, param: Param, packer: Packer, importance: np.ndarray | None = None, path: str = "a weight"
) -> Any:
    """Pack one weight: rows along the axes that are summed over, the last one for a table.

    Raises:
        ValueError: numbers that are not finite, or that the scheme cannot hold.
    """
    if isinstance(w, Lora | Replaced):
        return replace(w, base=encode_leaf(w.base, param, packer, importance, path))
    if isinstance(w, Around):
        raise ValueError(f"quantize: {path} is adapted in more ways than one; quantise the parameters before `attach`")
    dtype = w.dtype if isinstance(w, QTensor) else str(w.dtype)
    places = [part.sharding for part in jax.tree.leaves(w) if isinstance(part, jax.Array)]
    rows, inner, trailing = rows_of(np.asarray(dense(w)), param)
    outputs, stacked = rows.shape[:-1], rows.shape[: param.stacked]
    matrices = rows.reshape(*stacked, -1, rows.shape[-1])
    found = [pack(matrices[i], packer, weight_at(importance, i), path) for i in np.ndindex(stacked)]
    parts = {}
    for name in found[0]:
        part = np.stack([one[name] for one in found])
        alike = part.shape[1] != matrices.shape[-2]  # one for all rows of a matrix
        part = part.reshape(
            *stacked, *((1,) * len(outputs[param.stacked :]) if alike else outputs[param.stacked :]), -1
        )
        parts[name] = jax.device_put(part, places[0]) if places else part
    return QTensor(parts, packer.scheme, inner, trailing, dtype)


def pack(rows_RN: np.ndarray, packer: Packer, weight_N: np.ndarray | None, path: str) -> dict[str, np.ndarray]:
    """The parts of one matrix; ValueError as `encode_leaf`."""
    wide = rows_RN.astype(np.float32)
    if not np.isfinite(wide).all():
        raise ValueError(f"quantize: {path} has NaN or infinite numbers; {packer.name} holds none")
    try:
        return packer.pack(wide, weight_N)
    except ValueError as error:
        raise ValueError(f"quantize: {path}: {error}") from None


def weight_at(importance: np.ndarray | None, index: tuple[int, ...]) -> np.ndarray | None:
    """The importance of one of the stacked matrices."""
    return importance if importance is None or importance.ndim == 1 else importance[index]


def rows_of(w: Any, param: Param) -> tuple[Any, tuple[int, ...], int]:
    """The rows [*outputs, summed] of a weight, and how a `QTensor` says where they lie: (inner, trailing)."""
    summed = param.summed or (w.ndim - 1,)
    outputs = tuple(axis for axis in range(w.ndim) if axis not in summed)
    rows = w.transpose(*outputs, *summed).reshape(*(w.shape[axis] for axis in outputs), -1)
    return rows, tuple(w.shape[axis] for axis in summed[1:]), w.ndim - 1 - summed[-1]
