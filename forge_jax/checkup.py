"""What `forge-jax doctor` tells: the machine, the versions, what is installed, where things are kept, the limits.

Nothing here fails for what is missing; missing is what it tells.
"""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from huggingface_hub import constants

import forge_jax
from forge_jax import kernels, limits, machine
from forge_jax.compilation import keep_programs
from forge_jax.kernels import cudnn, pallas
from forge_jax.user_cache import cache_directory

NEEDED = "jax jaxlib flax numpy ml_dtypes safetensors tokenizers huggingface_hub jinja2 tqdm".split()
OPTIONAL = (
    ("orbax-checkpoint", "orbax checkpoints", "forge-jax[train]"),
    ("optax", "training", "forge-jax[train]"),
    ("llguidance", "text by JSON schema, grammar or regex", "forge-jax[constrained]"),
    ("onnx", "checking exported graphs", "forge-jax[onnx]"),
    ("onnxruntime", "running exported graphs", "forge-jax[onnx]"),
    ("lm_eval", "lm-evaluation-harness", "forge-jax[eval]"),
    ("transformers", "forge-jax verify", "transformers torch"),
    ("torch", "forge-jax verify", "transformers torch"),
)
SETTINGS = (
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
    "FORGE_JAX_COMPILATION_CACHE",
    "FORGE_JAX_CACHE",
    "FORGE_JAX_KERNELS",
    "FORGE_JAX_PALLAS",
    "FORGE_JAX_CUDNN",
    "CXX",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
)


def checkup(*, measure: bool = True) -> dict[str, Any]:
    """Everything, as JSON values; with `measure`, the limits too, which take a few seconds."""
    total, free = machine.memory()
    facts: dict[str, Any] = {
        "machine": {
            "system": platform.platform(),
            "processor": machine.processor(),
            "cores": machine.cores(),
            "memory": total,
            "free": free,
            "instructions": [name for name in machine.INSTRUCTIONS if name in machine.features()],
        },
        "devices": [device(each) for each in jax.devices()],
        "kernels": kernels.told(),
        "pallas": pallas.told(),
        "cudnn": cudnn.told(),
        "versions": {"forge-jax": forge_jax.__version__, "python": platform.python_version()}
        | {name: version(name) for name in NEEDED},
        "optional": [
            {"name": name, "for": purpose, "version": version(name), "install": f'pip install "{pip}"'}
            for name, purpose, pip in OPTIONAL
        ],
        "kept": [{"what": what, "folder": str(folder), "bytes": size(folder)} for what, folder in folders()],
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }
    return facts | ({"limits": asdict(limits.measured())} if measure else {})


def version(name: str) -> str | None:
    """The installed version of a distribution; None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device(each: Any) -> dict[str, Any]:
    """What a device is, and its memory in bytes where the driver tells."""
    told = (each.memory_stats() or {}) if each.platform != "cpu" else {}
    return {
        "device": str(each),
        "kind": each.device_kind,
        "memory": told.get("bytes_limit"),
        "used": told.get("bytes_in_use"),
    }


def folders() -> Iterator[tuple[str, Path]]:
    """Where things are kept."""
    yield "forge-jax", cache_directory()
    yield "hub", Path(constants.HF_HUB_CACHE)
    if (programs := keep_programs()) is not None:
        yield "compiled programs", programs


def size(folder: Path) -> int:
    """The bytes of the files in a folder, each counted once; 0 if there is none."""
    files = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(files.values())


def report(facts: dict[str, Any]) -> str:
    """The facts as text."""
    here, versions = facts["machine"], facts["versions"]
    lines = [
        f"machine     {here['processor']}, {here['cores']} cores for this process",
        f"            {gigabytes(here['memory'])} of memory, {gigabytes(here['free'])} free; {here['system']}",
        f"            {' '.join(here['instructions']) or 'instructions not known here'}",
    ]
    for each in facts["devices"]:
        memory = "" if each["memory"] is None else f", {gigabytes(each['memory'])}, {gigabytes(each['used'])} used"
        lines.append(f"device      {each['device']}: {each['kind']}{memory}")
    lines.append(f"kernels     {facts['kernels']}")
    lines += [f"            {facts[kind]}" for kind in ("pallas", "cudnn")]
    lines.append("versions    " + ", ".join(f"{name} {found or 'missing'}" for name, found in versions.items()))
    for each in facts["optional"]:
        state = each["version"] or f"not installed: {each['install']}"
        lines.append(f"optional    {each['name']} ({each['for']}): {state}")
    lines += [f"kept        {each['what']}: {each['folder']}, {each['bytes'] / 1e6:,.1f} MB" for each in facts["kept"]]
    if not any(each["what"] == "compiled programs" for each in facts["kept"]):
        lines.append("kept        compiled programs: none, each process compiles its own")
    lines += [f"setting     {name}={value}" for name, value in facts["settings"].items()]
    if "limits" in facts:
        copy, products = facts["limits"]["copy"], facts["limits"]["products"]
        rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in products.items())
        lines.append(f"limits      copy {copy / 1e9:,.1f} GB/s read and written; products {rates}")
    return "\n".join(lines)


def gigabytes(count: int | None) -> str:
    """A number of bytes; a question mark where the system does not tell."""
    return "? GB" if count is None else f"{count / 1e9:,.1f} GB"
