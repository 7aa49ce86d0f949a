"""Writing all or nothing: errors, Ctrl-C and a full disk leave what was there before."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from converters.files import atomic_directory, atomic_write, parse_json

Usage = namedtuple("Usage", "total used free")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failed_write_leaves_the_directory_as_it_was(tmp_path, old, error):
    if old:
        (tmp_path / "f").write_bytes(old)
    before = contents(tmp_path)

    def fail():
        with atomic_write(tmp_path / "f") as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert contents(tmp_path) == before


def test_a_finished_write_replaces_the_file(tmp_path):
    for text in (b"one", b"two"):
        with atomic_write(tmp_path / "f", size=3) as file:
            file.write(text)
        assert contents(tmp_path) == {"f": text}


def test_a_full_disk_is_told_with_needed_and_free_bytes(tmp_path, monkeypatch):
    def fill(size):
        with atomic_write(tmp_path / "f", size) as file:
            file.write(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"disk full: 12 bytes are needed, \d+ are free.*/f'") as caught:
        fill(12)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="disk full: more bytes are needed"):
        fill(None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 95, 5))
    with pytest.raises(OSError, match="disk full: 12 bytes are needed, 5 are free; nothing was written"):
        fill(12)
    assert contents(tmp_path) == {}


def test_other_errors_keep_their_text(tmp_path):
    with pytest.raises(PermissionError, match="mine"), atomic_write(tmp_path / "f"):
        raise PermissionError("mine")


def test_targets_that_cannot_be(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(IsADirectoryError, match="is a directory"), atomic_write(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="does not exist"), atomic_write(tmp_path / "no" / "f"):
        pass
    with pytest.raises(NotADirectoryError, match="is a file"), atomic_directory(tmp_path / "file"):
        pass
    with pytest.raises(FileNotFoundError, match="does not exist"), atomic_directory(tmp_path / "no" / "d"):
        pass
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("before", [None, "empty", "full"])
def test_a_directory_appears_whole(tmp_path, before, overwrite):
    target = tmp_path / "d"
    if before:
        target.mkdir()
    if before == "full":
        (target / "old").write_bytes(b"old")

    def fill(error=None):
        with atomic_directory(target, overwrite=overwrite) as part:
            (part / "new").write_bytes(b"new")
            if error:
                raise error

    start = contents(tmp_path)
    if before == "full" and not overwrite:
        with pytest.raises(FileExistsError, match="not empty"):
            fill()
        assert contents(tmp_path) == start
        return
    with pytest.raises(KeyboardInterrupt):
        fill(KeyboardInterrupt())
    assert contents(tmp_path) == start
    fill()
    assert contents(tmp_path) == {"d/new": b"new"}
    assert os.listdir(tmp_path) == ["d"]


def test_a_failed_swap_puts_the_old_directory_back(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_bytes(b"old")
    rename = Path.rename
    calls = []

    def second_fails(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise PermissionError("in use")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(PermissionError), atomic_directory(tmp_path / "d", overwrite=True) as part:
        (part / "new").write_bytes(b"new")
    assert contents(tmp_path) == {"d/old": b"old"}


def test_json_of_a_stranger_may_hold_what_json_may_hold():
    text = b'{"a": [1, -2.5, 1e400, null, true, "\\u00e9"], "": {}}'
    assert parse_json(text, "x", file_size=len(text)) == {"a": [1, -2.5, float("inf"), None, True, "é"], "": {}}
