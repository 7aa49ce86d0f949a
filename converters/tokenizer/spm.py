"""Sentencepiece segmentation from a list of pieces with scores and types, for GGUF files and tokenizer.model alike.

Knows what each type of piece may do; the algorithms are in segmenters.py, the file formats elsewhere.
"""

from collections.abc import Mapping, Sequence

from converters.tokenizer.segmenters import BestPath, Fallback, ScoreMerges
from converters.tokenizer.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

_UNKNOWN_PENALTY = 10.0


def byte_ids(ids: Mapping[str, int]) -> dict[int, int]:
    """Byte → id of the tokens <0x00> to <0xFF> that a vocabulary has."""
    return {byte: ids[name] for byte in range(256) if (name := f"<0x{byte:02X}>") in ids}


def parse_byte(token: str) -> bytes:
    """The byte of a token <0xXX>; ValueError for any other text."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            pass
    raise ValueError(f"the vocabulary marks {token!r} as a byte token, expected a name like <0x0A>")


def spell(tokens: Sequence[str], types: Sequence[int], verbatim: Sequence[int]) -> tuple[bytes, ...]:
    """The bytes of tokens: "▁" is a space, <0x0A> a byte; those of the types in `verbatim` stand as they are."""
    pieces = []
    for token, kind in zip(tokens, types, strict=True):
        if kind == BYTE:
            pieces.append(parse_byte(token))
        else:
            text = token if kind in verbatim else token.replace("▁", " ")
            pieces.append(text.encode("utf-8", "surrogateescape"))
    return tuple(pieces)


def merge_segmenter(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    unk: int | None,
    *,
    freeze: bool,
    fuse: bool,
) -> ScoreMerges:
    """BPE by scores.

    Args:
        freeze: match user-defined pieces first and do not merge them (sentencepiece), else treat them as normal.
        fuse: a run of unknown characters is one unknown id.
    """
    fallback = byte_ids({token: i for i, token in enumerate(tokens)})
    bytes_ = set(fallback.values())
    usable = [i for i, kind in enumerate(types) if kind not in (UNKNOWN, CONTROL, BYTE) and i not in bytes_]
    return ScoreMerges(
        {tokens[i]: float(scores[i]) for i in usable},
        {tokens[i]: i for i in usable if types[i] != UNUSED},
        Fallback(fallback, unk, fuse),
        {tokens[i]: i for i in usable if types[i] == USER_DEFINED} if freeze else {},
    )


def path_segmenter(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], unk: int | None, *, user_bonus: float
) -> BestPath:
    """Unigram.

    Args:
        user_bonus: what a user-defined piece scores for each byte after its first: 0.1 (sentencepiece 0.2) or 0
            (llama.cpp). Scores of normal pieces are negative, so it wins nearly always.
    """
    normal = [float(scores[i]) for i, kind in enumerate(types) if kind == NORMAL]
    usable = {tokens[i]: i for i, kind in enumerate(types) if kind in (NORMAL, USER_DEFINED)}

    def score(token: str, i: int) -> float:
        return user_bonus * (len(token.encode("utf-8")) - 1) if types[i] == USER_DEFINED else float(scores[i])

    bytes_ = byte_ids({token: i for i, token in enumerate(tokens) if types[i] == BYTE})
    return BestPath(
        {token: score(token, i) for token, i in usable.items()},
        usable,
        Fallback(bytes_, unk),
        min(normal, default=0.0) - _UNKNOWN_PENALTY,
    )
