"""Finding tokens in a text, and cutting a text where no token can reach across. Knows nothing of ids or scores."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache

_CACHED_PIECES = 1 << 15
_LONGEST_CACHED = 64


class Literals:
    """Which of a set of texts stand at a place of another one.

    Holds the texts and, for each beginning of two characters, the lengths that occur: small, and quick for the
    vocabularies that exist (a trie of Python dicts takes hundreds of megabytes for 250,000 tokens).
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(text for text in texts if text)
        lengths: dict[str, set[int]] = {}
        for text in self._texts:
            if len(text) > 1:
                lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {head: sorted(found) for head, found in lengths.items()}

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        first = "".join({text[0] for text in self._texts})
        return re.compile(f"[{re.escape(first)}]" if first else "(?!)")

    def at(self, text: str, start: int) -> Iterator[str]:
        """Those that stand at a place, the shortest first."""
        if text[start] in self._texts:
            yield text[start]
        for length in self._lengths.get(text[start : start + 2], ()):
            if (found := text[start : start + length]) in self._texts and len(found) == length:
                yield found

    def longest(self, text: str, start: int) -> str:
        """The longest that stands at a place, "" if there is none."""
        return max(self.at(text, start), key=len, default="")

    def split(self, text: str) -> list[str]:
        """The text cut at its literals, the leftmost and there the longest first: even entries are the text between."""
        parts: list[str] = []
        done = at = 0
        while match := self._starts.search(text, at):
            at = match.start()
            if found := self.longest(text, at):
                parts += [text[done:at], found]
                done = at = at + len(found)
            else:
                at += 1
        return [*parts, text[done:]]


class CutCache:
    """Applies a segmentation to the pieces of a text between which no token reaches, and keeps the results.

    Exact, not heuristic: two characters that stand side by side in no token can end up in no common token, whatever the
    algorithm (merges by score, best path), so the segmentation left of such a border does not depend on the right.
    """

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
