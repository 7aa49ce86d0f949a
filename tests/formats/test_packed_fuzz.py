"""Forged quantisation configs, states and indexes: each is read or refused with a ValueError, and none takes long.

A case follows from the name of its seed and its number.
"""

import copy
import json
import random
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_files import WHERE, Memory, module
from safetensors.numpy import save_file
from test_packed_dialects import GROUP, gptq
from test_packed_hqq import SAID, hqq

from converters.packed import unpacked
from converters.packed.patterns import matches
from converters.safetensors_file import open_safetensors

CASES = ("awq_g32", "bnb_nf4_dq", "ct_fp8_block", "ct_nvfp4", "ct_w4a16_asym_g32", "fp8_block128", "gptq_4b_g32_v2")
CASES += ("mxfp4_gpt_oss", "hqq", "auto_round")
ORDINARY, MORE = 60, 2000
CPU_SECONDS = 1.0
ODD: list[Any] = [None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**200, 0.5, -1e308, "", "auto", "re:(a*)*b", "\u2028"]
ODD += ["re:" + ".*" * 40 + "x", "re:(", [], [1], [[]], [2**40, 2**40], {}, {"a": {}}, [0, 0], "x" * 500, "\ud800"]


@contextmanager
def in_time() -> Iterator[None]:
    """Fail if the block takes longer than CPU_SECONDS of the processor."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {CPU_SECONDS} s of CPU time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


def mutated(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three places replaced, removed, renamed or filled with others."""
    out = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(list(places(out)) or [({}, "")])
        match rng.randrange(4):
            case 0 if isinstance(holder, dict):
                holder.pop(key, None)
            case 1 if isinstance(holder, dict) and key in holder:
                holder[rng.choice(["bits", "version", "zzz", key + " "])] = holder.pop(key)
            case 2 if isinstance(out, dict):
                other = rng.choice(list(places(out)) or [({"": 0}, "")])
                holder[key] = copy.deepcopy(other[0][other[1]])
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
    return out


def first_layer(case: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A few tensors of a reference checkpoint, and what its config says."""
    source = open_safetensors(case)
    names = [name for name in source.tensors if re.search(r"layers\.0\.(self_attn\.[qk]|mlp\.experts)", name)]
    arrays = {name: source.read(name) for name in names}
    source.close()
    return arrays, json.loads((case / "config.json").read_text())["quantization_config"]


def read_or_refuse(arrays: Mapping[str, np.ndarray], said: Any) -> bool:
    """Whether a checkpoint is read; it may be refused with a ValueError, and nothing else."""
    with in_time():
        try:
            source, _ = unpacked(WHERE, Memory(arrays), {"quantization_config": said}, ())
            for name in source.tensors:
                source.read(name)
        except ValueError:
            return False
    return True


def seed(name: str, shared: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A few tensors, and what a config says of them."""
    if name == "hqq":
        return hqq(3, 1, 16)[0], SAID
    if name == "auto_round":
        own = {"q": {"bits": 4, "group_size": GROUP}, ".*k_proj": {"bits": 16}}
        return module("q", **gptq(4, 1)[0]), {
            "quant_method": "auto-round",
            "bits": 2,
            "packing_format": "auto_round:auto_gptq",
            "extra_config": own,
        }
    case = shared / "oracle/quant" / name
    if not case.exists():
        pytest.skip(f"{case} is not there")
    return first_layer(case)


def run(name: str, shared: Path, numbers: range) -> None:
    arrays, said = seed(name, shared)
    assert read_or_refuse(arrays, said)
    accepted = 0
    for number in numbers:
        try:
            rng = random.Random(f"{name} {number}")
            accepted += read_or_refuse(*forged(arrays, said, rng))
        except Exception as error:
            error.add_note(f"fuzz case {name!r}, {number}")
            raise
    assert accepted < len(numbers)


def forged(arrays: dict[str, np.ndarray], said: Any, rng: random.Random) -> tuple[dict[str, np.ndarray], Any]:
    """Another config, or one tensor that is another: cut, of another type, without a name, of other bytes."""
    if rng.random() < 0.7:
        return arrays, mutated(said, rng)
    name = rng.choice(sorted(arrays))
    rest = {key: value for key, value in arrays.items() if key != name}
    raw = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).copy()
    changes: list[Callable[[], dict[str, np.ndarray]]] = [
        lambda: {},
        lambda: {name: np.split(np.atleast_1d(arrays[name]), [1])[0]},
        lambda: {name: arrays[name].reshape(-1)},
        lambda: {name: raw},
        lambda: {name + "x": arrays[name]},
    ]
    if rng.random() < 0.5:
        for _ in range(3):
            raw[rng.randrange(len(raw))] = rng.choice([0, 1, 34, 48, 91, 123, 127, 128, 255])
        return rest | {name: raw.view(arrays[name].dtype).reshape(arrays[name].shape)}, said
    return rest | {key: np.ascontiguousarray(value) for key, value in rng.choice(changes)().items()}, said


@pytest.mark.parametrize("name", CASES)
def test_forged_configs_and_parts_are_read_or_refused(shared: Path, name: str):
    run(name, shared, range(ORDINARY))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_more_forged_configs_are_read_or_refused(shared: Path, name: str):
    run(name, shared, range(ORDINARY, ORDINARY + MORE))


@pytest.mark.parametrize("numbers", [range(200), pytest.param(range(200, 5000), marks=pytest.mark.slow)])
def test_forged_indexes_are_read_or_refused(tmp_path: Path, numbers: range):
    shards = {f"model-0000{i}-of-00002.safetensors": {f"a{i}": np.ones(3, np.float32)} for i in (1, 2)}
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    index = {"metadata": {"total_size": 24}, "weight_map": {n: file for file, t in shards.items() for n in t}}
    file, accepted = tmp_path / "model.safetensors.index.json", 0
    for number in numbers:
        rng = random.Random(f"index {number}")
        text = json.dumps(mutated(index, rng))
        if rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(["", "/", "../", '"', "{", "\\", "\x00"]) + text[at + rng.randrange(3) :]
        file.write_text(text)
        with in_time():
            try:
                open_safetensors(tmp_path).close()
                accepted += 1
            except (ValueError, FileNotFoundError):
                continue
    assert 0 < accepted < len(numbers)


# ------------------------------------------------------------------------------------------------ patterns
NAMES = ["model.layers.10.mlp.down_proj", "lm_head", "aaaa", "", "a\nb", "model.layers.3.self_attn.q_proj"]
PATTERNS = [
    *(r".*down_proj$", r"model\.layers\.\d+\.", r"lm_head", r"^model.*(q|k|v)_proj$", r"(?!lm_head).*", r"a{2,3}$"),
    *(
        r"a{5}",
        r"[^m]",
        r"[a-l]\w+$",
        r"(a|b)*?$",
        r".*\D\.(mlp|self_attn)\.",
        r"(?:a+)+b",
        r"(?=lm).*d$",
        r"\S*\s",
        "",
    ),
    *(r".*[.]\d{2}[.].*", r"(a*)*", r"x?a", r"a.b", r"(?:model|lm)(?:\.\w+)*$", r"[\w.]+proj", r"^\Z", r"[\d-]", ""),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_re_matches(pattern: str):
    for name in NAMES:
        assert matches(pattern, name, "here") == (re.match(pattern, name) is not None), name


def test_patterns_that_would_take_forever_take_no_time():
    with in_time():
        assert not matches("(a*)*b", "a" * 300, "here")
        assert not matches(".*" * 100 + "b", "a" * 300, "here")
        with pytest.raises(ValueError, match="repeats that take too long"):
            matches("((a?){300}){300}b", "a" * 300, "here")


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?i)a", "(?<=a)b", "(", "a" * 500, "a{99999999999999}", "a*+"])
def test_patterns_that_are_refused(pattern: str):
    with pytest.raises(ValueError, match="here: "):
        matches(pattern, "aaa", "here")
