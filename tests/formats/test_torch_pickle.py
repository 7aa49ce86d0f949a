"""PyTorch files against torch itself, and against goldens that torch made."""

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from handmade_torch import state, storage, tensor, text, write

from converters.safetensors_file import open_safetensors
from converters.source import TensorSource
from converters.torch_pickle import open_torch

GOLDENS = Path(__file__).parent / "goldens"


def expected() -> dict[str, np.ndarray]:
    """What the goldens hold; `save_golden` builds the same with torch."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6) / 8
    plain = {
        "weight": base,
        "transposed": base.T,
        "middle": base[1:3, 2:5],
        "steps": base[::2, ::3],
        "row_expanded": np.broadcast_to(base[1], (3, 6)),
        "scalar": base[3, 5],
        "empty": np.zeros((3, 0), np.float32),
        "tied": base,
    }
    codes = np.arange(6)
    types = [
        np.float64,
        np.float16,
        np.int64,
        np.int32,
        np.int16,
        np.int8,
        np.uint8,
        np.complex64,
        np.uint16,
        np.uint64,
    ]
    types += [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
    typed = {np.dtype(t).name: codes.astype(np.float32).astype(t) for t in types}
    return plain | typed | {"bool": codes % 2 == 1}


def save_golden(target, *, legacy: bool, **options) -> None:
    """Save `expected()` with torch. The goldens are save_golden(GOLDENS / "torch_zip.bin", legacy=False) and so on."""
    import torch

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    state = {
        "weight": torch.nn.Parameter(base),
        "transposed": base.T,
        "middle": base[1:3, 2:5],
        "steps": base[::2, ::3],
        "row_expanded": base[1].expand(3, 6),
        "scalar": base[3, 5],
        "empty": torch.zeros(3, 0),
    }
    state["tied"] = state["weight"]
    for name in expected():
        if name not in state:
            state[name] = torch.arange(6).to(getattr(torch, name)) if name != "bool" else torch.arange(6) % 2 == 1
    state |= {"step": 3, "config": {"size": torch.Size([2, 3]), "names": ["a", None, True, 0.5, b"\x80"], "on": {1, 2}}}
    state["config"] |= {"device": torch.device("cpu"), "dtype": torch.bfloat16}
    torch.save(state, target, _use_new_zipfile_serialization=not legacy, **options)


def assert_expected(source: TensorSource) -> None:
    assert set(source.tensors) == set(expected())
    for name, value in expected().items():
        got = source.read(name)
        assert (got.dtype, got.shape) == (value.dtype, value.shape), name
        assert source.tensors[name].shape == value.shape
        assert got.flags.c_contiguous
        assert got.tobytes() == np.ascontiguousarray(value).tobytes(), name
    assert source.metadata["step"] == 3
    config = source.metadata["config"]
    assert config == {
        "size": (2, 3),
        "names": ["a", None, True, 0.5, b"\x80"],
        "on": {1, 2},
        "device": "cpu",
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize("name", ["torch_zip.bin", "torch_legacy.bin"])
def test_goldens_read_as_torch_wrote_them(name):
    source = open_torch(GOLDENS / name)
    assert isinstance(source, TensorSource)
    assert source.format == "torch"
    assert_expected(source)
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.read("weight")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saves_today(tmp_path, legacy, protocol):
    pytest.importorskip("torch")
    save_golden(tmp_path / "m.pt", legacy=legacy, pickle_protocol=protocol)
    assert_expected(open_torch(tmp_path / "m.pt"))


@pytest.mark.parametrize(
    ("kind", "values", "data"),
    [
        ("FloatStorage", np.array([1, -2, 3, 0.5], np.float32), np.array([1, -2, 3, 0.5], ">f4").tobytes()),
        ("LongStorage", np.array([1, -2, 3, 2**40]), np.array([1, -2, 3, 2**40], ">i8").tobytes()),
        ("ComplexFloatStorage", np.array([1, 2j, 3, 4j], np.complex64), np.array([1, 2j, 3, 4j], ">c8").tobytes()),
        ("BFloat16Storage", np.array([1, -2, 3, 0.5], ml_dtypes.bfloat16), bytes.fromhex("3f80c00040403f00")),
        ("BoolStorage", np.array([True, False, True, True]), bytes([1, 0, 1, 1])),
    ],
)
def test_big_endian_zip_reads_as_torch_reads_it(tmp_path, kind, values, data):
    pickled = state(("x", tensor(storage(kind=f"torch\n{kind}"), shape=(2, 2), strides=(1, 2))))
    path = write(tmp_path, pickled, data, byteorder=b"big")
    read = open_torch(path).read("x")
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values.reshape(2, 2).T)
    torch = pytest.importorskip("torch")
    assert torch.load(path)["x"].tolist() == values.reshape(2, 2).T.tolist()


def test_a_byte_order_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="byte order b'middle' is neither"):
        open_torch(write(tmp_path, state(("x", tensor())), byteorder=b"middle"))


def test_a_real_bin_equals_its_safetensors_sibling(shared):
    folder = shared / "models" / "stories260K"
    ours, sibling = open_torch(folder / "pytorch_model.bin"), open_safetensors(folder / "hf")
    assert set(ours.tensors) - set(sibling.tensors) == {"lm_head.weight"}  # tied, which safetensors leaves out
    for name in sibling.tensors:
        assert ours.read(name).tobytes() == sibling.read(name).tobytes()
        assert ours.tensors[name].shape == sibling.tensors[name].shape
        assert ours.tensors[name].dtype == sibling.tensors[name].dtype


def test_a_module_with_buffers_and_metadata(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    for legacy in (False, True):
        torch.save(module.state_dict(), tmp_path / "m", _use_new_zipfile_serialization=not legacy)
        source = open_torch(tmp_path / "m")
        assert list(source.tensors) == list(module.state_dict())
        for name, value in module.state_dict().items():
            np.testing.assert_array_equal(source.read(name), value.numpy())


def test_a_tensor_with_attributes(tmp_path):
    torch = pytest.importorskip("torch")
    value = torch.nn.Parameter(torch.ones(2))
    value.label = "kept by torch, of no use here"
    torch.save({"x": value}, tmp_path / "m")
    np.testing.assert_array_equal(open_torch(tmp_path / "m").read("x"), [1, 1])


def test_conjugated_views_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "m")
    with pytest.raises(ValueError, match="resolve_conj"):
        open_torch(tmp_path / "m")


def test_reading_a_row_of_a_large_storage_reads_that_row(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"row": torch.zeros(2048, 2048)[7]}, tmp_path / "m")
    tracemalloc.start()
    open_torch(tmp_path / "m").read("row")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**19  # the storage has 16 MB


def test_shards_by_index_by_directory_and_by_list(tmp_path):
    torch = pytest.importorskip("torch")
    for i in (1, 2):
        torch.save({f"t{i}": torch.full((2,), float(i))}, tmp_path / f"pytorch_model-0000{i}-of-00002.bin")
    index = {"weight_map": {f"t{i}": f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    for source in (tmp_path, tmp_path / "pytorch_model.bin.index.json", sorted(tmp_path.glob("*of*.bin"))):
        opened = open_torch(source)
        assert [float(opened.read(name)[0]) for name in ("t1", "t2")] == [1, 2]
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model-00002-of-00002.bin \(with 1 tensors\)"):
        open_torch(tmp_path)


def test_the_files_made_by_hand_are_right(tmp_path):
    data = np.arange(4, dtype=np.float32).tobytes()
    source = open_torch(write(tmp_path, state(("x", tensor())), data))
    np.testing.assert_array_equal(source.read("x"), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("root", "names"),
    [
        ({"a": 0, "b": 1}, ["a", "b"]),
        ({"state_dict": {"a": 0}, "epoch": 3}, ["a"]),
        ({"model": {"a": 0}, "optimizer": {"state": {"0": {"exp_avg": 1}}}}, ["a"]),
    ],
)
def test_one_level_of_nesting_is_unwrapped(tmp_path, root, names):
    torch = pytest.importorskip("torch")

    def fill(value):
        return {k: fill(v) if isinstance(v, dict) else torch.ones(1) if k != "epoch" else v for k, v in value.items()}

    torch.save(fill(root), tmp_path / "m")
    source = open_torch(tmp_path / "m")
    assert list(source.tensors) == names
    if "epoch" in root:
        assert source.metadata == {"epoch": 3}
    if "optimizer" in root:
        assert source.metadata == {"optimizer": {"state": {"0": {"exp_avg": "<tensor>"}}}}


def test_two_state_dicts_need_a_choice(tmp_path):
    inner = b"}" + text("x") + tensor() + b"s"
    path = write(tmp_path, state(("model", inner), ("ema", inner), ("step", b"K\x01")))
    with pytest.raises(ValueError, match=r"2 of its entries are state dicts.*'model', 'ema', 'step'.*key="):
        open_torch(path)
    assert open_torch(path, key="ema").metadata == {"model": {"x": "<tensor>"}, "step": 1}
    with pytest.raises(ValueError, match="0 of its entries are state dicts called 'emma'"):
        open_torch(path, key="emma")


def test_tensors_on_two_levels_are_refused(tmp_path):
    nested = b"}" + text("y") + tensor() + b"s"
    with pytest.raises(ValueError, match="'deep' holds tensors one level below"):
        open_torch(write(tmp_path, state(("x", tensor()), ("deep", nested))))
