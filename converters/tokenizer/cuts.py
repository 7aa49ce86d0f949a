"""Cut a text where no token of a vocabulary can reach across, so that the pieces are segmented alone and remembered.

Exact, not heuristic: two characters that stand side by side in no token can end up in no common token, whatever the
algorithm (merges by score, best path), so the segmentation left of such a border does not depend on the right.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

_CACHED_PIECES = 1 << 15
_LONGEST_CACHED = 64


class CutCache:
    """Applies a segmentation piece by piece, with the results for short pieces kept."""

    def __init__(self, tokens: Iterable[str], segment: Callable[[str], tuple[int, ...]]) -> None:
        self._neighbours = {token[i : i + 2] for token in tokens for i in range(len(token) - 1)}
        self._segment = segment
        self._remembered = lru_cache(maxsize=_CACHED_PIECES)(segment)

    def __call__(self, text: str) -> list[int]:
        """The ids of a text."""
        ids: list[int] = []
        start = 0
        for end in range(1, len(text) + 1):
            if end == len(text) or text[end - 1 : end + 1] not in self._neighbours:
                piece = text[start:end]
                ids += self._remembered(piece) if end - start <= _LONGEST_CACHED else self._segment(piece)
                start = end
        return ids


def literal_splitter(literals: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern whose `split` cuts a text at some literal texts, the leftmost and there the longest one first.

    The literals are captured: odd entries of the split are literals, even ones the text between. None for no literals.
    """
    ordered = sorted({text for text in literals if text}, key=lambda text: (-len(text), text))
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None
