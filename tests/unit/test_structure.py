"""The rooms and the direction of imports of the design, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRONT = {
    "forge",
    "forge_drafts",
    "drafters",
    "forge_files",
    "forge_inputs",
    "forge_adapters",
    "adapting",
    "loading",
    "prompt_cache",
    "text",
    "exporting",
    "exporting_packed",
    "onnx_export",
    "hub",
    "inspection",
    "cli",
    "progress",
    "__init__",
    "network",
    "default_model",
    "catalogue",
    "quantizing",
    "evaluation",
    "lm_eval",
    "calibrating",
    "compilation",
    "limits",
    "checkup",
    "warming",
    "large_pages",
}
# who may import whom inside the core: a room may import itself and what stands before it
ORDER = [
    "spec",
    "config",
    "presets",
    "params",
    "machine",
    "user_cache",
    "garbage",
    "kernels",
    "products",
    "tensor",
    "lora",
    "quantization",
    "cache",
    "ops",
    "stacking",
]
ORDER += ["rowwise", "decoder", "sampling", "generation", "parallel", "training", "calibration"]
FOR_CONVERTERS = {"spec", "config", "params", "kernels", "products", "tensor", "lora", "quantization"}
NAMES = (
    "llama mistral mixtral qwen gemma phi3 gpt2 gpt_neox gptj bloom falcon starcoder stablelm granite olmo smollm "
    "cohere glm4 deepseek safetensors gguf onnx huggingface"
).split()


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1]


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, anywhere in it."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            out |= {f"{node.module}.{alias.name}" for alias in node.names}
    return out


CORE = [path for path in modules("forge_jax") if room(path) not in FRONT]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports_point_one_way(path: Path):
    here = room(path)
    assert here in ORDER, f"{path} is in no room of the design"
    for name in imports(path):
        assert not name.startswith("converters"), f"{path} imports {name}: the core never sees the converters"
        parts = name.split(".")
        if parts[0] == "forge_jax" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(here), f"{path} imports {name}, which stands after {here}"
        elif parts[0] == "forge_jax":
            assert len(parts) > 1
            assert parts[1] not in FRONT, f"{path} imports {name}, which is the front"


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_core_names_no_architecture_and_no_format(path: Path):
    words = {word.lower() for word in path.read_text().replace("(", " ").replace(".", " ").replace('"', " ").split()}
    named = {word for word in words for name in NAMES if word.strip("`',:;)") == name}
    assert not named, f"{path} names {sorted(named)}; that belongs to converters/"


def test_converters_see_only_the_data_types_of_the_core():
    for path in modules("converters"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "forge_jax":
                assert len(parts) > 1, f"{path} imports all of forge_jax"
                assert parts[1] in FOR_CONVERTERS, f"{path} imports {name}"


def test_the_vocabulary_needs_no_jax():
    core = ROOT / "forge_jax"
    for path in (*(core / "spec").glob("*.py"), core / "config.py", core / "presets.py"):
        assert not [i for i in imports(path) if i.split(".")[0] in ("jax", "flax")]


@pytest.mark.parametrize("package", ["forge_jax", "converters"])
def test_files_stay_small(package: str):
    long = {str(p): n for p in modules(package) if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_torch_is_never_imported_by_the_package():
    for path in (*modules("forge_jax"), *modules("converters")):
        assert not [i for i in imports(path) if i.split(".")[0] == "torch" and "verify" not in path.name], path
