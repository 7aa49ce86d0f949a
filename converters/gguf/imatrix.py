"""Importance matrices as llama.cpp writes them: how large the input of each column of a matrix is on average.

Two formats: GGUF, with the sums of squares and the counts they are over, and the older imatrix.dat, a list of named
arrays. Knows neither models nor types; what is read is checked against what is left of the file.
"""

import io
from pathlib import Path

import numpy as np

from converters.gguf.header import MAGIC, MAX_TENSOR_NAME, Cursor
from converters.gguf.reader import open_gguf

SUMS, COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: str | Path) -> dict[str, np.ndarray]:
    """The mean square of the inputs of each column, by the GGUF name of the matrix.

    Returns:
        float32 [columns] or, for stacks of experts in a GGUF, [experts, columns]; the older format gives those one
        after another. Experts that no token went to have ones, as in llama.cpp.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no importance matrix, damaged, or has numbers that are no mean squares.
    """
    path = Path(path)
    with io.FileIO(path) as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
        found = {} if is_gguf else _read_dat(Cursor(file, path))
    found = _read_gguf(path) if is_gguf else found
    for name, values in found.items():
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"{path}: {name} has numbers that are negative, infinite or NaN, expected mean squares")
    return found


def _read_dat(cursor: Cursor) -> dict[str, np.ndarray]:
    """imatrix.dat: a count, then for each entry its name, how many calls its sums are over, and the sums.

    After that come a number of chunks and the name of the text, which may be missing.
    """
    cursor.count_code = "I"
    found: dict[str, np.ndarray] = {}
    for i in range(cursor.count("the number of entries", 12)):
        name = cursor.name(f"the name of entry {i}", MAX_TENSOR_NAME)
        calls = cursor.number("i", f"the number of calls of {name}")
        size = cursor.count(f"the number of values of {name}", 4)
        values = cursor.numbers("f4", size, f"the values of {name}")
        if name in found or not name or not size:
            raise cursor.error(f"entry {i} ({name!r}) is empty or there twice")
        with np.errstate(all="ignore"):  # what is no number is found by the caller
            found[name] = values / np.float32(max(calls, 1))
    if not found:
        raise cursor.error("no entries; this is neither a GGUF nor an imatrix.dat")
    return found


def _read_gguf(path: Path) -> dict[str, np.ndarray]:
    """A GGUF with two tensors for each matrix: sums of squares [matrices, columns] and counts [matrices, 1]."""
    source = open_gguf(path)
    try:
        names = [name.removesuffix(SUMS) for name in source.tensors if name.endswith(SUMS)]
        if not names:
            raise ValueError(f"{path}: no tensor's name ends in {SUMS}; this GGUF is no importance matrix")
        found = {}
        for name in names:
            sums, counts = (source.tensors.get(name + end) for end in (SUMS, COUNTS))
            if sums is None or counts is None or sums.dtype != "F32" or counts.dtype != "F32":
                raise ValueError(f"{path}: {name} needs {SUMS} and {COUNTS}, both F32")
            total, over = source.read(name + SUMS), np.rint(source.read(name + COUNTS)).reshape(-1, 1)
            if not over.size or not total.size or total.size % over.size:
                raise ValueError(f"{path}: {name} has {total.size} sums for {over.size} counts")
            if not (np.isfinite(over) & (over >= 0)).all():
                raise ValueError(f"{path}: {name} has counts that are negative, infinite or NaN")
            total = total.reshape(len(over), -1)
            with np.errstate(all="ignore"):
                mean = np.where(over > 0, total / over, np.float32(1)).astype(np.float32)
            found[name] = mean if len(over) > 1 else mean[0]
        return found
    finally:
        source.close()
