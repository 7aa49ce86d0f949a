"""GGUF models written: laid out as by llama.cpp, read back bit for bit, and refused where GGUF has no word for them.

gguf_model_cases.json holds, for each architecture, a config and the checksum of the tensors that llama.cpp's own
converter (conversion/ of June 2026, all in F32) made of a HuggingFace checkpoint with that config and the parameters of
`draw`: names, shapes and bytes. It rounds bitnet's matrices, which was left out. Cases without a checksum are of
families that it does not know, and another architecture says. gguf_hub_cases.json holds the same of others, see
test_gguf_hub.py.
"""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import architectures
from converters.gguf import Typed, decode, encode, open_gguf, write_gguf
from converters.gguf.archs import ARCHS
from converters.gguf.export import architecture, export_gguf
from converters.gguf.mix_table import MIXES
from converters.gguf.model import understand
from converters.take import Take
from forge_jax.params import abstract, flatten
from forge_jax.spec import Attention, Block, DynamicNtk, Linear, Llama3, LongRope, ModelSpec, Rope, Yarn

FILES = (Path(__file__).with_name(f"gguf_{kind}_cases.json") for kind in ("model", "hub"))
CASES = {name: case for file in FILES for name, case in json.loads(file.read_text()).items()}
# an architecture of GGUF may be known before the family that runs it, or be one that is only read
CASES = {
    name: case
    for name, case in CASES.items()
    if case["config"]["model_type"] in architectures.families()
    and not (case["arch"] in ARCHS and ARCHS[case["arch"]].alias)
}
CONFIGS: dict[str, dict[str, Any]] = {name: case["config"] for name, case in CASES.items()}
GRANITE = {
    "rms_norm_eps": 0.001,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.99,
    "logits_scaling": 4.0,
    "layer_norm_eps": None,
    "use_qkv_bias": None,
    "use_parallel_residual": None,
}
STABLE = {"use_qkv_bias": False, "use_parallel_residual": False, "partial_rotary_factor": 1.0}


def spec_from(config: dict[str, Any]) -> ModelSpec:
    take = Take(config, "config")
    spec = architectures.find(config["model_type"], "config").config(take)
    take.done()
    return spec


def spec_of(name: str) -> ModelSpec:
    return spec_from(CONFIGS[name])


def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter as a function of its path, with few enough digits for float16 and for norms stored as 1 + w."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    return (rng.integers(-512, 512, shape) / 256).astype(np.float32)


def parameters(spec: ModelSpec) -> dict[str, np.ndarray]:
    return {path: draw(path, param.shape) for path, param in flatten(abstract(spec))}


def read(path: Path) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    source = open_gguf(path)
    try:
        checkpoint = understand(path, source)
        return checkpoint.spec, dict(flatten(checkpoint.read(lambda _, values: np.asarray(values))))
    finally:
        source.close()


def export(path: Path, case: str, spec: ModelSpec | None = None, **options: Any) -> dict[str, np.ndarray]:
    spec = spec_of(case) if spec is None else spec
    params = parameters(spec)
    export_gguf(path, spec, params.__getitem__, CONFIGS[case]["model_type"], **options)
    return params


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for name in CONFIGS:
        export(folder / f"{name}.gguf", name)
    return {name: folder / f"{name}.gguf" for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_back_bit_for_bit(exported: dict[str, Path], name: str) -> None:
    spec, params = read(exported[name])
    assert spec == spec_of(name)
    expected = parameters(spec)
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        assert params[path].dtype == np.float32
        # a decay is stored as its rate, and a logarithm does not undo an exponential bit for bit; nor does a difference
        # a sum with a number that has no few digits, 1/5
        inexact = 1e-6 if path.endswith("a_log") or (name == "plamo3" and path.endswith("post.scale")) else 0
        np.testing.assert_allclose(params[path], value, rtol=inexact, atol=inexact, err_msg=path)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "crc" in case])
def test_is_laid_out_as_llama_cpp_does(exported: dict[str, Path], name: str) -> None:
    source = open_gguf(exported[name])
    assert source.metadata["general.architecture"] == CASES[name]["arch"]
    crc = checksum(source)
    source.close()
    assert crc == CASES[name]["crc"]


def checksum(source: Any) -> int:
    crc = 0
    for tensor in sorted(source.tensors):
        values = source.read(tensor)
        # an exponential's last bit is a matter of the library
        values = values.astype(np.float16) if tensor.endswith("ssm_a") else values
        shape = list(values.shape)
        while shape[0] == 1 and len(shape) > 1:  # ggml does not count these
            del shape[0]
        crc = zlib.crc32(values.tobytes(), zlib.crc32(f"{tensor}{shape}".encode(), crc))
    return crc


ALIASES = [
    ("internlm2", "llama", {}),
    ("xverse", "llama", {"tensor_data_layout": "Meta AI original pth"}),
    ("baichuan", "llama_biases", {}),
    ("minicpm", {"model_type": "granite", **GRANITE}, {"attention.scale": None}),
    ("qwen", "qwen2", {"feed_forward_length": 112}),
    ("hunyuan_vl", "hunyuan_v1_dense", {"rope.dimension_sections": [2, 2, 2, 2], "rope.scaling.alpha": 1.0}),
    ("qwen2vl", "qwen2", {"rope.dimension_sections": [2, 3, 3, 0]}),
    ("qwen3vl", "qwen3", {"rope.dimension_sections": [3, 3, 2, 0], "n_deepstack_layers": 3}),
    ("qwen3vlmoe", "qwen3_moe", {"rope.dimension_sections": [3, 3, 2, 0], "n_deepstack_layers": 3}),
    ("orion", {"model_type": "stablelm", **STABLE}, {"use_parallel_residual": None}),
]


@pytest.mark.parametrize(("arch", "case", "edits"), ALIASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_name_of_the_hub_for_a_known_model(tmp_path: Path, arch: str, case: Any, edits: dict[str, Any]) -> None:
    config = CONFIGS[case] if isinstance(case, str) else CONFIGS["stablelm"] | case
    spec = spec_from(config)
    params = parameters(spec)
    export_gguf(tmp_path / "a.gguf", spec, params.__getitem__, config["model_type"])
    source = open_gguf(tmp_path / "a.gguf")
    old = source.metadata["general.architecture"]
    metadata = {key.replace(f"{old}.", f"{arch}."): value for key, value in source.metadata.items()}
    metadata |= {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in edits.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    tensors = [(name, info.shape, "F32", partial(source.read, name)) for name, info in source.tensors.items()]
    write_gguf(tmp_path / "b.gguf", metadata, tensors)
    source.close()
    again, found = read(tmp_path / "b.gguf")
    assert again == spec
    for path, value in params.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def keys_of(thing: type) -> Iterator[str]:
    for value in vars(thing).values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, type):
            yield from keys_of(value)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_keys_are_in_the_specification(exported: dict[str, Path], name: str) -> None:
    gguf = pytest.importorskip("gguf")
    source = open_gguf(exported[name])
    arch = source.metadata["general.architecture"]
    number = next(a for a, label in gguf.MODEL_ARCH_NAMES.items() if label == arch)
    layers = source.metadata[f"{arch}.block_count"]
    stems = {gguf.TENSOR_NAMES[t].format(bid=i) for t in gguf.MODEL_TENSORS[number] for i in range(layers)}
    assert {re.sub(r"\.(weight|bias|scale)$", "", tensor) for tensor in source.tensors} <= stems
    # added to gguf-py after its release 0.19; the former only where the activation is not the architecture's usual one
    known = {key.replace("{arch}", arch) for key in keys_of(gguf.Keys)}
    assert set(source.metadata) - known <= {f"{arch}.hidden_activation", "mimo2.attention.value_scale"}
    assert all(info.dtype == "F32" for info in source.tensors.values())
    source.close()


# ------------------------------------------------------------------------------------------------ storage
@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"])
def test_storage_types(tmp_path: Path, type: Any) -> None:
    spec = spec_of("llama")
    layer = spec.layers[0]
    wide = replace(layer.branches[1], op=replace(layer.branches[1].op, dim=64))
    spec = replace(spec, dim=96, layers=(replace(layer, branches=(layer.branches[0], wide)),))
    params = export(tmp_path / "m.gguf", "llama", spec, type=type)
    source = open_gguf(tmp_path / "m.gguf")
    packed = type not in ("F32", "F16", "BF16")
    for name, info in source.tensors.items():
        norm = name.endswith("_norm.weight")
        assert info.dtype == ("F32" if norm else "Q8_0" if packed and name == "output.weight" else type), name
    assert source.metadata["general.file_type"] == MIXES[type].id
    assert source.metadata["general.quantization_version"] == 2
    source.close()
    _, again = read(tmp_path / "m.gguf")
    # one matrix whose axes only swap: what comes back is what the storage type makes of it
    up = params["layers.0.mlp.up"].T
    stored = encode(type, np.ascontiguousarray(up))
    np.testing.assert_array_equal(again["layers.0.mlp.up"].T.astype(np.float32), decode(type, stored))


def test_rows_that_do_not_divide_are_float16(tmp_path: Path) -> None:
    export(tmp_path / "m.gguf", "llama_biases", type="Q4_0")  # width 48, feed-forward 56, tied
    source = open_gguf(tmp_path / "m.gguf")
    types = {name: info.dtype for name, info in source.tensors.items()}
    source.close()
    assert types["token_embd.weight"] == types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.attn_output.weight"] == "Q4_0"  # 64 columns
    assert types["blk.0.attn_q.bias"] == types["output_norm.weight"] == "F32"


def test_a_tied_embedding_and_positions_keep_more_bits(tmp_path: Path) -> None:
    export(tmp_path / "m.gguf", "gpt2", type="Q4_1")
    source = open_gguf(tmp_path / "m.gguf")
    assert source.tensors["token_embd.weight"].dtype == "Q8_0"
    assert source.tensors["position_embd.weight"].dtype == "F32"
    assert source.tensors["blk.0.attn_qkv.weight"].dtype == "Q4_1"
    assert "output.weight" not in source.tensors
    source.close()


# ------------------------------------------------------------------------------------------------ rope
def with_rope(spec: ModelSpec, scaling: Any) -> ModelSpec:
    def turn(block: Block) -> Block:
        first = block.branches[0]
        assert isinstance(first.op, Attention)
        assert first.op.rope is not None
        op = replace(first.op, rope=replace(first.op.rope, scaling=scaling))
        return replace(block, branches=(replace(first, op=op), *block.branches[1:]))

    return replace(spec, layers=tuple(turn(block) for block in spec.layers))


@pytest.mark.parametrize(
    "scaling",
    [
        Linear(3.7),
        Yarn(4.0, 8, 0.1 * np.log(4.0) + 1),
        Yarn(4.0, 8, 1.0, beta_fast=16.0, beta_slow=2.0),
        Yarn(4.0, 8, 1.3),
        Llama3(8.0, 1.0, 4.0, 32),
        LongRope((1.0, 1.1) * 4, (1.0, 2.3) * 4, 16, 1.19),
        LongRope((1.0, 1.1) * 4, (1.0, 1.1) * 4, 32, 1.0),
    ],
)
def test_rope_scalings_read_back(tmp_path: Path, scaling: Any) -> None:
    spec = with_rope(spec_of("llama"), scaling)
    export(tmp_path / "m.gguf", "llama", spec)
    assert read(tmp_path / "m.gguf")[0] == spec


def test_unusual_llama3_scaling_reads_back_as_its_factors(tmp_path: Path) -> None:
    export(tmp_path / "m.gguf", "llama", with_rope(spec_of("llama"), Llama3(32.0, 1.0, 2.0, 20)))
    op = read(tmp_path / "m.gguf")[0].layers[0].branches[0].op
    assert isinstance(op, Attention)
    assert isinstance(op.rope, Rope)
    assert isinstance(op.rope.scaling, LongRope)
    assert op.rope.scaling.short == op.rope.scaling.long


# ------------------------------------------------------------------------------------------------ refusals
def edited(spec: ModelSpec, **op: Any) -> ModelSpec:
    def edit(block: Block) -> Block:
        first = block.branches[0]
        return replace(block, branches=(replace(first, op=replace(first.op, **op)), *block.branches[1:]))

    return replace(spec, layers=tuple(edit(block) for block in spec.layers))


REFUSED = [
    ("mistral", lambda s: edited(s, window=8), "layers.0.branches.0.op.window is 8, and would be read as None"),
    ("gemma2", lambda s: edited(s, scale=0.3), r"op.scale is 0.3, and would be read as 0.25"),
    ("smollm3", lambda s: edited(s, rope=Rope(16)), "layers.3.branches.0.op.rope is Rope.*would be read as None"),
    ("qwen3", lambda s: edited(s, o_bias=True), "attention.o_bias is True, and llama.cpp loads that never"),
    ("llama", lambda s: edited(s, rope=Rope(8, 500.0)), "rotates whole heads here, found 8 of 16 features"),
    ("qwen2", lambda s: edited(s, head_dim=8), r"only heads \* head_dim = dim, found 4 \* 8 and 64"),
    ("olmo2", lambda s: replace(s, tied=True), "spec.tied is True, and llama.cpp needs tensor output.weight"),
    ("cohere2", lambda s: replace(s, tied=False), "spec.tied is False, and llama.cpp takes no tensor output.weight"),
    ("bloom", lambda s: replace(s, head_bias=True), "spec.head_bias is True, and would be read as False"),
    ("llama", lambda s: replace(s, logit_scale=0.5), "spec.logit_scale is 0.5, and would be read as 1.0"),
    ("qwen2", lambda s: with_rope(s, LongRope((1.0,) * 8, (2.0,) * 8, 8, 1.0)), "LongRope cannot be said"),
    ("qwen2", lambda s: with_rope(s, Llama3(8.0, 1.0, 4.0, 8)), "Llama3 cannot be said in a GGUF of .* 'qwen2'"),
    ("llama", lambda s: with_rope(s, DynamicNtk(2.0, 32)), "DynamicNtk cannot be said"),
    ("llama", lambda s: with_rope(s, Yarn(4.0, 8, 1.0, truncate=False)), "truncate=False"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_what_cannot_be_said_is_refused(tmp_path: Path, name: str, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "m.gguf", name, change(spec_of(name)))
    assert list(tmp_path.iterdir()) == []


def test_a_loss_can_be_allowed(tmp_path: Path) -> None:
    export(tmp_path / "m.gguf", "mistral", edited(spec_of("mistral"), window=8), allow={"window"})
    assert read(tmp_path / "m.gguf")[0] == spec_of("mistral")


@pytest.mark.parametrize("model_type", ["opt", "gpt_neo", "unheard_of"])
def test_families_without_an_architecture(model_type: str) -> None:
    with pytest.raises(ValueError, match=f"'{model_type}' has no GGUF architecture"):
        architecture(model_type)


def test_unknown_storage_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="type 'Q4_K' is not written; expected one of F32, F16"):
        export(tmp_path / "m.gguf", "llama", type="Q4_K")


# ------------------------------------------------------------------------------------------------ vocabulary
def test_a_short_vocabulary_is_padded(tmp_path: Path) -> None:
    tokenizer = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.scores": Typed("float32[]", [0.5, 0.25]),
        "tokenizer.ggml.token_type": Typed("int32[]", np.array([1, 3], np.int32)),
    }
    export(tmp_path / "m.gguf", "llama", tokenizer=tokenizer, name="a model")
    source = open_gguf(tmp_path / "m.gguf")
    found = source.metadata
    assert found["general.name"] == "a model"
    assert found["tokenizer.ggml.tokens"][:4] == ["a", "b", "[PAD2]", "[PAD3]"]
    assert found["tokenizer.ggml.scores"].tolist() == [0.5, 0.25] + [-1000.0] * 38
    assert found["tokenizer.ggml.token_type"].tolist() == [1, 3] + [5] * 38
    assert source.types["tokenizer.ggml.token_type"] == "int32[]"
    source.close()


def test_without_a_vocabulary_the_file_says_so(exported: dict[str, Path]) -> None:
    source = open_gguf(exported["llama"])
    assert source.metadata["tokenizer.ggml.model"] == "none"
    assert source.metadata["llama.vocab_size"] == 40
    source.close()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"tokenizer.ggml.tokens": ["x"] * 41}, "41 tokens, but the model has only 40"),
        ({"tokenizer.ggml.tokens": ["x"], "tokenizer.ggml.scores": [1.0, 2.0]}, "scores has 2 entries"),
    ],
)
def test_vocabularies_that_do_not_fit(tmp_path: Path, tokenizer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "m.gguf", "llama", tokenizer=tokenizer)
