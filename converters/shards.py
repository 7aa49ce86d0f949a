"""Which files make up one checkpoint: index files and numbered shards, for every container that has them.

Knows names of files and of tensors; refuses to know what is inside a shard.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from converters.files import quote, read_json

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[A-Za-z]+)")

_KINDS = {".gguf": "GGUF", ".onnx": "ONNX"} | dict.fromkeys(
    (".safetensors", ".bin", ".pt", ".pth"), "safetensors or torch"
)


@dataclass(frozen=True)
class Shards:
    """The files of one checkpoint in reading order; `index` says which tensor an index file puts where (or is None)."""

    files: tuple[Path, ...]
    index: dict[str, Path] | None = None

    def check(self, names: dict[str, Path]) -> None:
        """Raise ValueError unless every tensor that the index names was found (`names`) where the index puts it."""
        wrong = [(name, file) for name, file in (self.index or {}).items() if names.get(name) != file]
        if wrong:
            name, file = wrong[0]
            found = f"it is in {names[name].name}" if name in names else "no shard holds it"
            raise ValueError(
                f"{file}: the index says that tensor {quote(name)} is here, but {found} ({len(wrong)} such tensors); "
                "index and shards belong to different checkpoints, download them again"
            )


def read_index(path: Path) -> Shards:
    """Read `*.index.json`: {"weight_map": {tensor: shard file beside the index}}.

    Raises:
        FileNotFoundError: a shard is missing; the message says which, and how many tensors it holds.
        ValueError: no weight_map, or a shard's name that leads out of the directory.
    """
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: an index needs a 'weight_map' object that names a shard for each tensor")
    held: dict[str, int] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise ValueError(
                f"{path}: tensor {quote(name)} is in {quote(shard)}; a shard is a file name in this directory"
            )
        held[shard] = held.get(shard, 0) + 1
    missing = [shard for shard in sorted(held) if not (path.parent / shard).exists()]
    if missing:
        listed = ", ".join(f"{shard} (with {held[shard]} tensors)" for shard in missing[:5])
        raise FileNotFoundError(
            f"{path.parent}: {len(missing)} of {len(held)} shards missing: {listed}; download again"
        )
    return Shards(
        files=tuple(path.parent / shard for shard in sorted(held)),
        index={name: path.parent / shard for name, shard in weight_map.items()},
    )


def check_kinds(names: Iterable[str], where: str) -> None:
    """Raise ValueError if the files of a folder are weights in formats that need not be the same model.

    Safetensors and torch files beside each other are the same weights, by the hub's custom, and safetensors are taken;
    a GGUF is rounded in its own way, and a graph may be anything.
    """
    there: dict[str, list[str]] = {}
    for name in sorted(names):
        if kind := _KINDS.get(PurePath(name.removesuffix(".index.json")).suffix):
            there.setdefault(kind, []).append(name)
    if len(there) > 1:
        listed = "; ".join(f"{kind}: {', '.join(found[-3:])}" for kind, found in there.items())
        raise ValueError(
            f"{where}: weights in several formats ({listed}); name the file, or the index of shards, as {where}:FILE "
            "or file=…"
        )


def find_shards(directory: Path, suffix: str, usual: tuple[str, ...]) -> Shards:
    """Find the one checkpoint in a directory: its usual file, or its index, or its only file, or a full numbered set.

    Args:
        directory: where to look; subdirectories are not searched.
        suffix: of the files, such as ".safetensors".
        usual: names that win over all others, such as ("model.safetensors",).

    Raises:
        FileNotFoundError: nothing there, or a numbered set with a gap.
        ValueError: several candidates; the message lists them.
    """
    files = sorted(file for file in directory.glob(f"*{suffix}") if file.is_file())
    indexes = sorted(directory.glob(f"*{suffix}.index.json"))
    if chosen := [file for file in files if file.name in usual]:
        return Shards((chosen[0],))
    usual_indexes = [index for index in indexes if index.name.removesuffix(".index.json") in usual] or indexes
    if len(usual_indexes) == 1:
        return read_index(usual_indexes[0])
    if len(files) == 1 and not _NUMBERED.fullmatch(files[0].name):
        return Shards((files[0],))
    if not files:
        raise FileNotFoundError(f"{directory}: no *{suffix} file here")
    return Shards(_numbered_set(directory, files))


def _numbered_set(directory: Path, files: list[Path]) -> tuple[Path, ...]:
    matches = [_NUMBERED.fullmatch(file.name) for file in files]
    sets = {(match["stem"], match["count"], match["suffix"]) for match in matches if match}
    if len(sets) != 1 or None in matches:
        listed = ", ".join(file.name for file in files[:8])
        raise ValueError(f"{directory}: {len(files)} checkpoint files, no index ({listed}); name one with file=…")
    stem, count, suffix = sets.pop()
    if int(count) > 10_000:
        raise ValueError(f"{files[0]}: a set of {count} shards cannot be meant")
    expected = [directory / f"{stem}-{number:05d}-of-{count}{suffix}" for number in range(1, int(count) + 1)]
    missing = [file.name for file in expected if file not in files]
    if missing:
        raise FileNotFoundError(f"{directory}: {len(missing)} of {int(count)} shards missing: {', '.join(missing[:5])}")
    return tuple(expected)


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0") and len(name.encode()) < 256
