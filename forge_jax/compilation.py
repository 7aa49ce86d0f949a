"""Compiled programs, kept on disk for the next process. Part of the front: it changes settings of jax.

jax has such a cache, switched off until it is told of a folder, and then only for programs that took a second to
compile. `keep_programs` tells it. It is called where a user asks for a model (`load`, `Forge`, the command line), never
on import: importing a library should not change how the rest of a program runs.
"""

import hashlib
import os
import warnings
from pathlib import Path

import jax

from forge_jax import machine
from forge_jax.user_cache import cache_directory, check_private

SWITCH = "FORGE_JAX_COMPILATION_CACHE"
LEAST = "jax_persistent_cache_min_compile_time_secs"
MOST_BYTES = 4 * 10**9  # programs used longest ago are removed beyond this


def keep_programs() -> Path | None:
    """Keep compiled programs in the user's cache, in this process from now on; done twice it does nothing.

    Where the user has decided, nothing is changed: with JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE, the
    settings of jax that they stand for, or FORGE_JAX_COMPILATION_CACHE=off.

    Returns:
        The folder that jax keeps programs in now; None if it keeps none. A folder that cannot be used is a warning.
    """
    set_to = jax.config.values
    if not set_to["jax_enable_compilation_cache"] or switched_off():
        return None
    if set_to["jax_compilation_cache_dir"] is not None:
        return Path(set_to["jax_compilation_cache_dir"])
    folder = program_directory()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(folder)
        prune(folder, MOST_BYTES)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept: {error}; {SWITCH}=off says so on purpose", stacklevel=3)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    untouched = set_to[LEAST] == 1.0 and LEAST.upper() not in os.environ  # 1.0 is jax's own
    if untouched:  # of the programs of a small model, most compile in less
        jax.config.update(LEAST, 0.0)
    return folder


def switched_off() -> bool:
    """Whether the environment says that nothing is to be kept.

    Raises:
        ValueError: it says something else than "on" or "off".
    """
    given = os.environ.get(SWITCH, "on").lower()
    if given not in ("on", "off", "1", "0"):
        raise ValueError(f"{SWITCH}={given!r}; expected on or off (JAX_COMPILATION_CACHE_DIR chooses another folder)")
    return given in ("off", "0")


def program_directory() -> Path:
    """The folder of this user's programs for processors like this one, in `cache_directory`.

    By user, because a program that is read back is run: nobody else may write there. By processor, because programs
    for a CPU use its instructions, and homes are shared between machines.
    """
    owner = f"{os.getuid()}-" if os.name == "posix" else ""
    return cache_directory() / "programs" / (owner + hashlib.sha256(machine.kind().encode()).hexdigest()[:12])


def prune(folder: Path, most: int) -> None:
    """Remove the files used longest ago until `most` bytes are left. A process that has read one keeps it."""
    files = []
    for entry in os.scandir(folder):
        if entry.is_file(follow_symlinks=False):
            about = entry.stat(follow_symlinks=False)
            files.append((max(about.st_atime, about.st_mtime), about.st_size, entry.path))
    left = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if left <= most:
            return
        Path(path).unlink(missing_ok=True)
        left -= size
