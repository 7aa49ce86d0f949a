"""From a name to files on this machine: paths as they are, hub ids of every shape, the default model.

Chooses which files to fetch by their names alone, and never fetches code. What is inside them is none of its business.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from converters.shards import check_kinds
from forge_jax.default_model import SMOLLM2, fetch
from forge_jax.network import hub_answers, hub_bars

DEFAULT_MODEL = SMOLLM2.name

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
_SIDE_FILES = (".json", ".model", ".txt", ".tiktoken", ".jinja")  # config, tokenizer, chat template
_USUAL = ("model.safetensors", "pytorch_model.bin", "model.onnx")
_HUB_ID = re.compile(
    r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[^:@\s]+))?(?::(?P<file>[^:@\s]+))?", re.ASCII
)
_NUMBERED = re.compile(r"-\d{5}-of-\d{5}(?=\.[a-z]+$)")


@dataclass(frozen=True)
class HubId:
    """A repository, and what the name says about where in it to look."""

    repo: str
    revision: str | None = None
    file: str | None = None


def resolve(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    file: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Path:
    """Find a model's files, downloading them if need be.

    Args:
        name_or_path: an existing file or directory; "smollm2", the default model; or a hub id: "gpt2", "org/name",
            "org/name@revision", "org/name:file", "org/name:Q4_K_M" (a GGUF of that type). Directories take ":file" and
            ":Q4_K_M" too.
        revision: branch, tag or commit, where the name has none.
        subfolder: directory inside the repository or directory.
        file: file name or GGUF type, where the name has none.
        offline: True uses what is here already; None asks the hub if it answers within 3 s.
        progress: show the download.

    Returns:
        A directory, or a file where one was asked for or only one makes the model.

    Raises:
        FileNotFoundError: no such path, repository, revision or file, or nothing here while offline.
        ValueError: a name of no known shape, or one that leaves a choice open; the message lists the choices.
        PermissionError: the repository asks for a licence to be accepted.
    """
    local = Path(name_or_path).expanduser()
    if found := on_this_machine(name_or_path):
        _agree("file", found[1], file)
        return _inside(found[0], revision, subfolder, found[1] or file)
    if name_or_path == DEFAULT_MODEL:
        if revision or subfolder or file:
            raise ValueError(f"{DEFAULT_MODEL!r} is one pinned file: revision, subfolder and file do not apply to it")
        return fetch(SMOLLM2, offline=offline is True, progress=progress)
    if isinstance(name_or_path, Path) or _looks_local(name_or_path):
        raise FileNotFoundError(f"{local}: no such file or directory; {_near(local)}")
    wanted = _merge(parse_hub_id(name_or_path), revision, file)
    if not offline and hub_answers():
        return _download(wanted, subfolder, progress)
    return _cached(
        wanted, subfolder, "offline=True" if offline else "the hub does not answer (or HF_HUB_OFFLINE is set)"
    )


def on_this_machine(name_or_path: str | Path) -> tuple[Path, str | None] | None:
    """The path that a name is here, and the file of a directory that it names after a colon; None if it is none."""
    path = Path(name_or_path).expanduser()
    if str(name_or_path) and path.exists():
        return path, None
    folder, _, file = str(path).rpartition(":")
    return (Path(folder), file) if folder and file and Path(folder).is_dir() else None


def parse_hub_id(name: str) -> HubId:
    """Read "name", "org/name", "org/name@revision", "org/name:file" or "org/name@revision:file"."""
    match = _HUB_ID.fullmatch(name)
    if not match or ".." in match["repo"] or "--" in match["repo"]:
        raise ValueError(
            f"{name!r} is neither an existing path nor a hub id; a hub id looks like name, org/name, "
            "org/name@revision, org/name:file.gguf or org/name:Q4_K_M"
        )
    return HubId(match["repo"], match["revision"], match["file"])


def choose_files(names: Sequence[str], where: str, file: str | None = None) -> tuple[list[str], str | None]:
    """Choose which of the files of one folder make a model.

    Args:
        names: paths in the folder, with "/"; only its top level is looked at unless `file` asks for more.
        where: repository or folder, for error messages.
        file: a path, or a GGUF type such as "Q4_K_M".

    Returns:
        The files to have, and the one to open (None: the folder).
    """
    top = [name for name in names if "/" not in name]
    side = [name for name in top if name.endswith(_SIDE_FILES)]
    if file is not None:
        chosen = _named(names, where, file)
        return sorted({*side, *chosen, *_tensors_of(chosen, names)}), chosen[0]
    check_kinds(top, where)
    for suffix in WEIGHTS:
        found = [name for name in top if name.endswith(suffix)]
        if not found:
            continue
        if suffix == ".gguf":
            chosen = _one_set(found, where)
            return sorted({*side, *chosen}), chosen[0]
        if usual := [name for name in found if name in _USUAL]:
            return sorted({*side, *usual, *_tensors_of(usual, names)}), None
        numbered = [name for name in found if _NUMBERED.search(name)]
        return sorted({*side, *(numbered or found), *_tensors_of(found, names)}), None
    listed = ", ".join(sorted(names)[:10]) or "nothing"
    raise FileNotFoundError(f"{where}: no weights here ({', '.join(WEIGHTS)}); it holds {listed}")


def _tensors_of(chosen: Sequence[str], names: Sequence[str]) -> list[str]:
    """The files beside graphs that hold their tensors: "model.onnx.data", "model.onnx_data", "model.onnx_data_1"."""
    graphs = tuple(name for name in chosen if name.endswith(".onnx"))
    return [name for name in names if any(name.startswith((f"{graph}.", f"{graph}_")) for graph in graphs)]


def _named(names: Sequence[str], where: str, file: str) -> list[str]:
    """The file called `file`, or the GGUF set whose name holds it as a word."""
    if file in names and file.endswith(".gguf"):
        return [name for name in sorted(names) if _stem(name) == _stem(file)]
    if file in names:
        whole = file.removesuffix(".index.json")
        return [file, *(name for name in sorted(names) if whole != file and _stem(name) == whole)]
    ggufs = [name for name in names if name.endswith(".gguf")]
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(file)}(?![A-Za-z0-9_])", re.IGNORECASE)
    found = [name for name in ggufs if word.search(name)]
    if found:  # at the top first; some repositories keep each type in a folder
        return _one_set([name for name in found if "/" not in name] or found, f"{where}: {file}")
    choices = sorted(ggufs) or sorted(name for name in names if name.endswith(WEIGHTS))
    raise FileNotFoundError(f"{where}: no file or GGUF type {file!r}; choose one of {', '.join(choices) or 'none'}")


def _one_set(names: Sequence[str], where: str) -> list[str]:
    """The files of the one GGUF model in `names`, a split one counted as one."""
    if len({_stem(name) for name in names}) > 1:
        raise ValueError(
            f"{where}: several GGUF models; name one, as org/name:FILE or file=…: {', '.join(sorted(names))}"
        )
    return sorted(names)


def _stem(name: str) -> str:
    return _NUMBERED.sub("", name)


def _looks_local(name: str) -> bool:
    outside = name.partition(":")[0]
    return (
        not name
        or name.startswith((".", "/", "~"))
        or "\\" in name
        or outside.count("/") > 1
        or outside.lower().endswith((*WEIGHTS, ".json"))
        or re.match(r"[A-Za-z]:/", name) is not None
    )


def _near(path: Path) -> str:
    """What is there instead: names like it in the deepest directory that exists."""
    parent = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    missing = path.relative_to(parent).parts[0] if path.is_relative_to(parent) and path != parent else path.name
    names = sorted(item.name for item in parent.iterdir())
    close = difflib.get_close_matches(missing, names, n=3, cutoff=0.5)
    if close:
        return f"{parent} has {', '.join(close)}"
    return f"{parent} has nothing called like {missing!r}"


def _inside(local: Path, revision: str | None, subfolder: str | None, file: str | None) -> Path:
    """An existing path, with the subfolder and file that were asked for."""
    if revision is not None:
        raise ValueError(f"{local} is a path on this machine; revision={revision!r} chooses one of a repository")
    folder = local / subfolder if subfolder else local
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such directory; {_near(folder)}")
    if file is None or (folder.is_file() and folder.name == file):
        return folder
    if folder.is_file():
        raise ValueError(f"{folder} is a file; file={file!r} chooses one in a directory")
    if (folder / file).exists():
        return folder / file
    return folder / _named(_names(folder, "*.gguf"), str(folder), file)[0]


def _names(folder: Path, pattern: str = "*") -> list[str]:
    return [item.relative_to(folder).as_posix() for item in sorted(folder.rglob(pattern)) if item.is_file()]


def _merge(wanted: HubId, revision: str | None, file: str | None) -> HubId:
    _agree("revision", wanted.revision, revision)
    _agree("file", wanted.file, file)
    return HubId(wanted.repo, wanted.revision or revision, wanted.file or file)


def _agree(what: str, named: str | None, given: str | None) -> None:
    """Raise ValueError if a name and an argument ask for different things."""
    if named and given and named != given:
        raise ValueError(f"the name asks for {what} {named!r}, the argument for {given!r}; give one of them")


def _download(wanted: HubId, subfolder: str | None, progress: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        siblings = HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=30).siblings or []
    except GatedRepoError:
        page = f"https://huggingface.co/{wanted.repo}"
        raise PermissionError(f"{wanted.repo}: accept its licence at {page}, then run `hf auth login`") from None
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{wanted.repo}: the repository has no revision {wanted.revision!r}") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{wanted.repo}: no such path here, and no such repository on the hub (if it is private: `hf auth login`)"
        ) from None
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    names = [item.rfilename.removeprefix(prefix) for item in siblings if item.rfilename.startswith(prefix)]
    files, entry = choose_files(names, wanted.repo + (f"/{subfolder}" if subfolder else ""), wanted.file)
    with hub_bars(show=progress):
        snapshot = snapshot_download(
            wanted.repo,
            revision=wanted.revision,
            allow_patterns=[re.sub(r"([*?[])", r"[\1]", prefix + name) for name in files],
        )
    return Path(snapshot, prefix, entry or "")


def _cached(wanted: HubId, subfolder: str | None, why: str) -> Path:
    """The same from the hub's cache on this machine: models--org--name/{refs,snapshots}."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{wanted.repo.replace('/', '--')}")
    reference = folder / "refs" / (wanted.revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else wanted.revision or "main"
    snapshot = folder / "snapshots" / PurePosixPath(commit).name
    if not snapshot.is_dir():
        raise FileNotFoundError(
            f"{wanted.repo}: no such path here, not downloaded before ({folder} has no revision "
            f"{wanted.revision or 'main'}), and {why}"
        )
    snapshot = snapshot / subfolder if subfolder else snapshot
    return Path(snapshot, choose_files(_names(snapshot), str(snapshot), wanted.file)[1] or "")
