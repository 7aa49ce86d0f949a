"""Strict settings for every test: no silent promotion, eight fake devices, warnings are errors (pyproject.toml)."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FORGE_JAX_COMPILATION_CACHE", "off")

import signal

import jax
import pytest

# run in the background, the tests would inherit that SIGINT is ignored; those of interrupts need Python's handler
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(os.environ.get("FORGE_JAX_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference checkpoints that lies beside the checkout (FORGE_JAX_SHARED overrides)."""
    if not SHARED.is_dir():
        pytest.skip(f"reference checkpoints are not at {SHARED}; set FORGE_JAX_SHARED to their folder")
    return SHARED


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Forget compiled programs before a process has more of them than the system maps (65,530 pieces on Linux)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quick_compiles() -> Iterator[None]:
    """Programs that make a few tokens need not be fast."""
    from jax._src import compiler  # there is no other way to give options to whatever is compiled
    from quick import QUICK

    usual = compiler.get_compile_options

    def quickly(*args: Any, env_options_overrides: dict[str, Any] | None = None, **options: Any) -> Any:
        return usual(*args, env_options_overrides=QUICK | (env_options_overrides or {}), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", quickly)
        yield


@pytest.fixture
def kernels_built() -> None:
    """Skip what needs the kernels for CPUs where there are none."""
    from forge_jax import kernels  # not before the settings above

    if not kernels.available():
        pytest.skip(kernels.status().reason)
