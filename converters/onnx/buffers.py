"""Stored numbers that are no parameters: what an exporter has computed ahead and left in the graph.

They are recognised by what the graph does with them, and held against the config: frequencies of rotary positions,
their cosines and sines, the slopes of ALiBi, masks. What contradicts the config is an error.
"""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import ml_dtypes
import numpy as np

from converters.files import quote
from converters.onnx.data import FLOATS
from converters.onnx.graph import SIZES, Graph
from converters.onnx.uses import OPERANDS
from converters.rope import frequencies
from forge_jax.spec import Alibi, LongRope, ModelSpec, Rope, Yarn

WEIGHTS = (*FLOATS, "U8", "I8", "U4", "I4", "U2", "I2")
NEAR = {"F32": 3e-5, "F64": 3e-5, "F16": 2e-3, "BF16": 1.6e-2}
"""How far a stored number may be from the config's, by type: relative, and absolute for a cosine or sine."""
HALVES = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""Models that were made half as precise before an export have their buffers rounded, whatever these are stored as."""
NEUTRAL = {
    "Add": {0: "0", 1: "0"},
    "LayerNormalization": {1: "1", 2: "0"},
    "Mul": {0: "1", 1: "1"},
    "RMSNormalization": {1: "1"},
    "SimplifiedLayerNormalization": {1: "1"},
    "com.microsoft.MoE": {3: "0", 5: "0"},
    "com.microsoft.QMoE": {4: "0", 7: "0"},
}
"""By operator and operand, the number that changes nothing."""
MOST_IDLE = 1 << 20
MOST_OPERANDS = 15
MASKED = -1e30
MOST_VALUES = 300  # at a step from a frequency to its cosine
LARGEST = 1 << 24  # numbers of a table or a mask
FAR = 12  # nodes from a frequency to its cosine
MOST_ROWS = 512  # of a table of cosines that are checked


class Buffers:
    """What a graph holds besides weights, held against what the config says."""

    def __init__(self, graph: Graph, spec: ModelSpec) -> None:
        self.graph, self.spec = graph, spec
        self.ropes = list(dict.fromkeys(parts_of(spec, Rope)))
        self.alibis = list(dict.fromkeys(parts_of(spec, Alibi)))

    def unexplained(self, used: set[str]) -> Iterator[str]:
        """Tensors that could be weights, belong to none, and are nothing that the config explains.

        Raises:
            ValueError: rotary frequencies, or tables of them, that are not those of the config.
        """
        for name, tensor in self.graph.tensors.items():
            if name in used or name not in self.graph.users or np.prod(tensor.shape, dtype=float) <= 1:
                continue
            if self.graph.place(name).kind.name in WEIGHTS and not self.explained(name):
                yield name

    def explained(self, name: str) -> bool:
        """Whether a tensor is what the config asks for anyway.

        Raises:
            ValueError: it is rotary, and says something else than the config.
        """
        kind = self.graph.place(name).kind.name
        if kind not in FLOATS or np.prod(self.graph.tensors[name].shape, dtype=float) > LARGEST:
            return False
        x = self.graph.read(name)
        x = x.astype(np.float32) if x.dtype.itemsize < 4 else x
        near = nearness(kind, x)
        if is_mask(x) or self.is_slope(x, near) or idle(self.graph, name) or self.is_choice(name, x):
            return True
        if (x.size < MOST_IDLE and np.array_equal(x.reshape(-1), np.arange(x.size))) or self.is_table(x, near):
            return True
        turns = self.reaches(name, ("Cos", "Sin"))
        if turns and not self.is_frequency(x, near):
            raise ValueError(
                f"{self.graph.path}: {quote(name)} are rotary frequencies {x.reshape(-1)[:3]}…, "
                f"the config asks for {[frequencies(rope)[:3] for rope in self.ropes]}; one of the two is wrong"
            )
        return turns

    def reaches(self, name: str, ops: tuple[str, ...]) -> bool:
        """Whether a value flows into one of these operations within a few nodes."""
        values, seen = {name}, {name}
        for _ in range(FAR):
            if len(values) > MOST_VALUES:
                break
            users = (node for value in values for node in self.graph.users.get(value, [])[:MOST_VALUES])
            nodes = [node for node in users if node.op not in SIZES]
            if any(node.op in ops for node in nodes):
                return True
            values = {value for node in nodes for value in node.outputs if value} - seen
            seen |= values
        return False

    def is_choice(self, name: str, x: np.ndarray) -> bool:
        """Whether every number is 0 or 1, and nothing is multiplied by a matrix of them or looked up in it."""
        users = {node.op for node in self.graph.users.get(name, [])}
        return x.ndim > 1 and bool(np.all((x == 0) | (x == 1))) and not users & set(OPERANDS) - {"Add", "Mul"}

    def is_frequency(self, x: np.ndarray, near: float) -> bool:
        """Whether these are the frequencies of a rope of the config, once, or once for each feature of a pair."""
        flat = x.reshape(-1)
        for rope in self.ropes:
            for freq in all_frequencies(rope):
                for form in (freq, np.concatenate([freq, freq]), np.repeat(freq, 2)):
                    if form.shape == flat.shape and np.allclose(flat, form, near, 0):
                        return True
        return False

    def is_table(self, x: np.ndarray, near: float) -> bool:
        """Whether these are positions times frequencies, or cosines or sines of them, in one of the usual layouts."""
        table = x.reshape(-1, x.shape[-1])[:MOST_ROWS]
        position = np.arange(len(table))[:, None]
        for rope in self.ropes:
            for freq in all_frequencies(rope):
                angle = position * freq
                for one in (angle, np.cos(angle) * amplitude(rope), np.sin(angle) * amplitude(rope)):
                    for form in (one, np.concatenate([one, one], -1), np.repeat(one, 2, -1)):
                        if form.shape == table.shape and np.allclose(table, form, 0, 10 * near + 1e-3):
                            return True
                both = np.concatenate([np.sin(angle), np.cos(angle)], -1)
                if both.shape == table.shape and np.allclose(table, both, 0, 10 * near + 1e-3):
                    return True
        return False

    def is_slope(self, x: np.ndarray, near: float) -> bool:
        """Whether these are the slopes of ALiBi, or slopes times positions, for rows of heads."""
        for slopes in {alibi.slopes for alibi in self.alibis}:
            if x.size == len(slopes) and np.allclose(np.abs(x.reshape(-1)), np.abs(slopes), near, 0):
                return True
            if x.ndim > 1 and np.prod(x.shape[:-1]) % len(slopes) == 0:
                rows = x.reshape(-1, len(slopes), x.shape[-1])
                if np.allclose(np.abs(rows), np.outer(np.abs(slopes), np.arange(x.shape[-1])), near, near):
                    return True
        return False


def nearness(kind: str, x: np.ndarray) -> float:
    """How far numbers of a type may be from the config's; those that fit a smaller type may have been rounded to it."""
    with np.errstate(over="ignore"):
        fits = [small for small, dtype in HALVES.items() if np.array_equal(x, x.astype(dtype))]
    return max(NEAR[each] for each in (kind, *fits))


def is_mask(x: np.ndarray) -> bool:
    """Whether every number says "seen" or "not seen"."""
    return bool(np.all((x == 0) | (x == 1) | (x <= MASKED)) and np.any(x <= MASKED))


def idle(graph: Graph, name: str) -> bool:
    """Whether a tensor is a scale of ones or a bias of zeros wherever it is used, and so changes nothing."""
    nodes = graph.users.get(name, [])
    if any(node.op not in NEUTRAL or len(node.inputs) > MOST_OPERANDS for node in nodes):
        return False
    roles = {NEUTRAL[node.op].get(node.inputs.index(name), "?") for node in nodes}
    if len(roles) != 1 or "?" in roles or np.prod(graph.tensors[name].shape, dtype=float) > MOST_IDLE:
        return False
    return bool(np.all(graph.read(name) == int(roles.pop())))


def all_frequencies(rope: Rope) -> list[np.ndarray]:
    """The frequencies of a rope, and those of longer texts where they are others."""
    long = isinstance(rope.scaling, LongRope)
    return [frequencies(rope), frequencies(rope, long=True)] if long else [frequencies(rope)]


def amplitude(rope: Rope) -> float:
    """What cosines and sines are multiplied by."""
    return rope.scaling.attention_factor if isinstance(rope.scaling, Yarn | LongRope) else 1.0


def parts_of(value: Any, kind: type) -> Iterator[Any]:
    """Everything of a type inside a spec."""
    if isinstance(value, kind):
        yield value
    elif is_dataclass(value):
        for item in vars(value).values():
            yield from parts_of(item, kind)
    elif isinstance(value, tuple):
        for item in dict.fromkeys(value):
            yield from parts_of(item, kind)
