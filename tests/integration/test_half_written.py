"""Exports are all or nothing: a full disk, Ctrl-C or an error leaves what was there before, and not a file more."""

import dataclasses
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import write_chat_model, write_golden_directory

from forge_jax import exporting, loading
from forge_jax.loading import Model


def load(path: Path) -> Model:
    return loading.load(path, progress=False)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A directory with a small llama."""
    return write_golden_directory("llama", tmp_path / "llama")


EXPORTS: dict[str, Callable[[Model, Path], Path]] = {
    "huggingface": lambda model, path: exporting.export_huggingface(model, path, overwrite=True),
    "shards": lambda model, path: exporting.export_huggingface(model, path, max_shard_bytes=20_000, overwrite=True),
    "safetensors": exporting.export_safetensors,
    "gguf": lambda model, path: exporting.export_gguf(model, path, type="F32"),
    "orbax": lambda model, path: exporting.export_orbax(model, path, overwrite=True),
}
FILES = ("safetensors", "gguf")


@pytest.fixture(params=EXPORTS)
def export(request: pytest.FixtureRequest) -> tuple[str, Callable[[Model, Path], Path]]:
    if request.param == "orbax":
        pytest.importorskip("orbax.checkpoint")
    return request.param, EXPORTS[request.param]


def put_old(kind: str, path: Path) -> Path:
    """Something that stands where an export is to go; returns the file in it."""
    file = path if kind in FILES else path / "config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text("old")
    return file


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    """Every file below a folder is the same afterwards, and there are no others."""

    def state() -> dict[str, bytes]:
        return {str(item): item.read_bytes() if item.is_file() else b"" for item in sorted(folder.rglob("*"))}

    before = state()
    yield
    assert state() == before


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what the system then answers is what it answers when a disk is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("kind", [kind for kind in EXPORTS if kind != "orbax"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "over another"])
def test_a_disk_that_fills_up(kind: str, llama: Path, tmp_path: Path, there: bool):
    model, out = load(llama), tmp_path / "out"
    if there:
        put_old(kind, out)
    with (
        nothing_changes(tmp_path),
        file_limit(10_000),
        pytest.raises(OSError, match="disk full: .* bytes are needed, .* are free") as caught,
    ):
        EXPORTS[kind](model, out)
    assert out.name in str(caught.value)
    EXPORTS[kind](model, out)
    load(out)


FULL = """
import resource, sys
from forge_jax import exporting, loading
model = loading.load(sys.argv[1], progress=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    exporting.export_orbax(model, sys.argv[2], overwrite=True)
except OSError as error:
    print(error)
"""


def test_a_disk_that_fills_up_under_orbax(llama: Path, tmp_path: Path):
    """In a process of its own: once a write fails, orbax closes its event loop before others have reported to it."""
    pytest.importorskip("orbax.checkpoint")
    out = tmp_path / "out"
    put_old("orbax", out)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    with nothing_changes(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", FULL, llama, out], capture_output=True, text=True, check=True, env=environment
        )
    assert re.match(r"\[Errno 27\] disk full: \d+ bytes are needed, \d+ are free; .*/out'$", done.stdout.strip())


@pytest.mark.parametrize("there", [False, True], ids=["new", "over another"])
def test_a_disk_without_room(
    export: tuple[str, Any], llama: Path, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
):
    kind, write = export
    model, out = load(llama), tmp_path / "out"
    if there:
        put_old(kind, out)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5000, 5000))
    with (
        nothing_changes(tmp_path),
        pytest.raises(OSError, match="disk full: .* bytes are needed, 5000 are free; nothing was written"),
    ):
        write(model, out)


class Interrupting:
    """A leaf at which the user presses Ctrl-C."""

    def __init__(self, leaf: Any) -> None:
        self.shape, self.dtype, self.ndim, self.nbytes = leaf.shape, leaf.dtype, leaf.ndim, leaf.nbytes

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise KeyboardInterrupt


@pytest.mark.parametrize("there", [False, True], ids=["new", "over another"])
def test_ctrl_c(export: tuple[str, Any], llama: Path, tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch):
    kind, write = export
    model, out = load(llama), tmp_path / "out"
    if there:
        put_old(kind, out)
    if kind == "orbax":
        ocp = pytest.importorskip("orbax.checkpoint")
        save = ocp.Checkpointer.save

        def interrupted(*args: Any, **options: Any) -> None:
            save(*args, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(ocp.Checkpointer, "save", interrupted)
    else:
        layer = model.params["layers"]["1"]["mlp"]
        layer["down"] = Interrupting(layer["down"])
    with nothing_changes(tmp_path), pytest.raises(KeyboardInterrupt):
        write(model, out)


def test_ctrl_c_at_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = load(write_chat_model(tmp_path / "chat"))

    def interrupted(directory: Path) -> list[str]:
        (directory / "tokenizer.json").write_text("{")
        raise KeyboardInterrupt

    assert model.tokenizer is not None
    monkeypatch.setattr(model.tokenizer, "save", interrupted)
    for kind in ("huggingface", "shards", "orbax"):
        with nothing_changes(tmp_path), pytest.raises(KeyboardInterrupt):
            EXPORTS[kind](model, tmp_path / "out")


def test_targets_that_cannot_be(export: tuple[str, Any], llama: Path, tmp_path: Path):
    kind, write = export
    model = load(llama)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with nothing_changes(tmp_path):
        with pytest.raises(FileNotFoundError, match="the directory .*no does not exist"):
            write(model, tmp_path / "no" / "where")
        wrong, error = ("folder", IsADirectoryError) if kind in FILES else ("file", NotADirectoryError)
        with pytest.raises(error, match=f"{wrong}: is a"):
            write(model, tmp_path / wrong)


@pytest.mark.parametrize("kind", ["huggingface", "orbax"])
def test_a_directory_with_files_is_replaced_only_on_request(llama: Path, tmp_path: Path, kind: str):
    model = load(llama)
    put_old(kind, tmp_path / "out")
    write = exporting.export_orbax if kind == "orbax" else exporting.export_huggingface
    with nothing_changes(tmp_path), pytest.raises(FileExistsError, match="out: the directory is not empty"):
        write(model, tmp_path / "out")


def test_a_model_that_gguf_cannot_say_writes_nothing(llama: Path, tmp_path: Path):
    model = load(llama)
    spec = dataclasses.replace(model.spec, logit_softcap=30.0)
    with nothing_changes(tmp_path), pytest.raises(ValueError, match="cannot be said in a GGUF.*logit_softcap"):
        exporting.export_gguf(dataclasses.replace(model, spec=spec), tmp_path / "out.gguf")


def test_unknown_options_of_exports(llama: Path, tmp_path: Path):
    model, out = load(llama), tmp_path / "out"
    with pytest.raises(
        ValueError, match="export: dtype 'int8' is unknown; expected stored, float32, bfloat16, float16"
    ):
        exporting.export_huggingface(model, out, dtype="int8")
    with pytest.raises(ValueError, match="export: dtype 'f16' is unknown"):
        exporting.export_safetensors(model, out, dtype="f16")
    with pytest.raises(ValueError, match="type 'Q9_0' is not written; expected one of F32, F16"):
        exporting.export_gguf(model, out, type="Q9_0")
    with pytest.raises(ValueError, match="max_shard_bytes must be positive, got 0"):
        exporting.export_huggingface(model, out, max_shard_bytes=0)
    assert [item.name for item in tmp_path.iterdir()] == ["llama"]
