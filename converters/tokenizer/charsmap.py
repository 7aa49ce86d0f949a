"""Sentencepiece's normaliser: replace character sequences, tidy the spaces, write them as "▁".

The replacements are the "precompiled charsmap" of a model: a double-array trie over UTF-8 (Darts) and the texts it
points to. Knows its layout, and refuses one that points outside itself.
"""

import re
from collections.abc import Iterable

import numpy as np

from converters.tokenizer.cuts import Literals
from converters.tokenizer.sentencepiece_model import NormalizerSpec

_SPACES = re.compile(" +")


class CharsMap:
    """The longest-match replacement of a precompiled charsmap.

    Raises:
        ValueError: the blob is shorter than it says.
    """

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[:4], "little")
        if len(blob) < 4 or size % 4 or size == 0 or 4 + size > len(blob):
            raise ValueError(f"precompiled charsmap: a trie of {size} bytes in a blob of {len(blob)}")
        self._units: list[int] = np.frombuffer(blob, "<u4", size // 4, 4).tolist()
        self._texts = blob[4 + size :]

    def __call__(self, text: str) -> str:
        """The text with every longest known sequence replaced."""
        data = text.encode("utf-8")
        parts: list[bytes] = []
        at = 0
        while at < len(data):
            length, replacement = self._longest(data, at)
            if not length:
                length = _width(data[at])
                replacement = data[at : at + length]
            parts.append(replacement)
            at += length
        return b"".join(parts).decode("utf-8", "replace")

    def _longest(self, data: bytes, at: int) -> tuple[int, bytes]:
        """Length of the longest sequence at a position that has a replacement, and that; 0 if there is none."""
        node = _base(self._unit(0))
        found, value = 0, 0
        for end in range(at, len(data)):
            byte = data[end]
            if byte == 0:
                break
            node ^= byte
            unit = self._unit(node)
            if unit & 0x800000FF != byte:
                break
            node ^= _base(unit)
            if unit >> 8 & 1:
                found, value = end + 1 - at, self._unit(node) & 0x7FFFFFFF
        return found, self._text(value) if found else b""

    def _unit(self, index: int) -> int:
        if index >= len(self._units):
            raise ValueError(f"precompiled charsmap: node {index} of a trie of {len(self._units)}")
        return self._units[index]

    def _text(self, at: int) -> bytes:
        end = self._texts.find(b"\0", at)
        if at >= len(self._texts) or end < 0:
            raise ValueError(f"precompiled charsmap: no text at {at} of {len(self._texts)} bytes")
        return self._texts[at:end]


def _base(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _width(lead: int) -> int:
    """Bytes of the UTF-8 character that starts with `lead`."""
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


class SpaceNormalizer:
    """Everything that sentencepiece does to a text before it segments it.

    Args:
        kept: texts (user-defined symbols) that are never rewritten.
    """

    def __init__(self, spec: NormalizerSpec, kept: Iterable[str] = ()) -> None:
        self._spec = spec
        self._map = CharsMap(spec.charsmap) if spec.charsmap else None
        self._kept = Literals(kept)

    def __call__(self, text: str, prefix: bool) -> str:
        """The normalised text; `prefix` False leaves out the dummy prefix."""
        spec = self._spec
        text = self._replace(text)
        if spec.remove_extra_whitespaces:
            text = _SPACES.sub(" ", text.strip(" "))
        dummy = " " if text and prefix and spec.add_dummy_prefix else ""
        text = text if spec.whitespace_as_suffix else dummy + text
        if spec.escape_whitespaces:
            text, dummy = text.replace(" ", "▁"), dummy and "▁"
        if spec.remove_extra_whitespaces:
            text = text.rstrip("▁")
        return text + dummy if spec.whitespace_as_suffix else text

    def _replace(self, text: str) -> str:
        if self._map is None:
            return text
        parts = self._kept.split(text)
        return "".join(part if i % 2 else self._map(part) for i, part in enumerate(parts))
