"""Inspection against numbers counted by hand, against what loading really allocates, and against a hub of our own."""

import http.server
import json
import math
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest
from helpers import read_golden
from safetensors.numpy import save_file
from tiny_checkpoint import write_chat_model, write_golden_directory

from converters.gguf.export import export_gguf
from converters.safetensors_file import SafetensorsSource
from forge_jax import cache as caches
from forge_jax.generation import capacity
from forge_jax.generation.session import BURST
from forge_jax.inspection import headers, inspect
from forge_jax.loading import load
from forge_jax.params import flatten
from forge_jax.tensor import QTensor


def inspected(name: str, folder: Path, **options):
    return inspect(write_golden_directory(name, folder / name), **options)


# --- what is there


def test_a_model_of_two_kinds_of_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(SafetensorsSource, "raw", lambda *_: pytest.fail("a weight was read"))
    facts = inspected("gemma3", tmp_path)
    golden = read_golden("gemma3")
    assert (facts.format, facts.model_type, facts.family) == ("safetensors", "gemma3_text", "gemma3")
    assert facts.parameters.total == sum(map(math.prod, golden.shapes.values()))
    dim = golden.config["hidden_size"]
    assert facts.parameters.embedding == 160 * dim
    assert facts.parameters.head == 0  # tied
    assert facts.parameters.other == dim  # the last norm
    layer = sum(math.prod(shape) for name, shape in golden.shapes.items() if ".layers.1." in name)
    assert facts.parameters.layers == (layer, layer, layer)
    assert [(row.type, row.tensors, row.numbers, row.nbytes) for row in facts.storage] == [
        ("F32", len(golden.shapes), facts.parameters.total, 4 * facts.parameters.total)
    ]
    assert [(run.first, run.repeats, len(run.blocks)) for run in facts.layers] == [(0, 1, 3)]
    sliding, full, again = facts.layers[0].blocks
    assert sliding == again
    assert "window 8" in sliding[0]
    assert "window" not in full[0]
    assert [(rope.layers, rope.settings["theta"]) for rope in facts.ropes] == [((0, 2), 300), ((1,), 2000)]
    assert facts.tokenizer is None


def test_storage_types_are_counted_apart(tmp_path):
    golden = read_golden("llama")
    (tmp_path / "config.json").write_text(json.dumps(golden.config))
    arrays = {name: x.astype(np.float16) if x.ndim > 1 else x for name, x in golden.arrays.items()}
    save_file(arrays, tmp_path / "model.safetensors")
    facts = inspect(tmp_path, dtype="stored")
    norms = sum(x.size for x in arrays.values() if x.ndim == 1)
    rows = {row.type: (row.numbers, row.nbytes) for row in facts.storage}
    assert rows == {
        "F16": (facts.parameters.total - norms, 2 * (facts.parameters.total - norms)),
        "F32": (norms, 4 * norms),
    }
    assert facts.memory.weights == sum(row.nbytes for row in facts.storage)
    assert facts.memory.dtype == "float16, float32"
    assert facts.memory.cache_dtype == "float16"
    assert inspect(tmp_path, dtype="bfloat16").memory.weights == 2 * facts.parameters.total


def test_the_tokenizer_and_its_template(tmp_path):
    facts = inspect(write_chat_model(tmp_path / "chat")).tokenizer
    assert facts is not None
    assert (facts.vocab_size, facts.bos, facts.eos, facts.chat_templates) == (98, 0, (1,), ("default",))


# --- memory


def test_memory_is_what_the_cache_allocates_counted_by_hand(tmp_path):
    memory = inspected("gemma3", tmp_path, context=40, batch=3).memory
    full, window = 128, 8 + BURST  # 40 tokens are rounded up to all of this small context
    config = read_golden("gemma3").config
    slabs = 3 * config["num_key_value_heads"] * config["head_dim"] * 2 * 4 * (full + 2 * window)  # k and v, float32
    places = 3 * 2 * 4 * (full + window)  # order and span, int32
    assert memory.cache == slabs + places
    assert memory.slots == {"full": full, f"window{8}": window}
    assert memory.logits == 3 * 160 * 4
    assert memory.total == memory.weights + memory.cache + memory.logits


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "falcon_alibi", "phi3_window"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_memory_is_what_loading_takes(tmp_path, name, dtype):
    path = write_golden_directory(name, tmp_path / name)
    memory = inspect(path, context=16, batch=2, dtype=dtype).memory
    model = load(path, dtype=dtype, progress=False)
    assert memory.weights == sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    size = capacity(16, model.spec.max_seq_len)
    cache = caches.init(model.spec, 2, size, slack=BURST, dtype=memory.cache_dtype)
    assert memory.cache == sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert memory.dtype == ("float32" if dtype == "auto" else dtype)


# --- rope


def test_plain_rope(tmp_path):
    (rope,) = inspected("llama", tmp_path).ropes
    theta, dim = rope.settings["theta"], rope.settings["dim"]
    assert rope.kind == "Default"
    assert rope.shortest == pytest.approx(2 * math.pi, rel=1e-6)
    assert rope.longest == pytest.approx(2 * math.pi * theta ** ((dim - 2) / dim), rel=1e-6)
    assert (rope.attention_factor, rope.still) == (1.0, 0)


def test_scaled_ropes(tmp_path):
    (llama3,) = inspected("llama_old_llama3", tmp_path).ropes
    theta, dim, factor = llama3.settings["theta"], llama3.settings["dim"], llama3.settings["factor"]
    assert llama3.kind == "Llama3"
    assert llama3.longest == pytest.approx(factor * 2 * math.pi * theta ** ((dim - 2) / dim), rel=1e-6)
    (yarn,) = inspected("llama_yarn", tmp_path).ropes
    assert yarn.attention_factor == read_golden("llama_yarn").config["rope_parameters"]["attention_factor"]
    still = inspected("llama_proportional", tmp_path).ropes[0]
    assert still.still == still.settings["dim"] // 2 - still.settings["pairs"]
    long = write_golden_directory("llama_longrope", tmp_path / "llama_longrope")
    near, far = (inspect(long, context=length).ropes[0] for length in (16, 128))
    assert near.longest < far.longest  # the long divisors speak beyond the original context of 16


# --- how it is told


@pytest.mark.parametrize("name", ["cohere2", "bloom", "llama_longrope", "gpt_neo", "falcon_dynamic", "phi"])
def test_every_kind_of_model_can_be_told(tmp_path, name):
    facts = inspected(name, tmp_path)
    page = str(facts)
    assert f"{facts.parameters.total:,}" in page
    assert f"converters/architectures/{facts.family}.py" in page
    told = json.loads(json.dumps(facts.to_dict(), allow_nan=False))
    assert told["memory"]["total"] == facts.memory.total
    assert len(told["parameters"]["layers"]) == sum(len(r["blocks"]) * r["repeats"] for r in told["layers"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context": 129}, ValueError, "129 tokens .* do not fit the model's context of 128"),
        ({"context": 0}, ValueError, "context 0 and batch 1; both must be at least 1"),
        ({"batch": 0}, ValueError, "context 128 and batch 0; both must be at least 1"),
        ({"dtype": "int3"}, ValueError, "dtype 'int3' is unknown"),
        ({"file": "other.gguf"}, FileNotFoundError, "other.gguf"),
    ],
)
def test_what_cannot_be_inspected(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        inspected("llama", tmp_path, **options)


def test_a_path_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        inspect(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        inspect("./nothing")
    with pytest.raises(ValueError, match="neither an existing path nor a hub id"):
        inspect("no id")


# --- from afar


class Counted:
    """A file that is read by ranges, and how much of it was."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.served = 0

    def __call__(self, start: int, stop: int) -> bytes:
        self.served += stop - start
        assert 0 <= start <= stop <= len(self.content)
        return self.content[start:stop]


def write_gguf(path: Path, vocabulary: int = 8) -> Path:
    """A llama with Llama 3's rope, whose factors are a tensor, and a tokenizer's tokens."""
    golden = read_golden("llama_old_llama3")
    leaves = dict(flatten(golden.params))
    tokens = {"tokenizer.ggml.tokens": [f"t{i}" * 40 for i in range(vocabulary)]}  # only to make the header long
    export_gguf(path, golden.spec, leaves.__getitem__, "llama", tokenizer=tokens)
    return path


@pytest.mark.parametrize("first", [16, 5000, 1 << 20])
def test_hollow_ggufs_are_as_good_as_whole_ones(tmp_path, monkeypatch, first):
    whole = write_gguf(tmp_path / "m.gguf", vocabulary=160)
    monkeypatch.setattr(headers, "FIRST", first)
    read = Counted(whole)
    hollow = tmp_path / "hollow" / "m.gguf"
    hollow.parent.mkdir()
    headers.copy(read, len(read.content), hollow, "org/name")
    assert hollow.stat().st_size == whole.stat().st_size
    facts, expected = inspect(hollow), inspect(whole)
    assert facts.ropes == expected.ropes
    assert facts.ropes[0].kind == "Llama3"
    assert facts.storage == expected.storage
    if first < 1 << 20:
        assert read.served < len(read.content) / 2


def test_hollow_safetensors(tmp_path, monkeypatch):
    directory = write_golden_directory("llama", tmp_path / "whole")
    read = Counted(directory / "model.safetensors")
    monkeypatch.setattr(headers, "FIRST", 64)
    (tmp_path / "hollow").mkdir()
    headers.copy(read, len(read.content), tmp_path / "hollow" / "model.safetensors", "org/name")
    (tmp_path / "hollow" / "config.json").write_bytes((directory / "config.json").read_bytes())
    assert inspect(tmp_path / "hollow").storage == inspect(directory).storage
    assert read.served < 4000


def test_headers_that_are_none(tmp_path):
    def read(start: int, stop: int) -> bytes:
        return b"\xff" * (stop - start)

    with pytest.raises(ValueError, match="it is no safetensors file"):
        headers.copy(read, 10**9, tmp_path / "model.safetensors", "org/name")
    with pytest.raises(ValueError, match="not a GGUF file"):
        headers.copy(read, 10**6, tmp_path / "m.gguf", "org/name")
    with pytest.raises(NotImplementedError, match="pytorch_model.bin has no header at its front"):
        headers.copy(read, 10, tmp_path / "pytorch_model.bin", "org/name")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as inspecting needs: the list of files with sizes, and ranges of them."""

    root: ClassVar[Path]
    served: ClassVar[dict[str, int]] = {}

    def do_HEAD(self) -> None:
        self.send(200, b"")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name"):
            names = [{"rfilename": p.name, "size": p.stat().st_size} for p in self.root.iterdir()]
            info = {"id": "org/name", "modelId": "org/name", "sha": "0" * 40, "siblings": names}
            self.send(200, json.dumps(info).encode())
        elif path.startswith("/org/name/resolve/" + "0" * 40):
            name = path.rpartition("/")[2]
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            content = (self.root / name).read_bytes()[first : last + 1]
            self.served[name] = self.served.get(name, 0) + len(content)
            self.send(206, content)
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def send(self, status: int, content: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(content)),
            "Content-Type": "application/json",
            **(more or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


CLIENT = """
from forge_jax.inspection import inspect
for name in ("org/name:model.safetensors", "org/name:m.gguf", "org/name@v1:old.bin", "org/nothing"):
    try:
        facts = inspect(name)
        print(facts.name, facts.format, facts.parameters.total, facts.ropes[0].kind)
    except (OSError, ValueError, NotImplementedError) as error:
        print(type(error).__name__, error)
"""


def test_a_hub_id_without_its_weights(tmp_path):
    root = write_golden_directory("llama", tmp_path / "root")
    write_gguf(root / "m.gguf")
    (root / "old.bin").write_bytes(b"x" * 100)
    handler = type("OurHub", (Hub,), {"root": root})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-W", "error", "-c", CLIENT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    total = sum(map(math.prod, read_golden("llama").shapes.values()))
    assert lines[0] == f"org/name:model.safetensors safetensors {total} Default"
    total = sum(map(math.prod, read_golden("llama_old_llama3").shapes.values()))
    assert lines[1] == f"org/name:m.gguf gguf {total} Llama3"
    assert lines[2].startswith("NotImplementedError org/name: old.bin has no header at its front")
    assert lines[3].startswith("FileNotFoundError org/nothing: no such path here, and no such repository on the hub")
    assert Hub.served.get("config.json")
    assert "old.bin" not in Hub.served
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_where_the_hub_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "hub_answers", lambda: False)
    assert headers.on_hub("org/name", None, None) is None
    monkeypatch.setattr(headers, "hub_answers", lambda: True)
    asked = partial(headers.on_hub, file=None)
    assert asked("org/name@v1", None) == headers.HubId("org/name", "v1")
    assert asked("org/name", "v1") == headers.HubId("org/name", "v1")
    assert asked("org/name@v1", "v2") is None  # `resolve` says that they disagree
    assert asked(tmp_path, None) is None
    assert asked(str(tmp_path), None) is None


# --- packed weights


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("awq_g32", "int4-g32"),
        ("bnb_int8", "int8"),
        ("bnb_nf4_dq", "nf4"),
        ("ct_nvfp4", "nvfp4"),
        ("ct_w2a16_g32", "int2-g32"),
        ("fp8_block128", "fp8"),
        ("gptq_3b_gall_sym", "int3"),
        ("gptq_4b_g32_actorder", "int4-g32"),
        ("mxfp4_gpt_oss", "mxfp4"),
    ],
)
def test_packed_weights_show_their_scheme_and_their_bytes(shared, tmp_path, case, kind):
    """From a copy without weights too: of what is packed only the small tensors that say how are fetched."""
    directory = shared / "oracle/quant" / case
    if not directory.exists():
        pytest.skip(f"{directory} is not there")
    content = (directory / "model.safetensors").read_bytes()
    fetched = []

    def read(start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return content[start:stop]

    headers.copy(read, len(content), tmp_path / "model.safetensors", "org/name")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    facts, model = inspect(tmp_path), load(directory, progress=False)
    assert facts.storage == inspect(directory).storage
    row = next(row for row in facts.storage if row.type == kind)
    packed = {path for path, leaf in flatten(model.params) if isinstance(leaf, QTensor)}
    assert {path for path, type in model.stored.items() if type == kind} == packed
    assert row.numbers == sum(leaf.size for path, leaf in flatten(model.params) if path in packed)
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert 0.8 < facts.memory.weights / taken < 1.25  # zeros and orders are kept otherwise than they are stored


def test_too_many_notes_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MAX_NOTES", 1)
    monkeypatch.setattr(headers, "FIRST", 8)
    tensors = {
        f"{i}.{name}": a
        for i in range(3)
        for name, a in (("a", np.ones(999, np.uint8)), ("b", np.ones(9999, np.uint8)))
    }
    save_file(tensors, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    with pytest.raises(NotImplementedError, match="org/name: m.safetensors says in 3 places how it is packed"):
        headers.copy(lambda start, stop: content[start:stop], len(content), tmp_path / "m.safetensors", "org/name")
