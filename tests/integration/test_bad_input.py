"""Bad input through the front door: each is one clear error that names what and where, and nothing is half-written."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import read_golden
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import write_chat_model, write_golden_directory

from forge_jax import Session, exporting, loading, text
from forge_jax.loading import Model

Edit = Callable[[dict[str, Any]], None]


def load(path: Path, **options: Any) -> Model:
    return loading.load(path, progress=False, **options)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A sound directory: config.json and model.safetensors of a small llama with a head of its own."""
    return write_golden_directory("llama", tmp_path / "llama")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound directory with a tokenizer."""
    return write_chat_model(tmp_path_factory.mktemp("chat") / "chat")


def edit_config(directory: Path, edit: Edit) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))


def edit_tensors(directory: Path, edit: Edit) -> None:
    arrays = load_file(directory / "model.safetensors")
    edit(arrays)
    save_file(arrays, directory / "model.safetensors")


def refuse(path: Path, *parts: str, kind: type[Exception] = ValueError, **options: Any) -> str:
    """Load must fail with an error that has all the parts, and names the path."""
    with pytest.raises(kind) as caught:
        load(path, **options)
    message = str(caught.value)
    for part in (*parts, str(path.parent)):
        assert part in message, message
    assert len(message) < 2000
    return message


# ------------------------------------------------------------------------------------------------ containers
def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def gguf(llama: Path) -> Path:
    """The same model as GGUF."""
    return exporting.export_gguf(load(llama), llama / "model.gguf", type="F32")


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_empty_and_truncated_files(llama: Path, kind: str):
    file = gguf(llama) if kind == "gguf" else llama / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(b"")
    refuse(file, "the file is empty")
    for length in (3, 20, 300, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refuse(file, file.name)
    file.write_bytes(whole)
    load(file)


def test_a_truncated_file_says_that_it_was_cut_off(llama: Path):
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refuse(file, "the file was cut off")


@pytest.mark.parametrize("at", [0, 1, 7, 8, 9, 40, 120])
def test_a_damaged_safetensors_header(llama: Path, at: int):
    """Any bit of the length and the header; the data has no checksum, there only NaN can be seen."""
    file = llama / "model.safetensors"
    file.write_bytes(flip(file.read_bytes(), at))
    refuse(file)


@pytest.mark.parametrize("at", [0, 4, 8, 11, 16, 23, 24, 60, 200])
def test_a_damaged_gguf_header(llama: Path, at: int):
    file = gguf(llama)
    file.write_bytes(flip(file.read_bytes(), at))
    refuse(file)


def string(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(keys: list[bytes], tensors: list[bytes], data: int) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys + tensors)
    return head + bytes(-len(head) % 32 + data)


ARCH = string("general.architecture") + struct.pack("<I", 8) + string("llama")


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ([ARCH, string("k") + struct.pack("<IIQ", 9, 4, 1 << 63)], [], "elements of 'k' is 9223372036854775808"),
        ([ARCH, string("k") + struct.pack("<IIQ", 9, 8, 1 << 63)], [], "elements of 'k' is 9223372036854775808"),
        ([ARCH, string("k") + struct.pack("<IQ", 8, 1 << 62)], [], "the value of 'k' is 4611686018427387904"),
        ([struct.pack("<Q", 1 << 62)], [], "the length of a metadata key is"),
        (
            [ARCH],
            [string(n) + struct.pack("<IQIQ", 1, 16, 0, at) for n, at in (("a", 0), ("b", 32))],
            "'a' and 'b' overlap",
        ),
        ([ARCH], [string("a") + struct.pack("<IQIQ", 1, 1 << 61, 0, 0)], "takes the bytes"),
        ([ARCH], [string("a") + struct.pack("<IQIQ", 1, 8, 0, 1 << 63)], "takes the bytes"),
    ],
)
def test_a_gguf_that_lies(tmp_path: Path, keys: list[bytes], tensors: list[bytes], message: str):
    file = tmp_path / "lie.gguf"
    file.write_bytes(gguf_bytes(keys, tensors, 96))
    refuse(file, message)


@pytest.mark.parametrize(("at", "count"), [(8, "number of tensors"), (16, "number of metadata keys")])
def test_a_gguf_that_counts_too_many(tmp_path: Path, at: int, count: str):
    data = bytearray(gguf_bytes([ARCH], [], 32))
    data[at : at + 8] = struct.pack("<Q", 1 << 60)
    (tmp_path / "lie.gguf").write_bytes(data)
    refuse(tmp_path / "lie.gguf", count)


@pytest.mark.parametrize("damage", ["empty", "start", "half", "end", "directory"])
def test_damaged_bin_files(shared: Path, tmp_path: Path, damage: str):
    shutil.copytree(shared / "models/stories260K/hf", tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    whole = (shared / "models/stories260K/pytorch_model.bin").read_bytes()
    broken = {
        "empty": b"",
        "start": flip(whole, 2),
        "half": whole[: len(whole) // 2],
        "end": whole[:-3],
        "directory": flip(whole, whole.rindex(b"PK\x01\x02") + 44),
    }[damage]
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(broken)
    refuse(tmp_path / "m" / "pytorch_model.bin")


class Evil:
    """Pickles itself as a shell command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("container", ["zip", "bare"])
def test_a_pickle_that_calls_os_system(llama: Path, container: str):
    mark, file = llama / "mark", llama / "pytorch_model.bin"
    (llama / "model.safetensors").unlink()
    code = pickle.dumps({"model.embed_tokens.weight": Evil(mark)}, protocol=2)
    if container == "bare":
        file.write_bytes(code)
        refuse(file, "pickles can run code and are never loaded")
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", code)
        refuse(file, "posix.system", "nothing was executed")
    assert not mark.exists()


def test_missing_and_mixed_up_shards(llama: Path, tmp_path: Path):
    out = exporting.export_huggingface(load(llama), tmp_path / "out", max_shard_bytes=20_000)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2
    shutil.move(files[1], tmp_path / "kept")
    refuse(out, "1 of", "shards missing", files[1].name, kind=FileNotFoundError)
    shutil.copy(files[0], files[1])
    refuse(out, files[1].name)
    index = out / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(files[1].name, "../kept"))
    refuse(out, "'../kept'; a shard is a file name in this directory")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\x1f\x8b\x08 gzip", "gzip-compressed"),
        (b"hello", "model.safetensors"),
    ],
)
def test_what_is_no_checkpoint(llama: Path, content: bytes, message: str):
    (llama / "model.safetensors").write_bytes(content)
    refuse(llama / "model.safetensors", message)


def test_what_is_not_there(llama: Path):
    refuse(llama / "model.safetensor", "no such file", "model.safetensors", kind=FileNotFoundError)
    (llama / "model.safetensors").unlink()
    refuse(llama, "no weights here", "config.json", kind=FileNotFoundError)


# ------------------------------------------------------------------------------------------------ config
def test_an_unknown_architecture(llama: Path):
    edit_config(llama, lambda config: config.update(model_type="lama"))
    refuse(llama, "config.json: model_type 'lama' is not a known architecture; nearest are llama")
    edit_config(llama, lambda config: config.update(model_type="zzzzzz"))
    refuse(llama, "model_type 'zzzzzz' is not a known architecture. Known: ")
    edit_config(llama, lambda config: config.pop("model_type"))
    refuse(llama, "model_type None is not a known architecture")


def test_a_config_value_that_nobody_reads(llama: Path):
    edit_config(llama, lambda config: config.update(attention_multiplier=0.5, new_trick="on"))
    message = refuse(llama, "2 config keys are not understood", "attention_multiplier=0.5", "new_trick='on'")
    assert "load with allow={'attention_multiplier', 'new_trick'}" in message
    refuse(llama, "1 config keys are not understood", "new_trick='on'", allow={"attention_multiplier"})
    assert load(llama, allow={"attention_multiplier", "new_trick"}).spec == read_golden("llama").spec


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('{"hidden_size": 3, "hidden_size": 4}', "the key 'hidden_size' appears twice"),
        ('{"hidden_size": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("\xff\xfe", "config.json"),
        ('{"model_type": "llama"}', "is missing and has no default; the config is incomplete"),
    ],
)
def test_a_damaged_config(llama: Path, content: str, message: str):
    (llama / "config.json").write_bytes(content.encode("latin-1"))
    refuse(llama, "config.json", message)


def test_a_config_that_is_not_there(llama: Path):
    (llama / "config.json").unlink()
    for path in (llama, llama / "model.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"llama/config\.json is missing: .*Put the model's config\.json"):
            load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        ({"hidden_act": "swoosh"}, "hidden_act = 'swoosh' is not one of"),
        ({"rope_parameters": {"rope_type": "magic", "rope_theta": 1.0}}, "magic"),
        ({"hidden_size": 65}, "tensors do not fit the config"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"num_hidden_layers": 1}, "is used by nothing"),
    ],
)
def test_a_config_that_does_not_fit(llama: Path, changes: dict[str, Any], message: str):
    edit_config(llama, lambda config: config.update(changes))
    refuse(llama, message)


def test_a_generation_config_that_is_none(llama: Path):
    (llama / "generation_config.json").write_text("[]")
    refuse(llama, "generation_config.json: expected a JSON object, found list")


# ------------------------------------------------------------------------------------------------ tensors
def test_missing_extra_and_misshapen_tensors(llama: Path):
    def spoil(arrays: dict[str, Any]) -> None:
        del arrays["model.norm.weight"]
        arrays["model.extra.weight"] = np.zeros((2, 3), np.float32)
        arrays["lm_head.weight"] = arrays["lm_head.weight"][:, :-1].copy()

    edit_tensors(llama, spoil)
    refuse(
        llama,
        "3 tensors do not fit the config",
        "model.norm.weight is missing (needed for final_norm.scale)",
        "lm_head.weight is [160, 63], the config asks [160, 64] (for head)",
        "model.extra.weight [2, 3] is used by nothing",
    )


def test_many_wrong_tensors_are_counted(llama: Path):
    edit_tensors(llama, lambda arrays: [arrays.pop(name) for name in list(arrays)[:9]] and None)
    assert "; and 4 more" in refuse(llama, "9 tensors do not fit the config")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_are_no_numbers(llama: Path, dtype: str, bad: float):
    import ml_dtypes

    def spoil(arrays: dict[str, Any]) -> None:
        for name in arrays:
            arrays[name] = arrays[name].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        arrays["model.layers.1.mlp.up_proj.weight"][3, 4] = bad

    edit_tensors(llama, spoil)
    refuse(llama, "layers.1.mlp.up has NaN or infinite values")


def test_weights_of_a_gguf_that_are_no_numbers(llama: Path):
    file = gguf(llama)
    file.write_bytes(file.read_bytes()[:-4] + struct.pack("<f", np.nan))
    refuse(file, "has NaN or infinite values")


def test_large_weights_are_numbers(llama: Path):
    """Their sum overflows, they do not."""
    edit_tensors(llama, lambda arrays: arrays["model.norm.weight"].fill(3e38))
    load(llama)


def test_weights_beyond_float16(llama: Path, tmp_path: Path):
    edit_tensors(llama, lambda arrays: arrays["model.norm.weight"].__setitem__(3, 1e5))
    model = load(llama)
    with pytest.raises(ValueError, match=r"final_norm\.scale has values beyond float16's 65504"):
        load(llama, dtype="float16")
    with pytest.raises(ValueError, match=r"model\.norm\.weight has values beyond float16's 65504"):
        exporting.export_huggingface(model, tmp_path / "out", dtype="float16")
    assert [item.name for item in tmp_path.iterdir()] == ["llama"]


def test_a_tied_head_that_differs(tmp_path: Path):
    tied = write_golden_directory("llama_tied_gelu", tmp_path / "tied")
    embed = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(tied, lambda arrays: arrays.update({"lm_head.weight": embed}))
    load(tied)  # the same twice is no contradiction
    edit_tensors(tied, lambda arrays: arrays.update({"lm_head.weight": embed + np.float32(1e-6)}))
    refuse(tied, "ties the head to the embedding, but lm_head.weight differs from model.embed_tokens.weight")
    edit_config(tied, lambda config: config.update(tie_word_embeddings=False))
    assert not load(tied).spec.tied


# ------------------------------------------------------------------------------------------------ text
def test_a_tokenizer_of_another_model(chat: Path, tmp_path: Path):
    other = Path(shutil.copytree(chat, tmp_path / "other"))
    edit_config(other, lambda config: config.update(vocab_size=90))
    edit_tensors(other, lambda arrays: arrays.update(embed=arrays["embed"][:90].copy()))
    refuse(other, "the tokenizer has 98 tokens, the embedding 90 rows; they belong to different models")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE", "vocab": {}, "merges": 3}}'])
def test_a_damaged_tokenizer(chat: Path, tmp_path: Path, content: str):
    other = Path(shutil.copytree(chat, tmp_path / "other"))
    (other / "tokenizer.json").write_text(content)
    refuse(other, "tokenizer.json")


def test_prompts_that_do_not_fit(chat: Path):
    model = load(chat)
    context = model.spec.max_seq_len
    with pytest.raises(ValueError, match="a prompt of 513 tokens is longer than the model's context of 512"):
        text.complete(model, ["x" * 513], max_new_tokens=0)
    with pytest.raises(ValueError, match="514 tokens .* do not fit the model's context of 512"):
        text.stream(model, "x" * 510, max_new_tokens=4)
    for ids, message in (([], "prompt 0 is empty"), ([98], "prompt 0 has the id 98, outside"), ([-1], "the id -1")):
        with pytest.raises(ValueError, match=message):
            Session(model.spec, model.params, [ids], max_new_tokens=1)
    with pytest.raises(ValueError, match="lone surrogate"):
        text.complete(model, ["\ud800"])
    assert context == 512


def test_a_model_without_a_tokenizer_says_so(llama: Path):
    with pytest.raises(ValueError, match=r"llama: the checkpoint has no tokenizer; put tokenizer\.json"):
        text.complete(load(llama), ["Hello"])


def test_a_load_that_fails_leaves_no_file_open(llama: Path, recwarn: pytest.WarningsRecorder):
    edit_config(llama, lambda config: config.update(hidden_size=65))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        refuse(llama, "tensors do not fit")
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
    assert not recwarn.list
