"""Segmentation algorithms over a vocabulary, in plain Python: merges by score, best path, longest match.

A segmenter turns text that holds no special tokens into ids. It knows neither files nor special tokens, and it never
drops text: what the vocabulary cannot express is the unknown id where there is one, else a ValueError.
"""

from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

from converters.tokenizer.cuts import CutCache, Literals


class Segmenter(Protocol):
    """Text without special tokens → ids."""

    def __call__(self, text: str, first: bool) -> list[int]:
        """The ids of a text; `first` tells whether it begins the whole text or follows a special token."""
        ...


class Fallback:
    """What stands for a character that no token covers: its bytes, else the unknown id, else an error."""

    def __init__(self, byte_ids: Mapping[int, int], unk: int | None, fuse: bool = True) -> None:
        self._byte_ids = byte_ids
        self._unk = unk
        self.fuse = None if byte_ids or not fuse else unk
        """The id of which runs count once, None where each stands for itself."""

    def __call__(self, char: str) -> list[int]:
        """The ids of one character."""
        data = char.encode("utf-8")
        if all(byte in self._byte_ids for byte in data):
            return [self._byte_ids[byte] for byte in data]
        if self._unk is None:
            raise ValueError(
                f"the vocabulary cannot express {char!r} (U+{ord(char):04X}): it has neither a token for it, "
                f"nor tokens for its bytes {data.hex(' ')}, nor an unknown token"
            )
        return [self._unk]


def fuse_runs(ids: Sequence[int], fused: int | None) -> list[int]:
    """Drop repetitions of one id that stand side by side."""
    if fused is None:
        return list(ids)
    return [token for i, token in enumerate(ids) if token != fused or i == 0 or ids[i - 1] != fused]


class ScoreMerges:
    """Sentencepiece BPE: join the neighbours whose union has the best score, leftmost first, until none is a token.

    Args:
        scores: token → score of every token that merging may produce.
        ids: token → id of every token that may come out (`scores` may hold unused ones, which are taken apart again).
        frozen: tokens (user-defined symbols) that are matched before everything else and never merged.

    O(n log n): a heap of candidate pairs over a linked list. The order is that of sentencepiece and llama.cpp.
    """

    def __init__(
        self, scores: Mapping[str, float], ids: Mapping[str, int], fallback: Fallback, frozen: Mapping[str, int]
    ) -> None:
        self._scores = scores
        self._ids = ids
        self._fallback = fallback
        self._frozen = frozen
        self._literals = Literals(frozen)
        self._cut = CutCache(scores, self._merge)

    def __call__(self, text: str, first: bool) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._literals.split(text)):
            ids += [self._frozen[part]] if i % 2 else self._cut(part)
        return fuse_runs(ids, self._fallback.fuse)

    def _merge(self, text: str) -> tuple[int, ...]:
        """The ids of one piece. A symbol is known by where it starts; `ends[i] == 0`: it was merged away."""
        size = len(text)
        ends = list(range(1, size + 1))
        before = list(range(-1, size))
        origin: dict[str, int] = {}
        heap: list[tuple[float, int, int, int]] = []

        def consider(left: int, middle: int, right: int) -> tuple[float, int, int, int] | None:
            score = self._scores.get(text[left:right])
            return None if score is None else (-score, left, middle, right)

        heap = [pair for i in range(size - 1) if (pair := consider(i, i + 1, i + 2))]
        heapify(heap)
        while heap:
            _, left, middle, right = heappop(heap)
            if ends[left] != middle or ends[middle] != right:
                continue
            origin[text[left:right]] = middle - left
            ends[left], ends[middle] = right, 0
            if right < size:
                before[right] = left
                if pair := consider(left, right, ends[right]):
                    heappush(heap, pair)
            if (previous := before[left]) >= 0 and (pair := consider(previous, left, right)):
                heappush(heap, pair)
        ids: list[int] = []
        start = 0
        while start < size:
            ids += self._resolve(text[start : ends[start]], origin)
            start = ends[start]
        return tuple(ids)

    def _resolve(self, symbol: str, origin: Mapping[str, int]) -> list[int]:
        """The ids of a symbol: its own, or those of the two it was merged from if it is no usable token."""
        ids: list[int] = []
        stack = [symbol]
        while stack:
            symbol = stack.pop()
            if symbol in self._ids:
                ids.append(self._ids[symbol])
            elif symbol in origin:
                cut = origin[symbol]
                stack += [symbol[cut:], symbol[:cut]]
            else:
                ids += self._fallback(symbol)
        return ids


class BestPath:
    """Sentencepiece unigram: the segmentation with the highest sum of scores (Viterbi over all tokens).

    Args:
        scores: token → score of every token that may come out.
        ids: token → id.
        unknown_score: the score of a character that no token covers.
    """

    def __init__(
        self,
        scores: Mapping[str, float],
        ids: Mapping[str, int],
        fallback: Fallback,
        unknown_score: float,
    ) -> None:
        self._scores = scores
        self._ids = ids
        self._fallback = fallback
        self._unknown_score = unknown_score
        self._literals = Literals(scores)
        self._cut = CutCache(scores, self._best)

    def __call__(self, text: str, first: bool) -> list[int]:
        return fuse_runs(self._cut(text), self._fallback.fuse)

    def _best(self, text: str) -> tuple[int, ...]:
        size = len(text)
        best = [0.0] + [float("-inf")] * size
        starts = [0] * (size + 1)
        known = [False] * (size + 1)
        for start in range(size):
            found_one = False
            for token in self._literals.at(text, start):
                end = start + len(token)
                found_one = found_one or end == start + 1
                if (score := best[start] + self._scores[token]) > best[end]:
                    best[end], starts[end], known[end] = score, start, True
            if not found_one and (score := best[start] + self._unknown_score) > best[start + 1]:
                best[start + 1], starts[start + 1], known[start + 1] = score, start, False
        path: list[list[int]] = []
        end = size
        while end > 0:
            symbol = text[starts[end] : end]
            path.append([self._ids[symbol]] if known[end] else self._fallback(symbol))
            end = starts[end]
        return tuple(token for part in reversed(path) for token in part)


class LongestMatch:
    """RWKV: at each byte take the longest token that matches. Tokens are byte strings."""

    def __init__(self, ids: Mapping[bytes, int], unk: int | None) -> None:
        self._ids = {token.decode("latin-1"): i for token, i in ids.items()}
        self._literals = Literals(self._ids)
        self._unk = unk

    def __call__(self, text: str, first: bool) -> list[int]:
        data = text.encode("utf-8").decode("latin-1")
        ids: list[int] = []
        start = 0
        while start < len(data):
            match = self._literals.longest(data, start)
            token = self._ids[match] if match else self._unk
            if token is None:
                raise ValueError(f"the vocabulary cannot express the byte 0x{ord(data[start]):02X} of {text!r}")
            ids.append(token)
            start += len(match) or 1
        return ids


class Normalised:
    """A segmenter behind a function that rewrites the text first."""

    def __init__(self, normalise: Callable[[str, bool], str], segment: Segmenter) -> None:
        self._normalise = normalise
        self._segment = segment

    def __call__(self, text: str, first: bool) -> list[int]:
        return self._segment(self._normalise(text, first), first)
