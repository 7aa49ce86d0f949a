"""What several test files share: weights that are a function of a name, and a checkpoint that lives in memory."""

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from converters.checkpoint import Checkpoint, understand
from converters.source import TensorInfo
from forge_jax.params import Tree, flatten
from forge_jax.spec import ModelSpec

GOLDENS = Path(__file__).parent / "architectures" / "goldens"

# the part of the logits that a golden holds: these tokens of both rows, these ids of the vocabulary
TOKENS = (4, 11, 23)
VOCABULARY = slice(0, 160, 3)
SHAPE = (2, 24)


def weight(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Make up the float32 values of a tensor from its name: matrices keep the size of what they multiply.

    Vectors are near 1, biases near 0, an eps (a threshold below zero) near -1; a table of experts has whole numbers.
    Bits of Philox and nothing else, so that every NumPy gives the same.
    """
    raw = np.random.Philox(key=np.array([zlib.crc32(name.encode()), seed], np.uint64)).random_raw(prod(shape))
    if name.endswith("tid2eid"):  # experts of each token, all different
        first = (raw.reshape(shape)[:, :1] >> np.uint64(40)).astype(np.int64)
        return ((first + np.arange(shape[1])) % (2 * shape[1])).astype(np.float32)
    x = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24) - np.float32(0.5)
    x = (x * np.float32(12**0.5)).reshape(shape)  # variance 1
    if len(shape) > 1:
        return x * np.float32(shape[-1] ** -0.5)
    middle = next((value for end, value in (("bias", 0.0), ("eps", -1.0)) if name.endswith(end)), 1.0)
    return np.asarray(x * np.float32(0.3) + np.float32(middle))


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> jax.Array:
    """Numbers of the normal distribution, the same for a seed."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def token_ids(seed: int = 0, shape: tuple[int, int] = SHAPE, vocabulary: int = 160) -> np.ndarray:
    """Token ids that look random."""
    raw = np.random.Philox(key=np.array([seed, 1], np.uint64)).random_raw(prod(shape))
    return (raw % np.uint64(vocabulary)).astype(np.int32).reshape(shape)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collect the XLA compilations inside the block."""
    seen: list[str] = []

    def listen(event: str, duration: float, **kwargs: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class MemorySource:
    """A `TensorSource` over arrays in memory."""

    format = "safetensors"

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)
        self.tensors = {
            name: TensorInfo(name, x.shape, "F32", x.nbytes, Path("memory")) for name, x in self.arrays.items()
        }
        self.metadata: Mapping[str, Any] = {}

    def raw(self, name: str) -> np.ndarray:
        """The bytes of one tensor."""
        return np.frombuffer(self.arrays[name].tobytes(), np.uint8)

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes."""
        return raw.view(np.float32).reshape(self.tensors[name].shape)

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor."""
        return self.decode(name, self.raw(name))

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True)
class Golden:
    """A tiny model: its config, the tensors that its checkpoint holds, and some logits of the reference."""

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tokens: np.ndarray
    logits: np.ndarray
    """float32 [2, len(TOKENS), len(range(160)[VOCABULARY])]"""

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every tensor of the checkpoint."""
        return {name: weight(name, shape) for name, shape in self.shapes.items()}

    def understood(
        self, config: Mapping[str, Any] | None = None, arrays: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """The checkpoint, read by the converters; `config` and `arrays` replace its own."""
        source = MemorySource(self.arrays if arrays is None else arrays)
        return understand(Path(self.name), source, self.config if config is None else config, ())

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint as it is."""
        return self.understood()

    @property
    def spec(self) -> ModelSpec:
        """What its config says."""
        return self.checkpoint.spec

    @cached_property
    def params(self) -> Tree:
        """Its parameters on the device, float32."""
        return self.checkpoint.read(lambda _, values: jnp.asarray(values))

    def written(self) -> dict[str, np.ndarray]:
        """Every tensor, written again from the parameters."""
        leaves = {path: np.asarray(leaf) for path, leaf in flatten(self.params)}
        return {instance.theirs: instance.write(leaves.__getitem__) for instance in self.checkpoint.found}

    def to_write(self) -> set[str]:
        """The names of the tensors that are to be written: all but buffers and draft modules that are left unread."""
        used = {instance.theirs for instance in self.checkpoint.found}
        unread = self.checkpoint.family.unread
        return {name for name in self.shapes if name in used or not unread(self.spec, name)}


def write_golden(golden: Golden) -> Path:
    """Save a golden, a few kB."""
    path = GOLDENS / f"{golden.name}.npz"
    text = {"config": json.dumps(golden.config), "shapes": json.dumps(golden.shapes)}
    packed = {key: np.frombuffer(value.encode(), np.uint8) for key, value in text.items()}
    np.savez_compressed(path, **packed, tokens=golden.tokens.astype(np.uint8), logits=golden.logits)
    return path


def read_golden(name: str) -> Golden:
    """Load a golden by its name."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        config, shapes = (json.loads(file[key].tobytes()) for key in ("config", "shapes"))
        return Golden(
            name,
            config,
            {key: tuple(shape) for key, shape in shapes.items()},
            file["tokens"].astype(np.int32),
            file["logits"],
        )


def same(one: Any, other: Any) -> bool:
    """Whether two trees are the same, bit for bit."""
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )
