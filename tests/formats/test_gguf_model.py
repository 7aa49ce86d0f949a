"""GGUF models read: reference logits, the same numbers as the HuggingFace files, and strictness about metadata."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.gguf import open_gguf, write_gguf
from converters.gguf.model import understand
from converters.gguf.numbers import Numbered
from converters.gguf.rope import llama3_factors
from converters.rules import Rule
from forge_jax.decoder import forward, inputs
from forge_jax.ops.rope import base_frequencies, llama3
from forge_jax.params import flatten
from forge_jax.spec import Attention, Linear, Llama3, LongRope, Rope, Yarn

TYPES = (
    "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q2_K_S Q3_K_M Q4_K_M Q5_K_M Q6_K IQ1_M IQ1_S IQ2_M IQ2_S IQ2_XS "
    "IQ2_XXS IQ3_S IQ3_XXS IQ4_NL IQ4_XS Q1_0 Q2_0 TQ1_0 TQ2_0"
).split()
CASES = [("llama", kind) for kind in TYPES]
CASES += [(name, "Q4_K_M") for name in ("gemma2", "gpt2", "mixtral", "qwen2")]


@contextmanager
def opened(path: Path, allow: set[str] | None = None) -> Iterator[Checkpoint]:
    source = open_gguf(path)
    try:
        yield understand(path, source, allow or set())
    finally:
        source.close()


def leaves(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return dict(flatten(checkpoint.read(lambda _, values: np.asarray(values))))


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_reference_logits(shared: Path, model: str, kind: str) -> None:
    folder = shared / "oracle" / "gguf" / model
    reference = np.load(folder / f"{kind}.npz")
    with opened(folder / f"{kind}.gguf") as checkpoint:
        params = checkpoint.read(lambda _, values: jnp.asarray(values, jnp.float32))
        run = jax.jit(forward, static_argnums=0)
        logits = np.asarray(run(checkpoint.spec, params, inputs(reference["input_ids"]))[0])
    # ggml's gelu is a table of float16: where a model uses it, the reference itself is off by f32_vs_hf
    own = json.loads((folder / "case.json").read_text())["f32_vs_hf"]
    assert np.abs(logits - reference["logits"]).max() < max(1e-4, 4 * own) * np.abs(reference["logits"]).max()


@pytest.mark.parametrize(
    ("gguf", "hf"),
    [
        ("oracle/gguf/llama/F32.gguf", "oracle/gguf/llama/hf"),
        ("models/stories260K/stories260K-f32.gguf", "models/stories260K/hf"),
    ],
)
def test_same_as_the_huggingface_files(shared: Path, gguf: str, hf: str) -> None:
    theirs = open_checkpoint(shared / hf)
    with opened(shared / gguf) as ours:
        a, b = leaves(ours), leaves(theirs)
        assert replace(ours.spec, max_seq_len=0) == replace(theirs.spec, max_seq_len=0)
    theirs.source.close()
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path].astype(np.float32), err_msg=path)


# ------------------------------------------------------------------------------------------------ made by hand
DIM, HEADS, KV, SIZE, INNER, VOCAB = 24, 4, 2, 8, 20, 11

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": DIM,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV,
    "llama.attention.key_length": SIZE,
    "llama.attention.layer_norm_rms_epsilon": 1e-3,
}
SHAPES = {
    "attn_norm": (DIM,),
    "attn_q": (HEADS * SIZE, DIM),
    "attn_k": (KV * SIZE, DIM),
    "attn_v": (KV * SIZE, DIM),
    "attn_output": (DIM, HEADS * SIZE),
    "ffn_norm": (DIM,),
    "ffn_gate": (INNER, DIM),
    "ffn_up": (INNER, DIM),
    "ffn_down": (DIM, INNER),
}
Tensors = dict[str, np.ndarray]


def llama_tensors() -> Tensors:
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (VOCAB, DIM), "output_norm.weight": (DIM,)}
    shapes |= {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in SHAPES.items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save(path: Path, metadata: dict[str, Any], tensors: Tensors) -> Path:
    kept = {key: value for key, value in metadata.items() if value is not None}
    write_gguf(path, kept, [(name, x.shape, "F32", lambda x=x: x) for name, x in tensors.items()])
    return path


def rope_of(checkpoint: Checkpoint) -> Rope:
    op = checkpoint.spec.layers[0].branches[0].op
    assert isinstance(op, Attention)
    assert op.rope is not None
    return op.rope


def test_rows_of_queries_and_keys_are_put_back(tmp_path: Path) -> None:
    tensors = llama_tensors()
    with opened(save(tmp_path / "m.gguf", LLAMA, tensors)) as checkpoint:
        found = leaves(checkpoint)
        assert checkpoint.config["tie_word_embeddings"] is True
    q = tensors["blk.1.attn_q.weight"].reshape(HEADS, SIZE // 2, 2, DIM)
    for half in (0, 1):
        half_of_ours = found["layers.1.attention.q"][:, :, half * SIZE // 2 : (half + 1) * SIZE // 2]
        np.testing.assert_array_equal(half_of_ours, q[:, :, half].transpose(2, 0, 1))


def test_fused_projections_give_the_same_model(tmp_path: Path) -> None:
    apart = llama_tensors() | {
        f"blk.{i}.attn_{part}.bias": np.arange(SHAPES[f"attn_{part}"][0], dtype=np.float32)
        for i in range(2)
        for part in "qkv"
    }
    apart |= {f"blk.{i}.attn_output.bias": np.ones(DIM, np.float32) for i in range(2)}
    fused = {name: x for name, x in apart.items() if not any(f"attn_{part}." in name for part in "qkv")}
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = [apart[f"blk.{i}.attn_{part}.{kind}"] for part in "qkv"]
            fused[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate(parts)
    with opened(save(tmp_path / "a.gguf", LLAMA, apart)) as a, opened(save(tmp_path / "b.gguf", LLAMA, fused)) as b:
        ours, theirs = leaves(a), leaves(b)
        assert a.spec == b.spec
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def test_a_longer_embedding_than_vocabulary_is_kept(tmp_path: Path) -> None:
    metadata = LLAMA | {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": 1, "llama.vocab_size": 2}
    with opened(save(tmp_path / "m.gguf", metadata, llama_tensors())) as checkpoint:
        assert checkpoint.spec.vocab_size == VOCAB
        assert checkpoint.config["eos_token_id"] == 1


def test_experts_one_by_one_and_together(tmp_path: Path) -> None:
    together = {name: x for name, x in llama_tensors().items() if not re.search(r"ffn_(gate|up|down)\.", name)}
    rng = np.random.default_rng(1)
    apart = dict(together)
    for i in range(2):
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            experts = rng.normal(size=(3, *SHAPES[name])).astype(np.float32)
            together[f"blk.{i}.{name}_exps.weight"] = experts
            apart |= {f"blk.{i}.{name}.{e}.weight": x for e, x in enumerate(experts)}
        router = rng.normal(size=(3, DIM)).astype(np.float32)
        together[f"blk.{i}.ffn_gate_inp.weight"] = apart[f"blk.{i}.ffn_gate_inp.weight"] = router
    metadata = LLAMA | changed(expert_count=3, expert_used_count=2)
    with opened(save(tmp_path / "a.gguf", metadata, together)) as a:
        with opened(save(tmp_path / "b.gguf", metadata, apart)) as b:
            ours, theirs = leaves(a), leaves(b)
            assert a.spec == b.spec
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def test_decays_are_stored_as_their_rates() -> None:
    rule = Rule("a_log", "ssm_a", "n one -> n one", decay=True)
    ours = np.linspace(-3, 3, 7, dtype=np.float32)
    stored = rule.write([ours])
    np.testing.assert_allclose(stored, -np.exp(ours)[:, None], rtol=1e-6)
    np.testing.assert_allclose(rule.read(stored, [(7,)])[0], ours, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="ssm_a: expected negative values"):
        rule.read(-stored, [(7,)])


def test_parameters_among_the_metadata(tmp_path: Path) -> None:
    save(tmp_path / "m.gguf", {"xielu.beta": [0.5, 0.25], "xielu.eps": 2.0}, llama_tensors())
    source = open_gguf(tmp_path / "m.gguf")
    shown = Numbered(source, {"xielu.beta": (), "xielu.eps": (1,), "xielu.alpha_p": ()}, 2, "here")
    assert shown.tensors.keys() - source.tensors.keys() == {
        f"blk.{i}.xielu.{key}" for i in (0, 1) for key in ("beta", "eps")
    }
    assert shown.read("blk.1.xielu.beta") == np.float32(0.25)
    np.testing.assert_array_equal(shown.read("blk.1.xielu.eps"), np.array([2.0], np.float32))
    np.testing.assert_array_equal(shown.read("blk.0.attn_norm.weight"), source.read("blk.0.attn_norm.weight"))
    with pytest.raises(ValueError, match="here: xielu.beta is .*, expected a finite number for each of 3 layers"):
        Numbered(source, {"xielu.beta": ()}, 3, "here")
    shown.close()


# ------------------------------------------------------------------------------------------------ rope
FACTORS = llama3_factors(500000.0, SIZE, Llama3(8.0, 1.0, 4.0, 8192))


@pytest.mark.parametrize(
    ("extra", "tensors", "scaling"),
    [
        ({}, {}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {}, None),
        ({"llama.rope.scaling.factor": 4.0}, {}, Linear(4.0)),
        ({"llama.rope.scale_linear": 2.5}, {}, Linear(2.5)),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
            {},
            Yarn(4.0, 64, 0.1 * np.log(4.0) + 1),
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 16,
                "llama.rope.scaling.yarn_log_multiplier": 1.0,
                "llama.rope.scaling.yarn_beta_fast": 24.0,
            },
            {},
            Yarn(4.0, 16, 1.0, beta_fast=24.0),
        ),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.yarn_attn_factor": 1.3,
            },
            {},
            Yarn(4.0, 64, 1.3),
        ),
        ({"llama.rope.freq_base": 500000.0}, {"rope_freqs.weight": FACTORS}, Llama3(8.0, 1.0, 4.0, 8192)),
        (
            {},
            {"rope_freqs.weight": np.array([1, 1.5, 2, 2.5], np.float32)},
            LongRope((1.0, 1.5, 2.0, 2.5), (1.0, 1.5, 2.0, 2.5), 64, 1.0),
        ),
        (
            {
                "llama.rope.scaling.type": "longrope",
                "llama.rope.scaling.original_context_length": 32,
                "llama.rope.scaling.attn_factor": 1.1,
            },
            {
                "rope_factors_short.weight": np.array([1, 1.1, 1.2, 1.3], np.float32),
                "rope_factors_long.weight": np.array([1, 2, 3, 4], np.float32),
            },
            LongRope((1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 3.0, 4.0), 32, 1.1),
        ),
    ],
)
def test_rope(tmp_path: Path, extra: dict[str, Any], tensors: Tensors, scaling: Any) -> None:
    with opened(save(tmp_path / "m.gguf", LLAMA | extra, llama_tensors() | tensors)) as checkpoint:
        assert rope_of(checkpoint) == Rope(SIZE, extra.get("llama.rope.freq_base", 10000.0), scaling=scaling)


@pytest.mark.parametrize("scaling", [Llama3(8.0, 1.0, 4.0, 8192), Llama3(32.0, 1.0, 4.0, 8192), Llama3(3.0, 2, 9, 77)])
def test_llama3_factors_are_those_of_the_decoder(scaling: Llama3) -> None:
    rope = Rope(128, 500000.0, scaling=scaling)
    expected = base_frequencies(128, 500000.0) / llama3(rope, scaling)
    np.testing.assert_allclose(llama3_factors(500000.0, 128, scaling), expected, rtol=3e-6)


# ------------------------------------------------------------------------------------------------ refusals
def changed(**edits: Any) -> dict[str, Any]:
    return {"llama." + key.replace("__", "."): value for key, value in edits.items()}


BAD_METADATA = [
    ({"general.architecture": None}, "general.architecture is None"),
    ({"general.architecture": "rwkv9"}, "'rwkv9', which is not implemented; known are llama"),
    ({"general.architecture": ["llama"]}, "general.architecture is"),
    ({"general.type": "adapter"}, "general.type is 'adapter', expected a model"),
    (changed(block_count=None), "'block_count' is missing"),
    (changed(block_count=1 << 30), "block_count is 1073741824, but there are 20 tensors"),
    (changed(block_count="two"), "block_count is 'two', expected an integer"),
    (changed(block_count=1), "used by nothing"),
    (changed(block_count=3), "is missing"),
    (changed(attention__head_count=0), "attention.head_count is 0, expected an integer, 1 or more"),
    (changed(attention__head_count=True), "attention.head_count is True"),
    (changed(attention__head_count_kv=[2, 1]), "attention.head_count_kv differs by layer"),
    (changed(attention__head_count_kv=4), "attn_k.weight is .16, 24., the config asks .32, 24."),
    (changed(attention__value_length=4), "value_length differs from key_length"),
    (changed(attention__layer_norm_rms_epsilon=float("nan")), "layer_norm_rms_epsilon is nan"),
    (changed(rope__freq_base=0.0), "rope.freq_base is 0.0, expected a finite number, above 1"),
    (changed(rope__dimension_count=10), "rope.dimension_count is 10, expected an even number up to 8"),
    (changed(rope__scaling__type="magic"), "rope.scaling.type is 'magic', expected none, linear, yarn or longrope"),
    (changed(rope__scaling__type="longrope"), "rope_factors_short.weight is missing, expected 4 numbers"),
    (changed(expert_count=8), "'expert_used_count' is missing"),
    (changed(expert_used_count=2), "expert_used_count = 2 is not implemented"),
    (changed(attention__causal=False), "attention.causal = False is not implemented"),
    (changed(attention__clamp_kqv=8.0), "1 config keys are not understood.*attention.clamp_kqv=8.0"),
    (changed(hidden_activation="swoosh"), "'swoosh' is not one of"),
]


@pytest.mark.parametrize(("edits", "message"), BAD_METADATA)
def test_metadata_that_is_refused(tmp_path: Path, edits: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "m.gguf", LLAMA | edits, llama_tensors())
    with pytest.raises(ValueError, match=message) as caught, opened(path):
        pass
    assert str(path) in str(caught.value)


def test_an_unread_key_can_be_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "m.gguf", LLAMA | {"llama.attention.clamp_kqv": 8.0}, llama_tensors())
    for name in ("attention.clamp_kqv", "llama.attention.clamp_kqv"):
        with opened(path, {name}) as checkpoint:
            assert len(checkpoint.spec.layers) == 2


def drop(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: x for key, x in tensors.items() if key != name}


def put(name: str, *values: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: np.asarray(values, np.float32)}


BAD_TENSORS = [
    (drop("token_embd.weight"), "no matrix token_embd.weight"),
    (drop("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight is missing"),
    (put("blk.0.attn_norm.weight", 1, 2), "blk.0.attn_norm.weight is .2., the config asks .24."),
    (put("blk.0.attn_q.scale", 1), "blk.0.attn_q.scale .1. is used by nothing"),
    (put("blk.0.attn_q.bias", *range(HEADS * SIZE)), "blk.0.attn_k.bias is missing"),
    (put("rope_freqs.weight", 1, 2), "rope_freqs.weight is of shape .2., expected 4 numbers"),
    (put("rope_freqs.weight", 1, 2, 0, 1), "rope_freqs.weight has values that are not positive"),
]


@pytest.mark.parametrize(("edit", "message"), BAD_TENSORS)
def test_tensors_that_are_refused(tmp_path: Path, edit: Callable[[Tensors], Tensors], message: str) -> None:
    path = save(tmp_path / "m.gguf", LLAMA, edit(llama_tensors()))
    with pytest.raises(ValueError, match=message), opened(path):
        pass
