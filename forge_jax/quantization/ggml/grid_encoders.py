"""Encoding of IQ2_XXS ... IQ3_S: words of a code book for 4 or 8 magnitudes, signs apart, as ggml does.

Same contract as in `kencoders`, but for the weights: IQ2_XXS and IQ2_XS need them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from forge_jax.quantization.ggml.code_books import CodeBook, code_book
from forge_jax.quantization.ggml.packing import Encoder, pack
from forge_jax.quantization.ggml.search import columns, nearest, positive, ratio, rows, total
from forge_jax.quantization.ggml.types import K


@dataclass(frozen=True)
class _Plan:
    """How a type searches: groups of `size` elements share a scale, words have `length` elements.

    `even` signs have an even number of minuses in 8, so that only 7 are stored. The scales that are tried put the
    largest element `tries` times `step` to either side of the largest code. `fudge` is ggml's factor on the scale of
    the block. Groups of elements below `tiny` are taken as zero.
    """

    book: str
    size: int
    length: int
    even: bool
    tries: int
    step: float
    fudge: float
    tiny: float
    all_again: bool = False


PLANS: Mapping[str, _Plan] = MappingProxyType(
    {
        "IQ2_XXS": _Plan("IQ2_XXS", 32, 8, True, 6, 0.1, 1, 1e-15, all_again=True),
        "IQ2_XS": _Plan("IQ2_XS", 16, 8, True, 9, 0.1, 1, 1e-15),
        "IQ2_S": _Plan("IQ2_S", 16, 8, False, 9, 0.1, 0.9875, 1e-8),
        "IQ3_XXS": _Plan("IQ3_XXS", 32, 4, True, 15, 0.2, 1.0125, 1e-8),
        "IQ3_S": _Plan("IQ3_S", 32, 4, False, 9, 0.2, 1.033, 0, all_again=True),
    }
)


def _magnitudes(x: np.ndarray, weights: np.ndarray, even: bool) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes [size, n] and whether the sign is minus.

    For even signs the element that matters least of those 8 whose minuses are odd changes sides, and its magnitude is
    negative.
    """
    minus = x < 0
    size = np.where(minus, -x, x)
    if even:
        eights = (-1, 8, x.shape[1])
        odd = minus.reshape(eights).sum(axis=1) % 2 == 1
        least = (weights * x * x).reshape(eights).argmin(axis=1)
        flipped = (np.arange(8)[:, None] == least[:, None]) & odd[:, None]
        minus ^= flipped.reshape(x.shape)
        np.negative(size, out=size, where=flipped.reshape(x.shape))
    return size, minus


@dataclass(frozen=True)
class _Search:
    """Groups [size, n] of magnitudes and what they weigh, for a code book whose code c means 2 c + 1."""

    book: CodeBook
    length: int
    x: np.ndarray
    weights: np.ndarray
    words_x: np.ndarray
    words_weights: np.ndarray

    def snap(self, inverse: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The words [words of a group, n] for elements times `inverse` [n], and which were words before."""
        codes = nearest(np.float32(0.5) * (self.x * inverse - np.float32(1)), 0, self.book.levels - 1)
        powers = (self.book.levels ** np.arange(self.length)).astype(np.float32)
        points = np.einsum("kin,i->kn", codes.reshape(-1, self.length, self.x.shape[1]), powers).astype(np.intp)
        flat = points.reshape(-1)
        found = self.book.find(
            flat, self.words_x, self.words_weights, np.tile(scale, len(points)), 2 * self.book.codes + 1
        )
        return found.reshape(points.shape), self.book.index[points] >= 0

    def sums(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted products of elements and words, and squares of words, [n]."""
        values = (2 * self.book.codes.T + 1)[words].transpose(0, 2, 1).reshape(self.x.shape)
        weighed = self.weights * values
        return total(self.weights * self.x * values), total(weighed * values)


def by_words(x: np.ndarray, length: int) -> np.ndarray:
    """Groups [size, n] as [length, words of all groups]."""
    return x.reshape(-1, length, x.shape[1]).transpose(1, 0, 2).reshape(length, -1)


def _search(name: str, x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales [n], words [words, n] and minus signs [size, n] of groups [size, n]."""
    plan = PLANS[name]
    book = code_book(plan.book)
    size, minus = _magnitudes(x, weights, plan.even)
    top = np.float32(2 * book.levels - 1)
    reach = size.max(axis=0)
    zero = (reach < np.float32(plan.tiny)) | (reach == 0)
    if name == "IQ2_XXS":
        reach = positive(size, weights, book.levels + 1)[0] * np.float32(book.levels)
        zero |= reach <= 0
    reach = np.where(zero, np.float32(1), reach)
    split = [by_words(part, plan.length) for part in (size, np.sqrt(weights))]
    search = _Search(book, plan.length, size, weights, *split)
    scale, best = reach / top, np.zeros_like(reach)
    words = np.zeros((plan.size // plan.length, len(reach)), np.int16)
    exact = np.full(words.shape, not plan.all_again)
    for i in range(-plan.tries, plan.tries + 1):
        inverse = (top + np.float32(i) * np.float32(plan.step)) / reach
        found, there = search.snap(inverse, np.float32(1) / inverse)
        products, squares = search.sums(found)
        better = (squares > 0) & (products * products > best * squares)
        np.divide(products, squares, out=scale, where=better)
        np.multiply(scale, products, out=best, where=better)
        np.copyto(words, found, where=better)
        np.copyto(exact, there, where=better)
    again = (scale > 0) & (~exact.all(axis=0) | (name == "IQ2_XXS"))
    found, _ = search.snap(np.float32(1) / scale, scale)
    np.copyto(words, found, where=again & (plan.all_again | ~exact))
    products, squares = search.sums(words)
    np.divide(products, squares, out=scale, where=again & (squares > 0))
    minus ^= scale < 0
    words[:, zero], minus[:, zero] = 0, False
    return np.where(zero, np.float32(0), np.abs(scale)), words, minus


def _encode(
    name: str, blocks: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale codes [n, groups], words [n, words of a block] and signs, bytes [n, 32]; fills d."""
    plan = PLANS[name]
    scale, words, minus = _search(name, columns(blocks, plan.size), columns(weights, plan.size))
    groups = columns(scale, K // plan.size)
    d = groups.max(axis=0) / np.float32(31)
    out["d"] = d * np.float32(plan.fudge)
    codes = nearest(np.float32(0.5) * (groups * ratio(np.ones_like(d), d) - np.float32(1)), 0, 15)
    signs = np.packbits(rows(minus, K), axis=-1, bitorder="little")
    return codes.T.astype(np.uint8), rows(words, K // plan.length), signs


def required(name: str, weights: np.ndarray | None) -> np.ndarray:
    """The weights of a type that is not written without.

    Raises:
        ValueError: there are none.
    """
    if weights is None:
        raise ValueError(f"{name} needs an importance for each column: without, it is of no use, and ggml refuses too")
    return weights


def _seven_signs(signs: np.ndarray) -> np.ndarray:
    """Four signs of 7 bits each, bytes [n, 32] to words [n, 8]."""
    shifts = np.array([0, 7, 14, 21], np.uint32)
    return np.bitwise_or.reduce((signs & 127).reshape(-1, 8, 4).astype(np.uint32) << shifts, axis=-1)


def _iq2_xxs(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    codes, words, signs = _encode("IQ2_XXS", blocks, required("IQ2_XXS", weights), out)
    pairs = out["qs"].reshape(-1, 8, 2)
    pairs[:, :, 0] = np.ascontiguousarray(words.astype(np.uint8)).view("<u4")
    pairs[:, :, 1] = _seven_signs(signs) | codes.astype(np.uint32) << 28
    out["qs"] = pairs.reshape(-1, 16)


def _iq2_xs(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    codes, words, signs = _encode("IQ2_XS", blocks, required("IQ2_XS", weights), out)
    out["qs"] = words.astype(np.uint16) | (signs & 127).astype(np.uint16) << 9
    out["scales"] = pack(codes, 4, 1)


def _iq2_s(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    if weights is None:
        x = columns(blocks, K)
        weights = np.float32(0.25) * (total(x * x) * np.float32(2) / np.float32(K))[:, None] + blocks * blocks
    codes, words, signs = _encode("IQ2_S", blocks, weights, out)
    out["qs"], out["qh"], out["signs"] = words & 255, pack(words >> 8, 2, 1), signs
    out["scales"] = pack(codes, 4, 1)


def _iq3_xxs(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    codes, words, signs = _encode("IQ3_XXS", blocks, blocks * blocks if weights is None else weights, out)
    out["qs"], out["signs"] = words, _seven_signs(signs) | codes.astype(np.uint32) << 28


def _iq3_s(blocks: np.ndarray, weights: np.ndarray | None, out: np.ndarray) -> None:
    codes, words, signs = _encode("IQ3_S", blocks, blocks * blocks if weights is None else weights, out)
    out["qs"], out["qh"], out["signs"] = words & 255, pack(words >> 8, 1, 1), signs
    out["scales"] = pack(codes, 4, 1)


ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {"IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s}
)
