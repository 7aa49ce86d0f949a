"""The table of contents of a zip file whose entries are stored as they are, checked against the file.

Knows nothing of what the entries hold. Refuses what the checkpoint formats never contain: compression (a few bytes that
unfold to many), encryption, entries that overlap (many that share the same bytes), names that occur twice.
Layout: APPNOTE.TXT 6.3.10, PKWARE.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from converters.files import SLACK_BYTES, BoundedFile, quote

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # one entry of the central directory
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY_COST = 600  # bytes of Python objects for one entry, generously


@dataclass(frozen=True)
class ZipEntry:
    """One entry: `size` bytes at `offset` of the file."""

    name: str
    offset: int
    size: int
    crc: int
    """CRC-32 of the bytes; 0 also where the writer left it out."""

    def check(self, data: np.ndarray, where: str) -> None:
        """Raise ValueError if `data`, the whole entry, does not have the recorded checksum."""
        if self.crc and zlib.crc32(data.data) != self.crc:
            raise ValueError(
                f"{where}: entry {quote(self.name)} fails its checksum: the file is damaged, download it again"
            )


@dataclass(frozen=True)
class _Listed:
    name: str
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    header: int


def list_names(file: BoundedFile) -> list[str]:
    """Names in the table of contents; ValueError if there is none that can be read."""
    return [listed.name for listed in _central_directory(file)[0]]


def stored_entries(file: BoundedFile) -> dict[str, ZipEntry]:
    """Read and check the table of contents.

    Raises:
        ValueError: no zip file, or one with compressed, encrypted, overlapping or repeated entries, or with entries
            outside the file.
    """
    listed, directory_start = _central_directory(file)
    entries: dict[str, ZipEntry] = {}
    end = 0
    for item in sorted(listed, key=lambda item: item.header):
        where = f"{file.path}: entry {quote(item.name)}"
        if item.method or item.packed != item.size:
            raise ValueError(f"{where} is compressed; the entries of a checkpoint are stored as they are")
        if item.flags & 1:
            raise ValueError(f"{where} is encrypted")
        if item.name in entries:
            raise ValueError(f"{where} occurs twice")
        if item.header < end:
            raise ValueError(f"{where} overlaps the entry before it")
        if item.header + _LOCAL.size > directory_start:
            raise ValueError(f"{where} begins at byte {item.header}, outside of the file")
        signature, *_, name_size, extra_size = _LOCAL.unpack(file.read_bytes(item.header, _LOCAL.size))
        offset = item.header + _LOCAL.size + name_size + extra_size
        end = offset + item.size
        if signature != b"PK\x03\x04" or end > directory_start:
            raise ValueError(
                f"{where} has {item.size} bytes at byte {offset}; they are not inside the file: it was cut off"
            )
        entries[item.name] = ZipEntry(item.name, offset, item.size, item.crc)
    return entries


def _central_directory(file: BoundedFile) -> tuple[list[_Listed], int]:
    """All entries of the central directory, unchecked, and where it starts."""
    count, size, start = _locate(file)
    if start + size > file.size or count * _CENTRAL.size > size:
        raise ValueError(
            f"{file.path}: the zip table of {count} entries in {size} bytes at {start} is not inside the file"
        )
    if count * _ENTRY_COST + 4 * size > 2 * file.size + SLACK_BYTES:
        raise ValueError(
            f"{file.path}: a zip table of {count} entries in {size} bytes is too large for a file of {file.size} bytes"
        )
    table = file.read_bytes(start, size)
    out = []
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > size or table[at : at + 4] != b"PK\x01\x02":
            raise ValueError(f"{file.path}: the zip table is damaged at byte {start + at}")
        fields = _CENTRAL.unpack_from(table, at)
        (flags, method), (crc, packed, full, name_size, extra_size, note_size) = fields[3:5], fields[7:13]
        name_at = at + _CENTRAL.size
        extra = table[name_at + name_size : name_at + name_size + extra_size]
        full, packed, header = _zip64_sizes(extra, [full, packed, fields[16]])
        try:
            name = table[name_at : name_at + name_size].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(
                f"{file.path}: the zip table has a name at byte {start + name_at} that is not UTF-8"
            ) from None
        out.append(_Listed(name, method, flags, crc, packed, full, header))
        at = name_at + name_size + extra_size + note_size
    return out, start


def _locate(file: BoundedFile) -> tuple[int, int, int]:
    """Entries, size and start of the central directory, from the records at the end of the file."""
    tail_start = max(0, file.size - _END.size - 0xFFFF)
    tail = file.read_bytes(tail_start, file.size - tail_start)
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if at < 0:
        raise ValueError(f"{file.path}: the table of contents at the end of the zip file is missing: it was cut off")
    _, _, _, _, count, size, start, _ = _END.unpack_from(tail, at)
    locator_at = tail_start + at - _END64_LOCATOR.size
    if locator_at >= 0:
        signature, _, end64_at, _ = _END64_LOCATOR.unpack(file.read_bytes(locator_at, _END64_LOCATOR.size))
        if signature == b"PK\x06\x07":
            signature, *_, count, size, start = _END64.unpack(file.read_bytes(end64_at, _END64.size))
            if signature != b"PK\x06\x06":
                raise ValueError(f"{file.path}: the zip64 record is not at byte {end64_at}, where it is said to be")
    return count, size, start


def _zip64_sizes(extra: bytes, sizes: list[int]) -> list[int]:
    """Replace those of (size, packed size, header offset) that are 2^32-1 by the 64-bit values of the extra field."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if tag == 1:
            wide = [i for i, size in enumerate(sizes) if size == 0xFFFFFFFF]
            if len(body) >= 8 * len(wide):
                for i, value in zip(wide, struct.unpack_from(f"<{len(wide)}Q", body), strict=True):
                    sizes[i] = value
        at += 4 + length
    return sizes
