"""Files, read within their bounds and written all or nothing. This module knows no format.

Reading never goes past the end of the file and never allocates more than the file can hold.
Writing goes to a temporary name beside the target and renames at the end, so that a full disk, an error
or Ctrl-C leaves whatever was there before.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import threading
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# What parsing may allocate above twice the file: the promise that the fuzz test holds the readers to.
SLACK_BYTES = 64 * 2**20
# The cost of one JSON value as Python objects. CPython 3.11 and 3.12 measure 3 (null) to 86 (a dict's key).
_JSON_VALUE_BYTES = 100


class BoundedFile:
    """A regular file opened for reading at given offsets; safe to share between threads."""

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would block or never end
            raise ValueError(f"{path}: not a regular file")
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)  # a forgotten file closes with its owner, without a ResourceWarning
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read_array(self, offset: int, count: int) -> np.ndarray:
        """Read `count` bytes into a new uint8 array.

        Raises:
            ValueError: the range is not inside the file, or the file became shorter since it was opened.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise ValueError(
                f"{self.path}: bytes {offset} to {offset + count} are not in this file of {self.size} bytes"
            )
        out = np.empty(count, np.uint8)
        view = out.data
        done = 0
        with self._lock:
            self._file.seek(offset)
            while done < count:
                step = self._file.readinto(view[done:])
                if not step:
                    raise ValueError(
                        f"{self.path}: the file ended at byte {offset + done}, it had {self.size} when opened"
                    )
                done += step
        return out

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Read `count` bytes; errors as in `array`."""
        return self.read_array(offset, count).tobytes()

    def close(self) -> None:
        """Close the file; reading afterwards is a ValueError."""
        self._file.close()


def quote(name: Any) -> str:
    """A name from a file as an error message shows it: at most 200 characters; what is no text by its type."""
    return repr(name[:200]) if isinstance(name, str) else f"<{type(name).__name__}>"


def typed(raw: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """See a contiguous uint8 array as `dtype`; ValueError for a bool that is neither 0 nor 1."""
    if dtype == np.bool_ and raw.size and raw.max() > 1:
        raise ValueError(f"{where} is BOOL and holds a byte {raw.max()}; only 0 and 1 are allowed")
    return raw.reshape(-1).view(dtype)


def parse_json(raw: bytes, where: str, *, file_size: int) -> Any:
    """Parse JSON that a stranger wrote: no duplicate keys, no NaN, bounded depth, memory bounded before it is spent.

    Args:
        raw: the text, UTF-8.
        where: what the text is, for the error message.
        file_size: size in bytes of the file that holds it; parsing may cost twice that plus SLACK_BYTES.
    """
    values = sum(raw.count(mark) for mark in (b",", b":", b"[", b"{"))
    width = 1 if raw.isascii() else 4  # CPython stores a str at the width of its widest character
    cost = 4 * width * len(raw) + _JSON_VALUE_BYTES * values
    if cost > 2 * file_size + SLACK_BYTES:
        raise ValueError(f"{where}: JSON with {values} values would take {cost} bytes; the file has only {file_size}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        "".join(out).encode()  # half of a surrogate pair is no text: it could not even be printed
        if len(out) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise ValueError(f"the key {quote(twice)} appears twice")
        return out

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except UnicodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error})") from None
    except RecursionError:
        raise ValueError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file of at most 100 MB under the rules of `parse_json`."""
    with contextlib.closing(BoundedFile(path)) as file:
        if file.size > 100_000_000:
            raise ValueError(f"{path}: {file.size} bytes are too many for a JSON file of a checkpoint (100 MB)")
        return parse_json(file.read_bytes(0, file.size), str(path), file_size=file.size)


@contextlib.contextmanager
def atomic_write(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Write a file completely or not at all.

    Yields a binary file under a temporary `.part` name in the same directory. It is flushed to disk and renamed to
    `path` when the block ends; on any exception it is removed and an existing `path` stays as it was.

    Args:
        path: the target; its directory must exist.
        size: bytes that will be written, if known: a disk that cannot hold them is refused before writing.

    Raises:
        OSError: with errno ENOSPC, path, needed and free bytes when the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, a file was to be written here")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the directory {path.parent} does not exist")
    _require_space(path, size)
    part = _sibling(path)
    try:
        with _full_disk_named(path, size), part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path, size: int | None = None, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a directory completely or not at all.

    Yields an empty temporary directory beside `path`; it is renamed to `path` when the block ends and removed on any
    exception.

    Args:
        path: the target; its parent must exist.
        size: bytes that will be written, if known.
        overwrite: replace a directory that holds files. Off, because everything in it would go.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path}: is a file, a directory was to be written here")
    if path.is_dir() and not overwrite and any(path.iterdir()):
        raise FileExistsError(f"{path}: the directory is not empty; choose another one or ask for it to be overwritten")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the directory {path.parent} does not exist")
    _require_space(path, size)
    part = _sibling(path)
    part.mkdir()
    try:
        with _full_disk_named(path, size):
            yield part
        _swap_in(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync_directory(path.parent)


def _sibling(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")


def _swap_in(part: Path, path: Path) -> None:
    """Rename `part` to `path`; an existing directory leaves only after the new one is in place."""
    if not path.exists():
        part.rename(path)
        return
    old = _sibling(path)
    path.rename(old)
    try:
        part.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _require_space(path: Path, size: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    if size is not None and size > free:
        raise OSError(
            errno.ENOSPC, f"disk full: {size} bytes are needed, {free} are free; nothing was written", str(path)
        )


@contextlib.contextmanager
def _full_disk_named(path: Path, size: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(path.parent).free
        needed = "more" if size is None else str(size)
        text = (
            f"disk full: {needed} bytes are needed, {free} are free; the unfinished file was removed ({error.strerror})"
        )
        raise OSError(error.errno, text, str(path)) from error


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":  # makes the rename itself durable; Windows has no such call
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
