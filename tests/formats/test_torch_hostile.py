"""PyTorch files that want more than tensors: code, memory, time, bytes of others. Each must fail at once, by name."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from handmade_torch import make_zip, number, state, storage, tensor, text, write

from converters.torch_pickle import open_torch

GOLDENS = Path(__file__).parent / "goldens"
LEGACY_START = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # the pickle of torch's magic number, without its STOP


class Evil:
    """Pickles itself as a call that would leave a mark."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch {mark}", "posix.system"),
        (eval, "open('{mark}','w')", "(__builtin__|builtins).eval"),
        (exec, "open('{mark}','w')", "(__builtin__|builtins).exec"),
        (pickle.loads, b"cposix\nsystem\n.", "_?pickle.loads"),
        (getattr, None, "(__builtin__|builtins).getattr"),
    ],
)
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, function, argument, name, protocol):
    mark = tmp_path / "mark"
    argument = argument.format(mark=mark) if isinstance(argument, str) else argument
    evil = pickle.dumps({"x": Evil(function, argument)}, protocol)
    with pytest.raises(ValueError, match=f"asks for '{name}'.*nothing was executed"):
        open_torch(write(tmp_path, evil))
    assert not mark.exists()
    legacy = tmp_path / "legacy.pt"
    legacy.write_bytes(LEGACY_START + b".\x80\x02M\xe9\x03.\x80\x02}." + evil)
    with pytest.raises(ValueError, match=f"pickle 4 of 5: the pickle asks for '{name}'"):
        open_torch(legacy)
    assert not mark.exists()


REDUCE_TRICKS = {
    "stack global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.", "asks for 'os.system'"),
    "dots in the name": (b"\x80\x04\x8c\x05torch\x8c\x0b_utils.eval\x93.", "asks for 'torch._utils.eval'"),
    "dots through an allowed module": (
        b"\x80\x04\x8c\x0bcollections\x8c\x17OrderedDict.fromkeys.im\x93.",
        "OrderedDict.fromkeys.im",
    ),
    "name is no text": (b"\x80\x04K\x01K\x02\x93.", "must be text"),
    "call of text": (b"\x80\x02" + text("os.system") + text("ls") + b"\x85R.", "a str is called"),
    "call of a dtype": (b"\x80\x02ctorch\nfloat32\n)R.", "is called, which is no function"),
    "call of a result": (b"\x80\x02ccollections\nOrderedDict\n)R)R.", "a dict is called"),
    "call without a tuple": (b"\x80\x02ccollections\nOrderedDict\n]R.", "expected a tuple"),
    "torch.load inside": (b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01x\x85R.", "torch.storage._load_from_bytes"),
    "build on a function": (b"\x80\x02ccollections\nOrderedDict\n}b.", "a dict must be on the stack"),
    "object by INST": (b"(ios\nsystem\n.", "opcode b'i' is not used"),
    "object by OBJ": (b"(cos\nsystem\no.", "asks for 'os.system'"),
    "object by NEWOBJ": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "is not used"),
    "extension registry": (b"\x80\x02\x82\x01.", "is not used"),
    "persistent id as text": (b"Pos.system\n.", "is not used"),
    "persistent id of another kind": (b"\x80\x02" + text("os.system") + b"Q.", "no storage"),
    "type rebuilt by a function that is not torch's": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(ccollections\nOrderedDict\nctorch\nTensor\n)NtR.",
        "rebuilt with collections.OrderedDict",
    ),
}


@pytest.mark.parametrize("case", REDUCE_TRICKS)
def test_pickle_tricks(tmp_path, case):
    pickled, message = REDUCE_TRICKS[case]
    with pytest.raises(ValueError, match=message):
        open_torch(write(tmp_path, pickled))


BOMBS = {
    "text of 2^62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
    "bytes of 2^62 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "text of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "integer of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "negative integer size": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "frame of 2^63 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b".",
    "memo with a gap": b"\x80\x02Nr\xff\xff\xff\xff.",
    "memo that was never set": b"\x80\x02j\xff\xff\xff\xff.",
    "empty": b"",
    "no stop": b"\x80\x02}",
    "no value": b"\x80\x02.",
    "empty stack": b"\x80\x020.",
    "no mark": b"\x80\x02t.",
    "odd number of items": b"\x80\x02}(K\x01u.",
    "items into a list": b"\x80\x02](K\x01K\x02u.",
    "append to a dict": b"\x80\x02}K\x01a.",
    "list as a key": b"\x80\x02}]K\x01s.",
    "tuple as a key": b"\x80\x02})K\x01s.",
    "key with a chosen hash": b"\x80\x02}" + number(2**61 - 1) + b"K\x01s.",
    "protocol 6": b"\x80\x06}.",
    "text that is not UTF-8": b"\x80\x02U\x01\xff.",
    "billion laughs": b"\x80\x02}"
    + text("x")
    + b"]"
    + b"".join(b"q%c(%st" % (i, b"h%c" % i * 10) for i in range(99))
    + b"s.",
    "list in itself": b"\x80\x02}" + text("x") + b"]q\x00h\x00as.",
    "sets from one list": b"\x80\x02](" + b"N" * 1000 + b"eq\x00" + b"c__builtin__\nset\nh\x00\x85R" * 5000 + b".",
    "tuples in each other": b"\x80\x02)" + b"\x85" * 10**5 + b".",
    "a million sets": b"\x80\x04" + b"\x8f" * 10**6 + b".",
    "marks without end": b"\x80\x02" + b"(" * 10**5 + b".",
}


@pytest.mark.parametrize("case", BOMBS)
def test_pickle_bombs_fail_without_memory(tmp_path, case):
    path = write(tmp_path, BOMBS[case])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"m\.pt"):
        open_torch(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + 64 * 2**20


FORGED = {
    "storage that is missing": (tensor(storage("7")), bytes(16), "'7'. is missing"),
    "storage shorter than said": (tensor(), bytes(12), "should have 16 bytes, the file holds 12"),
    "view past the end": (tensor(shape=(5,)), bytes(16), "reaches outside"),
    "offset past the end": (tensor(offset=1), bytes(16), "reaches outside"),
    "strides past the end": (tensor(shape=(2, 2), strides=(3, 1)), bytes(16), "reaches outside"),
    "negative stride": (tensor(strides=(-1,)), bytes(16), "something else than numbers"),
    "negative offset": (tensor(offset=-1), bytes(16), "something else than numbers"),
    "negative size": (tensor(shape=(-1,)), bytes(16), "something else than numbers"),
    "storage of 2^61 elements": (tensor(storage(numel=2**61)), bytes(16), "something else than numbers"),
    "size without stride": (tensor(shape=(2, 2)), bytes(16), "2 dimensions with 1 strides"),
    "65 dimensions": (tensor(shape=(1,) * 65, strides=(1,) * 65), bytes(16), "at most 64"),
    "a terabyte by stride 0": (tensor(shape=(2**40,), strides=(0,)), bytes(16), "beyond the size of the file"),
    "a terabyte by stride 0 in two sizes": (
        tensor(shape=(2**30, 2**30, 0), strides=(0, 0, 0)),
        bytes(16),
        None,
    ),
    "old view of a storage": (
        tensor(storage(view=b"(" + text("v") + number(1) + number(3) + b"t"), shape=(3,)),
        bytes(16),
        None,
    ),
    "old view past the end": (
        tensor(storage(view=b"(" + text("v") + number(2) + number(3) + b"t")),
        bytes(16),
        "view reaches",
    ),
    "bool of 2": (tensor(storage(numel=4, kind="torch\nBoolStorage")), b"\0\1\2\1", "holds a byte 2"),
    "tensor without storage": (tensor(b"K\x01"), bytes(16), "needs a storage"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_tensors(tmp_path, case):
    value, data, message = FORGED[case]

    def read():
        source = open_torch(write(tmp_path, state(("x", value)), data))
        assert source.read("x").shape == source.tensors["x"].shape

    if message is None:
        read()
    else:
        with pytest.raises(ValueError, match=message):
            read()


def test_the_oldest_views_begin_where_they_say(tmp_path):
    view = b"(" + text("v") + number(1) + number(3) + b"t"
    data = np.arange(4, dtype=np.float32).tobytes()
    value = tensor(storage(view=view), offset=1, shape=(2,))
    np.testing.assert_array_equal(open_torch(write(tmp_path, state(("x", value)), data)).read("x"), [2, 3])


@pytest.mark.parametrize("root", [b"]", b"K\x01", tensor(), b"}"])
def test_what_is_no_state_dict(tmp_path, root):
    with pytest.raises(ValueError, match="not a state dict|0 of its entries"):
        open_torch(write(tmp_path, b"\x80\x02" + root + b"."))


def test_a_tensor_without_a_name(tmp_path):
    with pytest.raises(ValueError, match="a tensor is called 3"):
        open_torch(write(tmp_path, b"\x80\x02}K\x03" + tensor() + b"s."))


# --- the zip file


def patched(path: Path, marker: bytes, at: int, value: bytes, *, last: bool = False) -> Path:
    """Overwrite bytes `at` after the first (or last) `marker`."""
    raw = bytearray(path.read_bytes())
    start = (raw.rfind(marker) if last else raw.find(marker)) + at
    raw[start : start + len(value)] = value
    path.write_bytes(raw)
    return path


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
ZIPS = {
    "encrypted": (CENTRAL, 8, b"\1\0", "is encrypted"),
    "size past the end": (CENTRAL, 20, b"\xff\xff\xff\x7f" * 2, "not inside the file"),
    "sizes that differ": (CENTRAL, 24, b"\xff\xff\xff\x7f", "is compressed"),
    "entry past the end": (CENTRAL, 42, b"\xff\xff\xff\x7f", "outside of the file"),
    "entry into another": (CENTRAL, 42, b"\x05\0\0\0", "overlaps|not inside"),
    "local header gone": (LOCAL, 26, b"\xff\xff", "not inside|overlaps"),
    "damaged table": (CENTRAL, 0, b"XX", "table is damaged"),
    "name is not UTF-8": (CENTRAL, 46, b"\xff\xff", "not UTF-8"),
    "more entries than bytes": (END, 10, b"\xff\xff", "not inside the file"),
    "table past the end": (END, 16, b"\xff\xff\xff\x7f", "not inside the file"),
    "no end": (END, 0, b"XX", "was cut off"),
    "wrong checksum": (CENTRAL, 16, b"\1\2\3\4", "fails its checksum"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_damaged_zip(tmp_path, case):
    marker, at, value, message = ZIPS[case]
    path = patched(write(tmp_path, state(("x", tensor()))), marker, at, value)
    with pytest.raises(ValueError, match=message):
        open_torch(path)


def test_damaged_data_fails_its_checksum_when_read(tmp_path):
    data = np.arange(4, dtype=np.float32).tobytes()
    source = open_torch(patched(write(tmp_path, state(("x", tensor())), data), data, 5, b"\1"))
    with pytest.raises(ValueError, match="fails its checksum"):
        source.read("x")


def test_compressed_entries_are_refused(tmp_path):
    path = make_zip(tmp_path / "m.pt", {"data.pkl": bytes(10**6)}, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="'archive/data.pkl' is compressed"):
        open_torch(path)


def test_names_that_occur_twice_are_refused(tmp_path):
    path = make_zip(tmp_path / "m.pt", {"data.pkl": state(("x", tensor())), "data.pkX": b""})
    path.write_bytes(path.read_bytes().replace(b"data.pkX", b"data.pkl"))
    with pytest.raises(ValueError, match="occurs twice"):
        open_torch(tmp_path / "m.pt")


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    path = write(tmp_path, state(("x", tensor())))
    with zipfile.ZipFile(path) as file:
        first, last = file.infolist()[0], file.infolist()[-1]
    raw = bytearray(path.read_bytes())
    table = raw.rfind(CENTRAL)
    assert struct.unpack_from("<L", raw, table + 42)[0] == last.header_offset
    struct.pack_into("<L", raw, table + 42, first.header_offset)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="overlaps"):
        open_torch(path)


def test_zip64_records(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in {"data.pkl": state(("x", tensor())), "data/0": bytes(16)}.items():
            with file.open(f"archive/{name}", "w", force_zip64=True) as entry:
                entry.write(data)
    raw = bytearray(buffer.getvalue())
    # move the sizes of the last entry's record into a zip64 field, as an archive above 4 GB has them
    table, end = raw.rfind(CENTRAL), raw.rfind(END)
    record = raw[table:end]
    offset = struct.unpack_from("<L", record, 42)[0]
    record[20:28] = b"\xff" * 8
    record[42:46] = b"\xff" * 4
    record[30:32] = struct.pack("<H", 28)
    record += struct.pack("<2H3Q", 1, 24, 16, 16, offset)
    raw[table:end] = record
    at = raw.rfind(END) + 12
    raw[at : at + 4] = struct.pack("<L", struct.unpack_from("<L", raw, at)[0] + 28)
    (tmp_path / "m.pt").write_bytes(raw)
    np.testing.assert_array_equal(open_torch(tmp_path / "m.pt").read("x"), np.zeros(4))


@pytest.mark.parametrize("name", ["torch_zip.bin", "torch_legacy.bin"])
def test_every_truncation_is_an_error(tmp_path, name):
    raw = (GOLDENS / name).read_bytes()
    for size in [*range(0, 40), *range(40, len(raw), 97), len(raw) - 1]:
        (tmp_path / "m.pt").write_bytes(raw[:size])
        with pytest.raises(ValueError, match=r"m\.pt"):
            open_torch(tmp_path / "m.pt")
