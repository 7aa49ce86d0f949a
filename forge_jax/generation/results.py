"""What came out of a session, as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forge_jax.generation.loop import Record

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Output:
    """What one row gave: the new ids (the stop id, if one ended it, is the last), why it ended, and its logprobs."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[dict[int, float], ...] | None = None


def outputs(
    ids: Sequence[Sequence[int]], reasons: Sequence[FinishReason | None], starts: Sequence[int], record: Record | None
) -> list[Output]:
    """The outputs of all rows; `starts` are the places of their first new ids in the record."""
    if record is None:
        return [Output(tuple(row), reason) for row, reason in zip(ids, reasons, strict=True)]
    logprob_BS, top_ids_BSN, top_BSN = map(np.asarray, (record.logprob_BS, record.top_ids_BSN, record.top_logprobs_BSN))
    out = []
    for i, (row, reason, start) in enumerate(zip(ids, reasons, starts, strict=True)):
        at = slice(start, start + len(row))
        tops = zip(top_ids_BSN[i, at].tolist(), top_BSN[i, at].tolist(), strict=True)
        best = tuple(dict(zip(t, p, strict=True)) for t, p in tops)
        out.append(Output(tuple(row), reason, tuple(logprob_BS[i, at].tolist()), best))
    return out
