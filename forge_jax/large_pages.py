"""Packed weights on a CPU in pages of 2 MB, where Linux has them.

Every token reads all weights, and for pages of 4 KB a processor looks up 500 times as many addresses.
"""

from typing import Any

import jax
import numpy as np

PIECE = 1 << 26  # bytes; numpy asks for large pages for arrays of 4 MB and more
LINE = 64  # what JAX shares host arrays from; others it copies


class LargePages:
    """Puts leaves on the default device, a CPU, one behind another in pieces of memory that are given back when all
    leaves in them are."""

    def __init__(self) -> None:
        self.piece, self.used = np.empty(0, np.uint8), 0

    def put(self, leaf: Any) -> Any:
        """The leaf as jax.Arrays, which share memory with nothing that the caller has."""
        return jax.device_put(jax.tree.map(self.copied, leaf))

    def copied(self, values: np.ndarray) -> np.ndarray:
        """A host array at the next place."""
        start = -(-self.used // LINE) * LINE
        if start + values.nbytes > self.piece.size:
            whole = np.empty(max(PIECE, values.nbytes) + LINE, np.uint8)
            self.piece, start = whole[-whole.ctypes.data % LINE :], 0
        self.used = start + values.nbytes
        place = self.piece[start : self.used].view(values.dtype).reshape(values.shape)
        place[...] = values
        return place
