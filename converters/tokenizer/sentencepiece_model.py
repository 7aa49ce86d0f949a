"""The file of a sentencepiece model: a small reader for its protocol buffer message, every length checked.

Knows the ModelProto message and nothing of text: charsmap.py normalises, segmenters.py segments.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_PIECES = 1 << 21

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of a piece; GGUF uses the same numbers."""

UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class NormalizerSpec:
    """How text is rewritten before it is segmented."""

    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    whitespace_as_suffix: bool = False


@dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer.model holds: pieces with scores and types in id order, and the specs that matter at run time."""

    pieces: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    types: tuple[int, ...] = ()
    algorithm: int = UNIGRAM
    byte_fallback: bool = False
    unk: int = 0
    bos: int = 1
    eos: int = 2
    pad: int = -1
    normalizer: NormalizerSpec = field(default_factory=NormalizerSpec)


def parse_model(data: bytes, where: str) -> SentencePieceModel:
    """Read a serialised ModelProto.

    Args:
        where: the file, for messages.

    Raises:
        ValueError: truncated, not a model, an algorithm that is not known (words, characters), or a piece that is
            empty or occurs twice.
    """
    pieces: dict[str, int] = {}
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number <= 3 and not isinstance(value, bytes):
                raise ValueError(f"field {number} is a number, expected a message")
            if number == 1:
                _add_piece(dict(_fields(value)), pieces, scores, types)
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        model = _assemble(trainer, normalizer)
    except (ValueError, TypeError, struct.error) as error:
        raise ValueError(f"{where}: not a sentencepiece model: {error}") from error
    if not pieces:
        raise ValueError(f"{where}: not a sentencepiece model: it has no pieces")
    return replace(model, pieces=tuple(pieces), scores=tuple(scores), types=tuple(types))


def _add_piece(entry: dict[int, Any], pieces: dict[str, int], scores: list[float], types: list[int]) -> None:
    i = len(pieces)
    if not isinstance(entry.get(1), bytes) or not entry[1]:
        raise ValueError(f"piece {i} has no text")
    text = entry[1].decode("utf-8")
    if pieces.setdefault(text, i) != i:
        raise ValueError(f"piece {text!r} occurs twice, as ids {pieces[text]} and {i}")
    if i >= _MOST_PIECES:
        raise ValueError(f"more than {_MOST_PIECES} pieces")
    scores.append(_float(entry.get(2, 0)))
    types.append(int(entry.get(3, NORMAL)))


def _assemble(trainer: dict[int, Any], normalizer: dict[int, Any]) -> SentencePieceModel:
    algorithm = int(trainer.get(3, UNIGRAM))
    if algorithm not in (UNIGRAM, BPE):
        raise ValueError(f"model_type {algorithm} is not known; known: {UNIGRAM} (unigram), {BPE} (BPE)")
    return SentencePieceModel(
        algorithm=algorithm,
        byte_fallback=bool(trainer.get(35, False)),
        unk=_signed(trainer.get(40, 0)),
        bos=_signed(trainer.get(41, 1)),
        eos=_signed(trainer.get(42, 2)),
        pad=_signed(trainer.get(43, -1)),
        normalizer=NormalizerSpec(
            charsmap=bytes(normalizer.get(2, b"")),
            add_dummy_prefix=bool(normalizer.get(3, True)),
            remove_extra_whitespaces=bool(normalizer.get(4, True)),
            escape_whitespaces=bool(normalizer.get(5, True)),
            whitespace_as_suffix=bool(trainer.get(24, False)),
        ),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value): int for varints and fixed 32 and 64 bits, bytes for everything with a length."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = 4 if kind == _FIXED32 else 8
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind not in (_FIXED32, _FIXED64):
            raise ValueError(f"byte {at}: wire type {kind} is not known")
        if size > len(data) - at:
            raise ValueError(f"byte {at}: a field of {size} bytes, but only {len(data) - at} are left")
        raw = data[at : at + size]
        at += size
        yield key >> 3, raw if kind == _BYTES else int.from_bytes(raw, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError(f"byte {at}: the message ends within a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"byte {at}: a number of more than 10 bytes")


def _signed(value: int) -> int:
    """An int32 field: negative numbers are stored in two's complement of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _float(bits: int) -> float:
    value = struct.unpack("<f", struct.pack("<I", bits))[0]
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("a score is NaN or infinite")
    return value
