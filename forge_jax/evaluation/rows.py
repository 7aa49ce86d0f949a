"""From sequences of ids to scores of their last tokens, batch by batch. Each batch has the same shape: one program."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from forge_jax.cache import Policy
from forge_jax.evaluation.scoring import Rows, score
from forge_jax.loading import Model


class Row(NamedTuple):
    """A sequence of ids; each of its last `count` tokens is scored by what a model expects after those before it."""

    ids: np.ndarray
    count: int


class Scored(NamedTuple):
    """The last N tokens of a row and their scores by M models, the reference first; see `scoring.Scores`."""

    target_N: np.ndarray
    logprob_MN: np.ndarray
    best_MN: np.ndarray
    divergence_MN: np.ndarray


def overlapping(ids: np.ndarray, context: int, stride: int) -> list[Row]:
    """Rows of up to `context` ids that score each id but the first once, `stride` of them in a row, the last fewer."""
    stops = [min(first + stride, len(ids)) for first in range(1, len(ids), stride)]
    counts = np.diff([1, *stops]).tolist()
    return [Row(ids[max(0, stop - context) : stop], count) for stop, count in zip(stops, counts, strict=True)]


def scored(
    models: Sequence[Model],
    rows: Sequence[Row],
    *,
    length: int,
    places: int,
    batch: int,
    progress: bool,
    kept: Policy | None = None,
) -> Iterator[Scored]:
    """Score rows of up to `length` + 1 ids and `places` scored ones, `batch` at a time.

    Raises:
        ValueError: logits that are not numbers.
    """
    specs, params = tuple(model.spec for model in models), tuple(model.params for model in models)
    meshes = tuple(model.mesh for model in models)
    for at in tqdm(range(0, len(rows), batch), unit="batch", disable=not progress, leave=False):
        chosen = rows[at : at + batch]
        found = score(specs, params, packed(chosen, batch, length, places), meshes, kept)
        logprob, best, divergence = map(np.asarray, (found.logprob_MBK, found.best_MBK, found.divergence_MBK))
        for i, (ids, n) in enumerate(chosen):
            if np.isnan(logprob[:, i, :n]).any():
                raise ValueError("evaluation: logits are not numbers; weights or dtype are at fault (try float32)")
            yield Scored(ids[-n:], logprob[:, i, :n], best[:, i, :n], divergence[:, i, :n])


def packed(rows: Sequence[Row], batch: int, length: int, places: int) -> Rows:
    """Rows as padded arrays, without their last tokens, which nothing is predicted from. Missing rows are one token."""
    tokens, order = np.zeros((batch, length), np.int32), np.full((batch, length), -1, np.int32)
    at, target = np.zeros((batch, places), np.int32), np.zeros((batch, places), np.int32)
    order[:, 0] = 0
    for i, (ids, count) in enumerate(rows):
        last = len(ids) - 1
        tokens[i, :last], order[i, :last] = ids[:-1], np.arange(last)
        at[i, :count], target[i, :count] = np.arange(last - count, last), ids[-count:]
    return Rows(tokens, order, at, target)
