"""Names to files: local paths, hub ids of every shape against a hub of our own."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from forge_jax import hub, network
from forge_jax.hub import HubId, choose_files, parse_hub_id, resolve
from forge_jax.inspection import headers

# --- local paths


def test_what_exists_is_taken_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "gpt2" / "sub").mkdir(parents=True)
    (tmp_path / "gpt2" / "a.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2") == Path("gpt2")  # a directory here wins over the hub's gpt2
    assert resolve(tmp_path / "gpt2") == tmp_path / "gpt2"
    assert resolve("gpt2", subfolder="sub") == Path("gpt2/sub")
    assert resolve("gpt2", file="a.gguf") == resolve("gpt2/a.gguf") == Path("gpt2/a.gguf")
    assert resolve("gpt2/a.gguf", file="a.gguf") == Path("gpt2/a.gguf")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/gpt2") == tmp_path / "gpt2"
    with pytest.raises(FileNotFoundError, match="gpt2/tub: no such directory; gpt2 has sub"):
        resolve("gpt2", subfolder="tub")
    with pytest.raises(ValueError, match="is a file; file='b' chooses one in a directory"):
        resolve("gpt2/a.gguf", file="b")
    with pytest.raises(ValueError, match="gpt2 is a path on this machine; revision='v1' chooses one of a repository"):
        resolve("gpt2", revision="v1")


@pytest.mark.parametrize(
    "name", ["./modle", "modle.gguf", "{}/modle", "a/b/c", "", ".\\modle", "~/modle", "config.json"]
)
def test_what_looks_local_never_reaches_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.setattr(hub, "hub_answers", lambda: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        resolve(name.format(tmp_path))


def test_near_names_are_shown(tmp_path):
    for name in ("model-a", "other.gguf"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=r"modell-a/x.gguf: no such file or directory; .* has model-a$"):
        resolve(tmp_path / "modell-a" / "x.gguf")
    with pytest.raises(FileNotFoundError, match="has nothing called like 'zzzz'"):
        resolve(tmp_path / "zzzz")


def test_a_gguf_type_in_a_local_directory(tmp_path):
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        (tmp_path / name).touch()
    assert resolve(tmp_path, file="q8_0") == tmp_path / "m-Q8_0.gguf"
    assert resolve(f"{tmp_path}:q8_0") == resolve(f"{tmp_path}:m-Q8_0.gguf") == tmp_path / "m-Q8_0.gguf"
    with pytest.raises(FileNotFoundError, match="'Q4_K'; choose one of m-Q4_K_M.gguf, m-Q8_0.gguf"):
        resolve(f"{tmp_path}:Q4_K")
    with pytest.raises(ValueError, match="file 'Q8_0', the argument for 'Q4_K_M'"):
        resolve(f"{tmp_path}:Q8_0", file="Q4_K_M")
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        resolve(f"{tmp_path}/none:Q8_0")


def test_a_directory_before_a_repository_of_its_name(tmp_path, monkeypatch):
    for asking in (hub, headers):
        monkeypatch.setattr(asking, "hub_answers", lambda: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    for name in ("m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q4_0.gguf", "model.safetensors"):
        (tmp_path / "org" / "name" / name).touch()
    assert resolve("org/name:Q8_0") == Path("org/name/m-Q8_0-00001-of-00002.gguf")
    assert resolve("org/name:model.safetensors") == Path("org/name/model.safetensors")
    assert headers.on_hub("org/name:Q8_0", None, None) is None


# --- names of the hub


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", HubId("gpt2")),
        ("org/name", HubId("org/name")),
        ("Qwen/Qwen2.5-0.5B", HubId("Qwen/Qwen2.5-0.5B")),
        ("org/name_x.y-z@refs/pr/1", HubId("org/name_x.y-z", "refs/pr/1")),
        ("gpt2@607a30d", HubId("gpt2", "607a30d")),
        ("org/name:Q4_K_M", HubId("org/name", None, "Q4_K_M")),
        ("org/name:sub/m-00001-of-00002.gguf", HubId("org/name", None, "sub/m-00001-of-00002.gguf")),
        ("org/name@v1.0:m.gguf", HubId("org/name", "v1.0", "m.gguf")),
    ],
)
def test_hub_ids(name, expected):
    assert parse_hub_id(name) == expected


@pytest.mark.parametrize(
    "name", ["a b", "org/", "/name", "a..b", "a--b", "org/name@", "org/name:", "naïve", "a\nb", "-a"]
)
def test_what_is_no_hub_id(name):
    with pytest.raises(ValueError, match="neither an existing path nor a hub id"):
        parse_hub_id(name)


def test_a_name_and_an_argument_that_disagree(monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(ValueError, match="revision 'a', the argument for 'b'"):
        resolve("org/name@a", revision="b")
    with pytest.raises(ValueError, match="file 'a', the argument for 'b'"):
        resolve("org/name:a", file="b")
    with pytest.raises(ValueError, match="one pinned file"):
        resolve("smollm2", file="x")


SIDE = ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt"]
CODE = ["modeling_x.py", "README.md", "flax_model.msgpack", "model.h5", "sub/config.json", "onnx/model.onnx"]
CHOICES = {
    "one safetensors, not its .bin": (["model.safetensors", "pytorch_model.bin"], None, ["model.safetensors"], None),
    "shards and their index": (
        ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"],
        None,
        ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"],
        None,
    ),
    "shards, not the same once more": (
        ["consolidated.safetensors", "model-00001-of-00001.safetensors"],
        None,
        ["model-00001-of-00001.safetensors"],
        None,
    ),
    ".bin, not the trainer's": (["pytorch_model.bin", "training_args.bin"], None, ["pytorch_model.bin"], None),
    "one GGUF": (["m.gguf"], None, ["m.gguf"], "m.gguf"),
    "GGUF by type": (["m.Q4_K_M.gguf", "m.Q4_K_S.gguf"], "Q4_K_M", ["m.Q4_K_M.gguf"], "m.Q4_K_M.gguf"),
    "GGUF by type in any case": (["m-q8_0.gguf", "m-q4_0.gguf"], "Q8_0", ["m-q8_0.gguf"], "m-q8_0.gguf"),
    "split GGUF by type": (
        ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf", "m-Q4_0.gguf"],
        "Q8_0",
        ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"],
        "Q8_0/m-Q8_0-00001-of-00002.gguf",
    ),
    "a graph and the file of its tensors": (
        ["model.onnx", "model.onnx.data", "model_q4.onnx", "model_q4.onnx_data"],
        None,
        ["model.onnx", "model.onnx.data"],
        None,
    ),
    "another graph": (
        ["model.onnx", "model_q4.onnx", "model_q4.onnx_data", "model_q4.onnx_data_1"],
        "model_q4.onnx",
        ["model_q4.onnx", "model_q4.onnx_data", "model_q4.onnx_data_1"],
        "model_q4.onnx",
    ),
    "shards by their index, beside a GGUF": (
        ["m.gguf", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"],
        "m.safetensors.index.json",
        ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"],
        "m.safetensors.index.json",
    ),
    "a file by name": (["a.safetensors", "b.safetensors"], "b.safetensors", ["b.safetensors"], "b.safetensors"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_what_is_fetched(case):
    names, file, weights, entry = CHOICES[case]
    files, opened = choose_files([*SIDE, *CODE, *names], "org/name", file)
    indexes = [name for name in names if name.endswith(".json")]
    assert files == sorted({*SIDE, *weights, *indexes})
    assert opened == entry


def test_open_choices_are_listed():
    ggufs = ["m.Q4_K_M.gguf", "m.Q8_0.gguf", "mmproj-m-Q8_0.gguf"]
    with pytest.raises(ValueError, match="several GGUF models; name one.*m.Q4_K_M.gguf, m.Q8_0.gguf, mmproj"):
        choose_files(ggufs, "org/name")
    with pytest.raises(ValueError, match="org/name: Q8_0: several GGUF models.*: m.Q8_0.gguf, mmproj-m-Q8_0.gguf"):
        choose_files(ggufs, "org/name", "Q8_0")
    with pytest.raises(FileNotFoundError, match="no file or GGUF type 'Q5_0'; choose one of m.Q4_K_M.gguf, m.Q8_0"):
        choose_files(ggufs, "org/name", "Q5_0")
    with pytest.raises(ValueError, match=r"formats \(GGUF: m.gguf; safetensors .*: m.safetensors\).*org/name:FILE"):
        choose_files(["m.gguf", "m.safetensors"], "org/name")
    with pytest.raises(FileNotFoundError, match="no weights here.*it holds README.md"):
        choose_files(["README.md"], "org/name")


def test_what_is_cached_serves_offline(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--name"
    for commit, name in (("abc", "model.safetensors"), ("def", "m.Q8_0.gguf")):
        (folder / "snapshots" / commit / "sub").mkdir(parents=True)
        (folder / "snapshots" / commit / name).touch()
        (folder / "snapshots" / commit / "sub" / name).touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    snapshots = folder / "snapshots"
    assert resolve("org/name", offline=True) == snapshots / "abc"
    assert resolve("org/name", subfolder="sub", offline=True) == snapshots / "abc" / "sub"
    assert resolve("org/name@def", offline=True) == snapshots / "def" / "m.Q8_0.gguf"
    assert resolve("org/name", revision="def", file="Q8_0") == snapshots / "def" / "m.Q8_0.gguf"  # HF_HUB_OFFLINE=1
    with pytest.raises(FileNotFoundError, match="has no revision v2.*offline=True"):
        resolve("org/name@v2", offline=True)
    with pytest.raises(FileNotFoundError, match="org/other: no such path here, not downloaded before"):
        resolve("org/other")


def test_nobody_answers_within_the_limit():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound, but nobody listens
        assert not network.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", 3.0)
        silent.listen()  # takes the connection, but nobody answers
        assert not network.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.1)
    assert not network.reachable("http://nobody.invalid", 3.0)
    assert not network.reachable("no address", 3.0)


# --- a hub of our own, and the real client

REPO = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"other weights",
    "modeling_evil.py": b"import os",
    "sub/model.safetensors": b"sub weights",
    "gguf/m[1].Q8_0.gguf": b"GGUF",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as its client needs to list and fetch one repository, org/name."""

    asked: list[str] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith("/org/name/resolve/"):
            from urllib.parse import unquote

            content = REPO[unquote(path.split("/", 5)[5])]
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.send(200, content if body else b"", headers | {"Content-Length": str(len(content))})
        if path.startswith("/api/models/org/name/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in REPO.items()
            ]
            return self.send_json(200, tree)
        if path == "/api/models/org/name" or path.startswith("/api/models/org/name/revision/main"):
            siblings = [{"rfilename": name} for name in REPO]
            return self.send_json(200, {"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings})
        if path.startswith("/api/models/org/name/revision/"):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "Content-Length": "2"})
        if path.startswith("/api/models/org/gated"):
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo", "Content-Length": "2"})
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "Content-Length": "2"})

    def send_json(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send(status, content, {"Content-Type": "application/json", "Content-Length": str(len(content))})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


CLIENT = """
import sys
from forge_jax.hub import resolve
def report(*names, **options):
    try:
        path = resolve(*names, progress=False, **options)
        print(path.relative_to(sys.argv[1]).as_posix())
    except (OSError, ValueError) as error:
        print(type(error).__name__, error)
report("org/name")
report("org/name", subfolder="sub")
report("org/name@main:Q8_0")
report("org/name@v9")
report("org/nothing")
report("org/gated")
"""


def test_the_real_client_against_a_hub_of_our_own(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [".", "sub", "gguf/m[1].Q8_0.gguf"]
    assert lines[3] == "FileNotFoundError org/name: the repository has no revision 'v9'"
    assert lines[4].startswith("FileNotFoundError org/nothing: no such path here, and no such repository on the hub")
    assert lines[5].startswith("PermissionError org/gated: accept its licence at")
    fetched = {path.split("/", 5)[5] for path in Hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "sub/model.safetensors", "gguf/m%5B1%5D.Q8_0.gguf"}
