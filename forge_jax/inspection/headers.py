"""Where the headers of a checkpoint can be read: its own files, or copies without weights of what lies on the hub.

A hollow copy has the length of the original and its header; the weights are a hole that takes no room on the disk. So
every reader works on it as it is. Knows containers by their names only as far as to know where their headers are.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath

from converters.files import BoundedFile
from converters.gguf.header import Header
from converters.gguf.header import read_header as read_gguf_header
from converters.safetensors_file import MAX_HEADER_BYTES, read_header
from converters.source import TensorInfo
from forge_jax.default_model import SMOLLM2
from forge_jax.hub import DEFAULT_MODEL, WEIGHTS, HubId, choose_files, on_this_machine, parse_hub_id, resolve
from forge_jax.network import hub_answers

Read = Callable[[int, int], bytes]
"""The bytes of a file from one offset to another."""

FIRST = 1 << 18  # bytes that hold most safetensors headers, so that one request a shard is enough
MAX_VECTOR = 1 << 20
NOTE = 1 << 10  # bytes of the largest tensor that says how another is packed
MAX_NOTES = 4096


@contextmanager
def locate(name: str | Path, revision: str | None, subfolder: str | None, file: str | None) -> Iterator[Path]:
    """Give a path whose headers can be read; for a hub id it is gone when the block ends. Errors as in `inspect`."""
    wanted = on_hub(name, revision, file)
    if wanted is None:
        yield resolve(name, revision=revision, subfolder=subfolder, file=file, progress=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        here = hollow_copy(wanted, subfolder, Path(folder))
        # what cannot be had from the hub, `resolve` explains
        yield here or resolve(name, revision=revision, subfolder=subfolder, file=file, progress=False)


def on_hub(name: str | Path, revision: str | None, file: str | None) -> HubId | None:
    """What to ask the hub for; None for what is here, and where the hub does not answer."""
    if isinstance(name, Path) or on_this_machine(name):
        return None
    if name == DEFAULT_MODEL:
        try:
            resolve(name, offline=True)
        except FileNotFoundError:
            return HubId(SMOLLM2.repo, SMOLLM2.revision, SMOLLM2.file) if hub_answers() else None
        return None
    try:
        given = parse_hub_id(name)
    except ValueError:
        return None  # `resolve` says what is wrong with it
    agree = not (revision and given.revision) and not (file and given.file)
    return HubId(given.repo, given.revision or revision, given.file or file) if agree and hub_answers() else None


def hollow_copy(wanted: HubId, subfolder: str | None, folder: Path) -> Path | None:
    """Copy configs, tokenizer and headers of a repository; None if the hub refuses.

    Raises:
        NotImplementedError: the weights are in files whose headers are spread over the file.
        OSError, ValueError: the transfer failed, or a header is not one.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(wanted.repo, revision=wanted.revision, files_metadata=True, timeout=30)
    except HfHubHTTPError:
        return None
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    sizes = {
        item.rfilename.removeprefix(prefix): item.size or 0
        for item in info.siblings or []
        if item.rfilename.startswith(prefix)
    }
    names, entry = choose_files(list(sizes), wanted.repo + (f"/{subfolder}" if subfolder else ""), wanted.file)
    here = folder / wanted.repo.replace("/", "--")
    here.mkdir()
    for name in names:
        read = reader(info.id, str(info.sha), prefix + name)
        copy(read, sizes[name], here / PurePosixPath(name).name, wanted.repo)
    return here / PurePosixPath(entry).name if entry else here


def reader(repo: str, commit: str, name: str) -> Read:
    """A function that fetches a range of bytes of one file."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(repo, name, revision=commit)

    def read(start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        asked = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}"}
        response = get_session().get(url, headers=asked, timeout=30)
        hf_raise_for_status(response)
        if len(response.content) != stop - start:
            raise OSError(f"{url}: {stop - start} bytes were asked for, {len(response.content)} came; try again")
        return response.content

    return read


def copy(read: Read, size: int, target: Path, where: str) -> None:
    """Copy one file: whole, or if it holds weights its header."""
    if target.name.endswith(".safetensors"):
        write(target, safetensors_head(read, size, target), size)
        return notes(read, target, where)
    if target.name.endswith(".gguf"):
        return gguf_head(read, size, target)
    if target.name.endswith(WEIGHTS):
        raise NotImplementedError(
            f"{where}: {target.name} has no header at its front, so it cannot be inspected from afar; "
            f"load it once (`forge-jax generate -m {where} ...`), or inspect a downloaded copy"
        )
    head = read(0, size)
    write(target, head, size)
    return None


def write(target: Path, head: bytes, size: int) -> None:
    """A file of `size` bytes that begins with `head`."""
    with target.open("wb") as file:
        file.write(head)
        file.truncate(size)


def safetensors_head(read: Read, size: int, target: Path) -> bytes:
    """The length and the JSON that a safetensors file begins with."""
    head = read(0, min(size, FIRST))
    end = 8 + int.from_bytes(head[:8], "little")
    if end > min(size, MAX_HEADER_BYTES):
        raise ValueError(f"{target.name}: a header of {end - 8} bytes in a file of {size}; it is no safetensors file")
    return head[:end] + read(len(head), end)


def notes(read: Read, target: Path, where: str) -> None:
    """Copy the small tensors of whole numbers, which say how others are packed (their shapes, a state as JSON).

    Raises:
        NotImplementedError: they are too many to be fetched one by one.
    """
    with closing(BoundedFile(target)) as file:
        tensors, _, start = read_header(file)
    small = [(start + at, start + at + info.nbytes) for info, at in tensors if is_note(info)]
    ranges: list[tuple[int, int]] = []
    for begin, end in small:  # in file order; what lies close together comes in one piece
        near = ranges and begin - ranges[-1][1] <= FIRST
        ranges[-1:] = [(ranges[-1][0], end)] if near else [*ranges[-1:], (begin, end)]
    if len(ranges) > MAX_NOTES:
        raise NotImplementedError(
            f"{where}: {target.name} says in {len(ranges)} places how it is packed; load it once "
            f"(`forge-jax generate -m {where} ...`), or inspect a downloaded copy"
        )
    with ThreadPoolExecutor(8) as pool, target.open("r+b") as file:
        for (begin, _), piece in zip(ranges, pool.map(lambda ends: read(*ends), ranges), strict=True):
            file.seek(begin)
            file.write(piece)


def is_note(info: TensorInfo) -> bool:
    """Whether a tensor is small and holds whole numbers."""
    return info.dtype in ("I64", "I32", "U8") and 0 < info.nbytes <= NOTE


def gguf_head(read: Read, size: int, target: Path) -> None:
    """Copy a GGUF header, whose length is known only once it has been read: more and more of the file, until it fits.

    Vectors outside of the layers come along, because some belong to the config (rope factors).
    """
    head = b""
    while True:
        head += read(len(head), min(size, max(FIRST, 4 * len(head))))
        write(target, head, size)
        try:
            header = parse(target)
            start = min((entry.offset for entry in header.entries.values()), default=size)
        except ValueError:
            if len(head) >= min(size, MAX_HEADER_BYTES):
                raise
            continue
        if start <= len(head) or len(head) == size:
            break
    with target.open("r+b") as file:
        for name, entry in header.entries.items():
            end = entry.offset + entry.info.nbytes
            vector = len(entry.info.shape) == 1 and entry.info.nbytes <= MAX_VECTOR
            if vector and end > len(head) and not name.startswith("blk."):
                file.seek(entry.offset)
                file.write(read(entry.offset, end))


def parse(path: Path) -> Header:
    """The header of a GGUF file."""
    with io.FileIO(path) as file:
        return read_gguf_header(file, path)
