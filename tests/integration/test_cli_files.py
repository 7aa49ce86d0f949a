"""`forge-jax inspect`, `convert`, `verify` and the command line as a whole."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import write_golden_directory

import forge_jax
from forge_jax.cli import convert, main, verifying
from forge_jax.inspection import inspect
from forge_jax.loading import load
from forge_jax.params import flatten
from forge_jax.tensor import dense


@pytest.fixture
def llama(tmp_path) -> Path:
    return write_golden_directory("llama", tmp_path / "llama")


# --- the whole


@pytest.mark.parametrize("command", ["", *"generate chat inspect convert quantize verify evaluate doctor".split()])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "example" in out
    assert f"  forge-jax {command}" in out


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"forge-jax {forge_jax.__version__}\n"


@pytest.mark.parametrize("words", [[], ["dance"], ["generate", "--temperature", "hot"], ["convert", "one"]])
def test_usage_errors(capsys, words):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: forge-jax" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom forge_jax.cli import main\n"
        "try: main(['chat', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(', '.join({'jax', 'numpy', 'tokenizers', 'huggingface_hub', 'converters'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


# --- inspect


def test_inspect_as_text_and_as_json(llama, capsys):
    assert main(["inspect", str(llama), "--context", "16", "--batch", "2", "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == f"{inspect(str(llama), context=16, batch=2, dtype='bfloat16')}\n"
    assert main(["inspect", str(llama), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(inspect(str(llama)).to_dict()))


def test_inspect_says_what_is_wrong(llama, capsys):
    assert main(["inspect", str(llama), "--context", "1000000"]) == 1
    assert capsys.readouterr().err.startswith("forge-jax: 1000000 tokens")
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"new_trick": 3}))
    assert main(["inspect", str(llama)]) == 1
    assert "new_trick" in capsys.readouterr().err
    assert main(["inspect", str(llama), "--allow", "new_trick"]) == 0


# --- convert


def same_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same numbers in the same types."""
    ours, theirs = (dict(flatten(load(path, dtype="stored", progress=False).params)) for path in (first, second))
    return ours.keys() == theirs.keys() and all(
        ours[path].dtype == theirs[path].dtype and np.array_equal(dense(ours[path]), dense(theirs[path]))
        for path in ours
    )


@pytest.mark.parametrize("target", ["copy", "copy.safetensors", "copy.gguf", "copy.orbax"])
def test_there_and_back_again(llama, tmp_path, capsys, target):
    there, back = tmp_path / target, tmp_path / "back"
    words = ["--to", "orbax"] if there.suffix == ".orbax" else []
    assert main(["convert", str(llama), str(there), *words]) == 0
    size = sum(p.stat().st_size for p in [there, *there.rglob("*")] if p.is_file())
    listed = capsys.readouterr().out.splitlines()
    assert sum(int(line.split()[0].replace(",", "")) for line in listed) == size
    assert same_weights(llama, there)
    assert main(["convert", str(there), str(back)]) == 0
    assert same_weights(llama, back)


def test_dtype_and_shards(llama, tmp_path):
    target = tmp_path / "half"
    assert main(["convert", str(llama), str(target), "--dtype", "float16", "--max-shard-size", "20KB"]) == 0
    shards = sorted(target.glob("*.safetensors"))
    assert len(shards) > 2
    assert {x.dtype for shard in shards for x in load_file(shard).values()} == {np.dtype(np.float16)}
    assert load(target, progress=False).spec == load(llama, progress=False).spec


def test_a_mix_with_an_importance_matrix(llama, tmp_path, capsys):
    plain, weighed, matrix = (tmp_path / name for name in ("plain.gguf", "weighed.gguf", "imatrix.dat"))
    name, columns = b"blk.0.attn_q.weight", load(llama, progress=False).spec.dim
    sums = np.arange(columns, dtype="<f4").tobytes()
    matrix.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", 1, columns) + sums)
    assert main(["convert", str(llama), str(plain), "--type", "Q4_K_M"]) == 0
    assert main(["convert", str(llama), str(weighed), "--type", "Q4_K_M", "--importance", str(matrix)]) == 0
    assert not same_weights(plain, weighed)
    assert load(plain, progress=False).spec == load(weighed, progress=False).spec
    capsys.readouterr()
    assert main(["convert", str(llama), str(tmp_path / "a.gguf"), "--type", "Q9_K"]) == 1
    assert "type 'Q9_K' is not written; expected one of F32, F16" in capsys.readouterr().err
    assert main(["convert", str(llama), str(tmp_path / "a"), "--importance", str(matrix)]) == 1
    assert "--importance does not apply to huggingface" in capsys.readouterr().err


def test_a_gguf_loses_nothing_unless_asked(llama, tmp_path):
    arrays = load_file(llama / "model.safetensors")
    save_file({name: x.astype(np.float16) for name, x in arrays.items()}, llama / "model.safetensors")
    assert main(["convert", str(llama), str(tmp_path / "a.gguf")]) == 0
    assert main(["convert", str(llama), str(tmp_path / "b.gguf"), "--type", "Q8_0"]) == 0
    kinds = {name: {row.type for row in inspect(tmp_path / f"{name}.gguf").storage} for name in "ab"}
    assert kinds["a"] == {"F16", "F32"}  # GGUF keeps vectors in float32
    assert "Q8_0" in kinds["b"]


def test_what_is_there_stays_unless_asked(llama, tmp_path, capsys):
    target = tmp_path / "model.safetensors"
    target.write_text("mine")
    assert main(["convert", str(llama), str(target)]) == 1
    assert "is there already; choose another name or add --overwrite" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["convert", str(llama), str(target), "--overwrite"]) == 0
    assert "lm_head.weight" in load_file(target)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.gguf", "--dtype", "float16"], "--dtype does not apply to gguf; it is for huggingface and safetensors"),
        (["x", "--type", "Q8_0"], "--type does not apply to huggingface; it is for gguf"),
        (["x.safetensors", "--max-shard-size", "1GB"], "--max-shard-size does not apply to safetensors"),
        (["x", "--max-shard-size", "big"], "--max-shard-size 'big': expected a size such as 5GB"),
        (["x", "--max-shard-size", "0"], "expected a size such as 5GB"),
        (["no/such/directory"], "the directory no/such does not exist"),
    ],
)
def test_what_cannot_be_converted(llama, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(llama), *words]) == 1
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama"]


def test_sizes():
    sizes = {"5GB": 5 * 10**9, "1.5 MB": 1_500_000, "2GiB": 2**31, "7": 7, "3kb": 3000, "4K": 4000, "1t": 10**12}
    assert {text: convert.read_size(text) for text in sizes} == sizes


# --- verify


def test_verify_finds_the_same_numbers(shared, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    stories = shared / "models" / "stories260K"
    assert main(["verify", str(stories / "hf"), "--tokens", "6"]) == 0
    out = capsys.readouterr().out
    assert "same top-1      100.00%" in out
    assert out.splitlines()[-1].startswith("the same:")
    assert main(["verify", str(stories / "stories260K-f32.gguf"), "--tokens", "6"]) == 1
    assert "give the model's HuggingFace directory as --reference DIR" in capsys.readouterr().err
    gguf = [str(stories / "stories260K-f32.gguf"), "--reference", str(stories / "hf")]
    assert main(["verify", *gguf, "--tokens", "6"]) == 0


def test_verify_finds_other_numbers(shared, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    hf = shared / "models" / "stories260K" / "hf"
    other = tmp_path / "other"
    other.mkdir()
    for file in hf.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    arrays = load_file(hf / "model.safetensors")
    arrays["model.norm.weight"][0] *= 1.05
    save_file(arrays, other / "model.safetensors")
    assert main(["verify", str(other), "--reference", str(hf), "--tokens", "6"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("DIFFERENT:")


def test_verify_without_torch(llama, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["verify", str(llama)]) == 1
    assert "verify needs torch and transformers: pip install 'transformers>=5' torch" in capsys.readouterr().err


def test_ties_are_no_difference():
    logits = np.array([[0.0, 1.0, 2.0], [0.0, 5.0, 5.0 + 1e-6]])
    assert verifying.same_or_tied((2, 1), (2, 2), logits, 1e-6)
    assert not verifying.same_or_tied((2, 0), (2, 2), logits, 1e-6)
    assert verifying.same_or_tied((2, 2), (2, 2), logits, 0.0)
