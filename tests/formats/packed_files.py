"""A checkpoint in memory, and packing by the plainest formula: whole numbers of Python, one bit after another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.packed import Packed, packing_of, unpacked
from converters.packed.write import stored_parts
from converters.safetensors_file import dtype_name
from converters.source import TensorInfo
from forge_jax.tensor import QTensor

WHERE = Path("/models/m.safetensors")


class Memory:
    """A source of arrays."""

    format = "safetensors"

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays, self.metadata = arrays, {}
        self.tensors = {n: TensorInfo(n, a.shape, dtype_name(a.dtype), a.nbytes, WHERE) for n, a in arrays.items()}

    def raw(self, name: str) -> np.ndarray:
        return np.frombuffer(self.arrays[name].tobytes(), np.uint8)

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        return raw.view(self.arrays[name].dtype).reshape(self.arrays[name].shape)

    def read(self, name: str) -> np.ndarray:
        return self.decode(name, self.raw(name))

    def close(self) -> None:
        pass


def dense(arrays: Mapping[str, np.ndarray], said: Any) -> Packed:
    """The checkpoint as it is seen through its quantization_config."""
    source, config = unpacked(WHERE, Memory(arrays), {"quantization_config": said, "hidden_size": 8}, ())
    assert config == {"hidden_size": 8}
    assert isinstance(source, Packed)
    return source


def assert_written_again(source: Packed, arrays: Mapping[str, np.ndarray]) -> None:
    """Every weight that stays packed is made of the same stored tensors again, bit for bit."""
    packing, count = packing_of(source, ()), 0
    for name, weight in source.weights.items():
        w = source.packed(name, source.raw(name))
        if isinstance(w, QTensor):
            for part, again in stored_parts(weight, w, packing).items():
                assert (again.dtype, again.shape) == (arrays[part].dtype, arrays[part].shape), part
                assert again.tobytes() == arrays[part].tobytes(), part
                count += 1
    assert count


def module(name: str, **parts: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of one module."""
    return {f"{name}.{part}": array for part, array in parts.items()}


def stream(values: np.ndarray, bits: int) -> np.ndarray:
    """int32 words [..., n] of unsigned values [..., count], each value in the next bits."""
    rows = values.reshape(-1, values.shape[-1])
    count = -(-values.shape[-1] * bits // 32)
    words = [sum(int(v) << (bits * i) for i, v in enumerate(row)).to_bytes(4 * count, "little") for row in rows]
    return np.frombuffer(b"".join(words), np.int32).reshape(*values.shape[:-1], count)
