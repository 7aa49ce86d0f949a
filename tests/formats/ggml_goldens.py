"""Numbers that are hard to quantise, and what ggml makes of them: checksums of the stored rows, in ggml_goldens.json.

`python tests/formats/ggml_goldens.py libggml-base.so` writes them anew with ggml_quantize_chunk of a build of ggml
(made with the one of llama-cpp-python 0.3.36, x86-64 without fused multiply-add).
"""

import ctypes
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from forge_jax.quantization.ggml import GGML_TYPES, decode

GOLDENS = Path(__file__).with_name("ggml_goldens.json")
COLUMNS = 1536
ONLY_WEIGHED = ("IQ1_S", "IQ2_XXS", "IQ2_XS")
"""Types that ggml itself does not write without an importance matrix."""

OTHERWISE = {"IQ2_XXS": tuple(range(12)), "IQ3_S": (4,)}
"""Rows whose bytes differ from ggml's, which has a mistake there: in IQ2_XXS negative codes of its first guess of a
scale become 255, in IQ3_S the words after a group of zeros go one place too early. Ours must not be worse."""

NEVER = ("Q8_1", "Q8_K")
"""Types of activations, which ggml_quantize_chunk does not write."""


def numbers() -> np.ndarray:
    """One kind a row, float32 [12, COLUMNS]: RandomState gives the same numbers for ever."""
    rng = np.random.RandomState(0)
    x = rng.standard_normal((12, COLUMNS))
    x[1] = rng.laplace(size=COLUMNS) * 0.02
    x[2] *= np.exp(2 * rng.standard_normal(COLUMNS)) / 30
    x[3, rng.randint(0, COLUMNS, 8)] *= 300
    x[4, rng.uniform(size=COLUMNS) < 0.9] = 0
    x[4, 256:576] = 0
    x[5] = np.repeat(rng.standard_normal(COLUMNS // 32), 32)
    x[6] *= 1e-6
    x[7] *= 1e-13
    x[8] *= 500
    x[9] = np.abs(x[9]) + 1
    x[10] = rng.randint(-8, 8, COLUMNS) / 8
    x[11] = -0.03 + 0.001 * x[11]
    return x.astype(np.float32)


def importance() -> np.ndarray:
    """What the columns weigh, float32 [COLUMNS]: from nothing to a hundred times the mean."""
    return np.random.RandomState(1).gamma(0.2, size=COLUMNS).astype(np.float32)


def checksums(raw: np.ndarray) -> list[str]:
    """One of each row's bytes."""
    return [f"{zlib.crc32(row.tobytes()):08x}" for row in raw]


def error(name: str, raw: np.ndarray) -> list[float]:
    """The weighted root mean square error of each row, with three digits."""
    squared = (decode(name, raw).astype(np.float64) - numbers()) ** 2 * importance()
    return [float(f"{np.sqrt(x):.3g}") for x in squared.mean(axis=-1)]


def main(library: str) -> None:
    """Write GOLDENS."""
    ggml = ctypes.CDLL(library)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    x, weights = numbers(), importance()
    out: dict[str, dict[str, list[Any]]] = {"plain": {}, "weighed": {}, "errors": {}}
    for name, kind in GGML_TYPES.items():
        if kind.plain or name in NEVER:
            continue
        for given in ("weighed",) if name in ONLY_WEIGHED else ("plain", "weighed"):
            raw = np.zeros((len(x), kind.row_bytes(COLUMNS)), np.uint8)
            at = weights.ctypes.data if given == "weighed" else None
            ggml.ggml_quantize_chunk(kind.id, x.ctypes.data, raw.ctypes.data, 0, len(x), COLUMNS, at)
            out[given][name] = checksums(raw)
            if given == "weighed" and name in OTHERWISE:
                out["errors"][name] = error(name, raw)
    lines = json.dumps(out).replace("{", "{\n").replace("], ", "],\n").replace("}", "\n}")
    GOLDENS.write_text(lines + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
