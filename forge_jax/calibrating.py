"""A model in fewer bits with the help of a text, and what that text says of its weights. Part of the front."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from converters.gguf.importance import write_imatrix
from forge_jax import calibration
from forge_jax.calibration import Report, matrices
from forge_jax.forge import Forge
from forge_jax.loading import Model
from forge_jax.params import abstract, flatten
from forge_jax.quantization.gptq import Gptq
from forge_jax.quantization.grid import Grid
from forge_jax.stacking import stacked
from forge_jax.tensor import QTensor

Text = str | Sequence[str] | Sequence[int] | np.ndarray
"""A text, several, or ids, which are taken as they are."""
BATCH = 4  # windows that are computed together


def calibrate(
    model: Model | Forge,
    text: Text,
    method: Literal["gptq", "awq"] = "gptq",
    *,
    bits: int = 4,
    group: int = 128,
    symmetric: bool = False,
    act_order: bool = False,
    static_groups: bool = False,
    damping: float = 0.01,
    samples: int = 128,
    length: int = 512,
) -> Model:
    """The model with the matrices of its layers in integers of a few bits, chosen so that a text is computed alike.

    The embedding, the head and what chooses experts stay as they are.

    Args:
        text: like what the model will be used on. It is cut into windows.
        method: "gptq" (arXiv:2210.17323) makes up for the error of an input with those that are rounded after it, "awq"
            (arXiv:2306.00978) scales inputs that matter, in the norms and weights before them, and clips weights.
        bits: 2, 3, 4 or 8.
        group: how many numbers of a row share a scale; 0: all.
        symmetric: no zeros are stored, codes have the middle one.
        act_order: gptq rounds the largest inputs first.
        static_groups: with act_order, groups are those of neighbouring inputs all the same.
        damping: of gptq, a part of the mean square of the inputs.
        samples: at most so many windows are read.
        length: tokens of a window.

    Raises:
        ValueError: values out of range, an option that the method does not have, a text too short for a window, or one
            for which the model gives no numbers.
    """
    model = own(model)
    grid = Grid(bits, group, symmetric)
    batches = windows(model, text, samples, length)
    if method == "gptq":
        how = Gptq(grid, act_order, static_groups, damping)
        params, report = calibration.gptq(model.spec, model.params, batches, how)
    elif method == "awq":
        if act_order or static_groups or damping != 0.01:
            raise ValueError("calibrate: act_order, static_groups and damping are options of gptq; awq has no order")
        params, report = calibration.awq(model.spec, model.params, batches, grid)
    else:
        raise ValueError(f"calibrate: method = {method!r}; expected gptq or awq")
    out = replace(model, params=params, packing=None)
    tell(out, report)
    return out


def importance(
    model: Model | Forge, text: Text, *, samples: int = 128, length: int = 512, file: str | Path | None = None
) -> dict[str, np.ndarray]:
    """The mean square of the inputs of every matrix of the layers on a text, by path: float32 [n], or [experts, n].

    Experts that no token went to have ones. The text is read as by `calibrate`.

    Args:
        file: also written there, as llama.cpp's imatrix.

    Raises:
        ValueError: values out of range, a text too short for a window, or a file for a model that llama.cpp does not
            know.
    """
    model = own(model)
    batches = windows(model, text, samples, length)
    squares, counts = calibration.squares(model.spec, model.params, batches)
    if file is not None:
        kind, chunks = str(model.config.get("model_type")), sum(map(len, batches))
        write_imatrix(file, model.spec, kind, squares, counts, chunks=chunks, length=length)
    return calibration.means(squares, counts)


def own(model: Model | Forge) -> Model:
    """The model, whole and layer by layer.

    Raises:
        ValueError: it is split over devices, or its layers are stacked.
    """
    model = model.model if isinstance(model, Forge) else model
    if model.mesh is not None or stacked(model.params):
        found = "its layers are stacked" if model.mesh is None else "it is split over devices"
        raise ValueError(f"calibrate: {model.path}: {found}; load it without a mesh, or unstack it")
    return model


def windows(model: Model, text: Text, samples: int, length: int) -> list[np.ndarray]:
    """Windows of a text as batches of ids [B, length]; each begins with the token that the tokenizer puts first.

    Raises:
        ValueError: values out of range, no tokenizer, ids that there are not, or not even one window.
    """
    if samples < 1 or not 2 <= length <= model.spec.max_seq_len:
        raise ValueError(
            f"calibrate: samples = {samples}, length = {length}; expected at least 1, and 2 to "
            f"{model.spec.max_seq_len}, the context of the model"
        )
    ids, bos = ids_of(model, text)
    step = length - len(bos)
    count = min(samples, len(ids) // step)
    if count == 0:
        raise ValueError(f"calibrate: the text has {len(ids)} tokens, a window needs {step}; give a longer text")
    if ids.min() < 0 or ids.max() >= model.spec.vocab_size:
        raise ValueError(
            f"calibrate: ids reach from {ids.min()} to {ids.max()}; the vocabulary has {model.spec.vocab_size}"
        )
    rows = ids[: count * step].reshape(count, step)
    rows = np.concatenate([np.tile(np.asarray(bos, np.int32), (count, 1)), rows], 1)
    return [rows[i : i + BATCH] for i in range(0, count, BATCH)]


def ids_of(model: Model, text: Text) -> tuple[np.ndarray, list[int]]:
    """The ids of all texts, one after another, and those that a window begins with: one or none.

    Raises:
        ValueError: there is no tokenizer.
    """
    texts = [text] if isinstance(text, str) else [each for each in text if isinstance(each, str)]
    if not texts:
        return np.asarray(text, np.int32).reshape(-1), []
    if model.tokenizer is None:
        raise ValueError(f"calibrate: {model.path} has no tokenizer; give the text as token ids")
    read = [model.tokenizer.encode(each, add_special=False, parse_special=False) for each in texts]
    first = model.tokenizer.encode("")[:1]
    return np.concatenate([np.asarray(ids, np.int32) for ids in read]), first * (first == [model.tokenizer.bos_id])


def tell(model: Model, report: Report) -> None:
    """Warn of what could not be calibrated."""
    leaves = dict(flatten(model.params))
    chosen = [path for path, param in flatten(abstract(model.spec)) if matrices(path, param)]
    left = [path for path in chosen if not isinstance(leaves[path], QTensor)]
    blind = [path for path, count in report.seen.items() if (count == 0).any()]
    for paths, what in (
        (left, "parameters are not rounded, because no product shows their inputs or their rows do not fill bytes"),
        (blind, "parameters are of experts that no token of the text went to, and are rounded to the nearest numbers"),
    ):
        if paths:
            warnings.warn(f"calibrate: {len(paths)} {what}: {', '.join(paths[:5])}", stacklevel=3)
