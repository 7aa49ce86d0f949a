"""Where files are kept that can be made or fetched again."""

import os
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
