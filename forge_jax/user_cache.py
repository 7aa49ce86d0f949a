"""Where files are kept that can be made or fetched again."""

import os
import stat
import sys
from pathlib import Path


def cache_directory() -> Path:
    """Give the directory for downloads and built libraries: $FORGE_JAX_CACHE, or forge-jax in the user's cache
    directory."""
    if given := os.environ.get("FORGE_JAX_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"), "forge-jax", "Cache")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "forge-jax"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "forge-jax")


def check_private(folder: Path) -> None:
    """Raise PermissionError if others than this user and root may write into a folder of what will be run.

    Where there are no such rights, nothing is checked.
    """
    if os.name != "posix":
        return
    about = folder.stat()
    if about.st_uid not in (os.getuid(), 0) or stat.S_IMODE(about.st_mode) & 0o022:
        raise PermissionError(
            f"{folder}: others may write there, and what is in it is run; remove it, or `chmod go-w` it if it is yours"
        )
