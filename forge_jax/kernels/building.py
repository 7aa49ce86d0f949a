"""The library of kernels, compiled where it runs: found in the user's cache, or made there with a C++ compiler.

Why not when the package is installed: the sources are compiled for this very processor, and against the headers of the
jaxlib that will call them. A wheel is built in isolation, with another jaxlib or none, for any processor. Compiling
takes most of a minute, once for each version of the sources, of jaxlib and of the compiler, and each kind of processor.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import jax

from forge_jax import machine
from forge_jax.user_cache import cache_directory, check_private

NATIVE = Path(__file__).parent / "native"
FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-pthread", "-w")
SECONDS = 300  # after which a compiler is given up


class Unbuilt(Exception):
    """There is no library; the message says why, and what would help."""


def compiler() -> list[str]:
    """The C++ compiler: $CXX, or the first that is found.

    Raises:
        Unbuilt: there is none.
    """
    given = os.environ.get("CXX")
    candidates = [given] if given else [sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"]
    for candidate in candidates:
        words = shlex.split(candidate or "")
        if words and (path := shutil.which(words[0])):
            return [path, *words[1:]]
    what = f"CXX is {given!r}, which is not found" if given else "no C++ compiler is found"
    raise Unbuilt(f"{what}; install one (apt install g++, xcode-select --install) or set CXX")


def sources() -> list[Path]:
    """The C++ files that are compiled."""
    return sorted(NATIVE.glob("*.cc"))


@functools.cache
def key(*command: str) -> str:
    """What a library depends on, as a few letters of its name; asked for at every load, and worked out once."""
    compiler_says = subprocess.run([command[0], "--version"], capture_output=True, check=False).stdout
    jaxlib = importlib.metadata.version("jaxlib")
    told = hashlib.sha256()
    for fact in (" ".join(command).encode(), compiler_says, jaxlib.encode(), machine.kind().encode()):
        told.update(hashlib.sha256(fact).digest())
    for file in sorted(NATIVE.iterdir()):
        told.update(hashlib.sha256(file.read_bytes()).digest())
    return told.hexdigest()[:16]


def place(target: str) -> tuple[list[str], Path]:
    """How the library for a processor is compiled, and where it is kept.

    Raises:
        Unbuilt: there is no compiler.
    """
    # for Arm, -march names a family of processors, and not every compiler finds out which one this is of
    option = "-mcpu" if platform.machine() in ("aarch64", "arm64") else "-march"
    command = [*compiler(), *FLAGS, f"{option}={target}", "-isystem", jax.ffi.include_dir()]
    return command, cache_directory() / "kernels" / f"{key(*command)}.so"


def waits() -> bool:
    """Whether `build` would compile now, which takes most of a minute."""
    try:
        return not place("native")[1].exists()
    except (Unbuilt, OSError):
        return False


def build(target: str = "native") -> Path:
    """The path of the library for the processor `target`, as compilers name it, compiled if it is not there yet.

    Raises:
        Unbuilt: there is no compiler, it did not manage, or the folder cannot be used.
    """
    command, library = place(target)
    try:
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(library.parent)
        if library.exists():
            return library
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            run(command, made)
            os.replace(made, library)  # whole or not at all, whoever else is at it
    except OSError as error:
        raise Unbuilt(f"{library.parent} cannot be used ({error}); set FORGE_JAX_CACHE to a folder that can") from error
    return library


def run(command: list[str], made: Path) -> None:
    """Compile the sources into a library.

    Raises:
        Unbuilt: the compiler did not manage; with its first words.
    """
    compiling = [*command, *map(str, sources()), "-o", str(made)]
    with subprocess.Popen(
        compiling, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            said = process.communicate(timeout=SECONDS)[1]
        except subprocess.TimeoutExpired:
            slow = f"{command[0]} took more than {SECONDS} s to compile the kernels; set CXX to another"
            raise Unbuilt(slow) from None
        finally:
            stop(process)
    if process.returncode:
        said = next((line for line in said.splitlines() if "error" in line), said[:200])
        raise Unbuilt(f"{command[0]} could not compile the kernels: {said}; GCC 11 or Clang 14 and newer can")


def stop(process: "subprocess.Popen[str]") -> None:
    """End a process if it runs, and those that it has started: a driver leaves the compiler proper behind."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
