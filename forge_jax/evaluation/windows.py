"""Cuts a text into windows and has them scored batch by batch: one program, whatever the length of the text."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from forge_jax.evaluation.scoring import Rows, score
from forge_jax.loading import Model


class Window(NamedTuple):
    """Tokens [start, stop) of a text, of which those from `first` on are scored."""

    start: int
    stop: int
    first: int


class Measured(NamedTuple):
    """The scores of the N tokens that count, model by model (M, the reference first), and the tokens themselves."""

    target_N: np.ndarray
    logprob_MN: np.ndarray
    best_MN: np.ndarray
    divergence_MN: np.ndarray


def windows(length: int, context: int, stride: int | None) -> Iterator[Window]:
    """The windows of a text of `length` tokens: second halves, or with a stride every token (see the package)."""
    if stride is None:
        for start in range(0, length - context + 1, context):
            yield Window(start, start + context, start + context // 2 + 1)
        return
    for first in range(1, length, stride):
        stop = min(first + stride, length)
        yield Window(max(0, stop - context), stop, first)


def measure(
    models: Sequence[Model],
    ids: np.ndarray,
    spans: Sequence[Window],
    *,
    context: int,
    batch: int,
    bos: int | None,
    progress: bool,
) -> Measured:
    """Score the tokens that the windows are for, `batch` windows at a time, each beginning with `bos` if there is one.

    Raises:
        ValueError: logits that are not numbers.
    """
    places = max(span.stop - span.first for span in spans)
    specs, params = tuple(model.spec for model in models), tuple(model.params for model in models)
    meshes = tuple(model.mesh for model in models)
    parts = []
    for at in tqdm(range(0, len(spans), batch), unit="batch", disable=not progress, leave=False):
        chosen = spans[at : at + batch]
        scores = score(specs, params, rows_of(ids, chosen, batch, context, places, bos), meshes)
        counts = np.array([span.stop - span.first for span in chosen] + [0] * (batch - len(chosen)))
        real_BK = np.arange(places)[None] < counts[:, None]
        made = (scores.logprob_MBK, scores.best_MBK, scores.divergence_MBK)
        parts.append([np.asarray(x)[:, real_BK] for x in made])
    logprob_MN, best_MN, divergence_MN = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    if np.isnan(logprob_MN).any():
        raise ValueError("evaluate: the logits are not numbers; the weights or the dtype are at fault (try float32)")
    target_N = np.concatenate([ids[span.first : span.stop] for span in spans])
    return Measured(target_N, logprob_MN.astype(np.float64), best_MN, divergence_MN.astype(np.float64))


def rows_of(ids: np.ndarray, spans: Sequence[Window], rows: int, context: int, places: int, bos: int | None) -> Rows:
    """Windows as padded rows, with up to `places` tokens to score in each. Missing rows are one token long."""
    tokens, order = np.zeros((rows, context), np.int32), np.full((rows, context), -1, np.int32)
    at, target = np.zeros((rows, places), np.int32), np.zeros((rows, places), np.int32)
    order[:, 0] = 0
    for row, (start, stop, first) in enumerate(spans):
        tokens[row, : stop - start], order[row, : stop - start] = ids[start:stop], np.arange(stop - start)
        tokens[row, 0] = tokens[row, 0] if bos is None else bos
        at[row, : stop - first] = np.arange(first, stop) - start - 1
        target[row, : stop - first] = ids[first:stop]
    return Rows(tokens, order, at, target)
