"""A fast start: few imports, programs kept for the next process where the user has not decided otherwise, warmup."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import jax
import pytest

import forge_jax as forge
from forge_jax import compilation, loading, text
from forge_jax import forge as facade
from forge_jax.sampling import SamplingParams
from forge_jax.warming import warmup

UNSET = ("JAX_COMPILATION", "JAX_PERSISTENT", compilation.SWITCH)
DRAWN = SamplingParams(0.7, top_k=5)

START = """
import collections, json
import jax, jax.numpy as jnp
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rpartition("/")[2]]))
import forge_jax.compilation
assert jax.config.values["jax_compilation_cache_dir"] is None, "an import changed jax"
before = jnp.arange(3) + 1
forge_jax.compilation.keep_programs()
made = jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(8)).tolist()
print(json.dumps([made, events["compile_requests_use_cache"], events["cache_hits"], events["cache_misses"]]))
"""


def started(cache: Path, **more: str) -> tuple[list, int, int, int]:
    """What a fresh process makes, the programs it asked for, found and wrote."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(UNSET)}
    env = kept | {"FORGE_JAX_CACHE": str(cache), "XLA_FLAGS": ""} | more
    out = subprocess.run([sys.executable, "-c", START], env=env, capture_output=True, text=True, check=True)
    return tuple(json.loads(out.stdout))


def test_a_second_process_compiles_nothing(tmp_path: Path):
    first, second = started(tmp_path), started(tmp_path)
    assert first[3] > 1, first
    assert second == (first[0], first[1], first[3], 0)
    folder = next((tmp_path / "programs").iterdir())
    assert os.name != "posix" or folder.stat().st_mode & 0o777 == 0o700


def test_what_a_start_does_not_need_is_not_imported():
    code = (
        "import sys, forge_jax\nassert 'jax' not in sys.modules\nforge_jax.load, forge_jax.Session\n"
        "late = {'jinja2', 'torch', 'onnx', 'optax', 'orbax', 'converters.onnx.source', 'converters.adapters.gguf',"
        " 'converters.gguf.export'}\nsys.exit(', '.join(late & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Programs would be kept under a new folder; jax's settings are put back afterwards. Nothing may be compiled."""
    monkeypatch.setenv("FORGE_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv(compilation.SWITCH, raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_kept_where_nobody_decided(settings: Path):
    folder = compilation.keep_programs()
    assert folder == compilation.program_directory() == Path(jax.config.values["jax_compilation_cache_dir"])
    assert folder.is_relative_to(settings)
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 0
    assert compilation.keep_programs() == folder


def test_what_the_user_said_stays(settings: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(compilation.SWITCH, "off")
    assert compilation.keep_programs() is None
    monkeypatch.setenv(compilation.SWITCH, "no")
    with pytest.raises(ValueError, match="expected on or off"):
        compilation.keep_programs()
    monkeypatch.delenv(compilation.SWITCH)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    compilation.keep_programs()
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 7
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    assert compilation.keep_programs() == Path("elsewhere")
    jax.config.update("jax_enable_compilation_cache", False)
    assert compilation.keep_programs() is None
    assert jax.config.values["jax_compilation_cache_dir"] == "elsewhere"


@pytest.mark.skipif(os.name != "posix", reason="no such rights here")
def test_a_folder_that_others_write_is_not_used(settings: Path):
    compilation.program_directory().mkdir(parents=True)
    compilation.program_directory().chmod(0o770)
    with pytest.warns(UserWarning, match="others may write there"):
        assert compilation.keep_programs() is None
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_the_oldest_programs_go_first(tmp_path: Path):
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    compilation.prune(tmp_path, 300)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]
    compilation.prune(tmp_path, 200)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_nothing_compiles_after_warmup(shared: Path, quick_compiles: None, request: pytest.FixtureRequest):
    whole = loading.load(shared / "models" / "stories260K" / "hf", progress=False)
    model = replace(whole, spec=replace(whole.spec, layers=whole.spec.layers[:1]))
    warmup(model, prompt_tokens=140, new_tokens=180, batch=2, sampling=DRAWN, progress=False)
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **facts: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(str(facts.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    request.addfinalizer(lambda: jax.monitoring.unregister_event_duration_listener(listen))
    for length, new in ((1, 50), (16, 3), (17, 10), (40, 10), (128, 180), (129, 20), (140, 9)):
        rows = [[5] * length, [5] * max(length - 1, 1)]
        replies, _ = text.complete(model, rows, max_new_tokens=new, sampling=DRAWN, stop=("qq",))
        assert all(reply.ids for reply in replies)
    assert not compiled
    jax.jit(lambda x: x + 1)(1)
    assert compiled, "this test sees nothing"


@pytest.mark.parametrize(
    ("home", "make"),
    [
        (loading, lambda folder: loading.load(folder, progress=False)),
        (facade, lambda _: forge.Forge(vocab_size=8, dim=8, depth=1, heads=1, max_len=8)),
    ],
    ids=["load", "Forge"],
)
def test_who_asks_for_a_model_has_programs_kept(
    shared: Path, monkeypatch: pytest.MonkeyPatch, home: ModuleType, make: Callable[[Path], object]
):
    asked: list[bool] = []
    monkeypatch.setattr(home, "keep_programs", lambda: asked.append(True))
    make(shared / "models" / "stories260K" / "hf")
    assert asked


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"prompt_tokens": 0}, "expected at least 1"), ({"prompt_tokens": 300, "new_tokens": 300}, "do not fit")],
)
def test_warmup_says_what_does_not_fit(shared: Path, sizes: dict[str, int], message: str):
    model = forge.load(shared / "models" / "stories260K" / "hf", progress=False)
    with pytest.raises(ValueError, match=message):
        model.warmup(**sizes)
