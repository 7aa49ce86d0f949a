"""The protobuf wire format, read from a file through a window: fields with their numbers, values and places.

Knows no message. Nothing is read that is not asked for: a field with a length is a span of the file until someone
wants its bytes. Format: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.files import SLACK_BYTES, BoundedFile

WINDOW = 1 << 18
LONGEST_VARINT = 10
LONGEST_TEXT = 1 << 20

VARINT, FIXED64, SPAN, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its number, its wire type, a varint's value, and where the content lies in the file."""

    number: int
    wire: int
    value: int
    begin: int
    end: int


class Window:
    """A file, of which the part that was read last stays in memory, and a budget for what is made of it."""

    def __init__(self, path: Path) -> None:
        self.file = BoundedFile(path)
        self.path, self.size = path, self.file.size
        self.budget = 2 * self.size + SLACK_BYTES // 2
        self._begin, self._data = 0, b""

    def error(self, message: str, at: int) -> ValueError:
        """An error that says where in the file."""
        return ValueError(f"{self.path}: at byte {at}: {message}; the file is damaged or no ONNX model")

    def spend(self, cost: int) -> None:
        """Account for memory that stays.

        Raises:
            ValueError: the file makes more than it may.
        """
        self.budget -= cost
        if self.budget < 0:
            raise ValueError(f"{self.path}: its graph would take more than twice its {self.size} bytes of memory")

    def peek(self, at: int, count: int, end: int) -> bytes:
        """Up to `count` bytes from `at` on, none from `end` on."""
        count = min(count, end - at)
        first = at - self._begin
        if first < 0 or first + count > len(self._data):
            self._begin, first = at, 0
            self._data = self.file.read_bytes(at, min(max(count, WINDOW), self.size - at))
        return self._data[first : first + count]

    def text(self, field: Field, what: str) -> str:
        """A string.

        Raises:
            ValueError: it is not UTF-8, or a megabyte long.
        """
        if field.wire != SPAN or field.end - field.begin > LONGEST_TEXT:
            raise self.error(f"{what} is no string of at most {LONGEST_TEXT} bytes", field.begin)
        self.spend(80 + field.end - field.begin)
        try:
            return self.peek(field.begin, field.end - field.begin, field.end).decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8", field.begin) from None

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """The fields of the message that lies from `begin` to `end`.

        Raises:
            ValueError: a tag or a length that is none, or that reaches past the end of the message.
        """
        at = begin
        while at < end:
            tag, value_at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise self.error(f"{number} is no number of a field", at)
            value, first, last = 0, value_at, value_at
            if wire == VARINT:
                value, last = self.varint(value_at, end)
            elif wire == SPAN:
                length, first = self.varint(value_at, end)
                last = first + length
            elif wire in (FIXED32, FIXED64):
                last = first + (4 if wire == FIXED32 else 8)
            else:
                raise self.error(f"field {number} has wire type {wire}, which ONNX does not use", at)
            if last > end:
                raise self.error(f"field {number} ends at byte {last}, its message at {end}", at)
            yield Field(number, wire, value, first, last)
            at = last

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An unsigned integer of up to 64 bits, and where it ends."""
        value = 0
        for i, byte in enumerate(self.peek(at, LONGEST_VARINT, end)):
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value & (2**64 - 1), at + i + 1
        raise self.error("a number does not end", at)

    def numbers(self, field: Field) -> list[int]:
        """One repeated field of signed integers, packed or not; at most as many as it has bytes."""
        if field.wire == VARINT:
            return [signed(field.value)]
        if field.wire != SPAN:
            raise self.error(f"field {field.number} holds no integers", field.begin)
        self.spend(40 * (field.end - field.begin))
        raw = self.file.read_array(field.begin, field.end - field.begin)
        try:
            return varints(raw).tolist()
        except ValueError as error:
            raise self.error(f"field {field.number}: {error}", field.begin) from None

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return value - 2**64 if value >= 2**63 else value


def varints(raw: np.ndarray) -> np.ndarray:
    """int64 [n]: the varints that follow one another in `raw`.

    Raises:
        ValueError: the last does not end, or one is longer than 10 bytes.
    """
    ends = np.flatnonzero(raw < 128)
    if raw.size and (not ends.size or ends[-1] != raw.size - 1):
        raise ValueError("the last number does not end")
    begins = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1]) if ends.size else ends
    lengths = ends - begins + 1
    if lengths.size and lengths.max() > LONGEST_VARINT:
        raise ValueError("a number is longer than 10 bytes")
    out = np.zeros(ends.size, np.uint64)
    for i in range(int(lengths.max()) if lengths.size else 0):
        has = lengths > i
        out[has] |= (raw[begins[has] + i] & 127).astype(np.uint64) << np.uint64(7 * i)
    return out.view(np.int64)
