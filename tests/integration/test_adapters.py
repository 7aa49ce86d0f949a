"""Adapters against the logits of the reference: beside weights, in them, one a row, split, stacked, on packed ones."""

from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import same

import forge_jax as forge
from converters.gguf.writer import write_gguf
from forge_jax import parallel
from forge_jax.adapting import adapted, merged
from forge_jax.cli import main, options
from forge_jax.loading import Model, load
from forge_jax.lora import Adapter, Lora, Tokens, Update, attach, choose_adapters, extract, merge
from forge_jax.stacking import stack

pytestmark = pytest.mark.usefixtures("quick_compiles")

LLAMA = ("all_linear", "dora", "embedding", "layers", "modules_to_save", "patterns", "plain", "rslora")
QWEN2 = ("bias_all", "dora_rslora")
CASES = [
    *(f"llama_{name}" for name in LLAMA),
    *(f"qwen2_{name}" for name in QWEN2),
    *("gemma2_plain", "gpt2_dora", "mixtral_attn"),
]
QUICK = ("gpt2_dora",)


@pytest.fixture(scope="module")
def base(shared: Path) -> Callable[[str], Model]:
    """A base by its directory's name."""
    return cache(lambda name: load(shared / "oracle/corpus" / name, dtype="float32", progress=False))


@pytest.fixture(scope="module")
def case(shared: Path, base: Callable[[str], Model]) -> Callable[[str], tuple[Model, Adapter, Any]]:
    """(base, adapter, reference) of a case."""

    @cache
    def read(name: str) -> tuple[Model, Adapter, Any]:
        path = shared / "oracle/lora" / name
        model = base(name.split("_")[0])
        return model, forge.load_adapter(path, model), np.load(path / "ref.npz")

    return read


def apart(found: Any, reference: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(np.asarray(found) - reference).max() / np.abs(reference).max())


def logits(model: Model, ids: np.ndarray, params: Any = None) -> Any:
    """The logits of some ids."""
    return forge.forward(model.spec, model.params if params is None else params, forge.inputs(ids))[0]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_beside_the_weights_and_in_them(case: Any, name: str):
    model, adapter, reference = case(name)
    beside = adapted(model, adapter)
    assert apart(logits(beside, reference["input_ids"]), reference["logits"]) < 1e-5
    assert apart(logits(merged(beside), reference["input_ids"]), reference["logits"]) < 1e-5


@pytest.mark.parametrize(("kind", "names"), [("llama", LLAMA), pytest.param("qwen2", QWEN2, marks=pytest.mark.slow)])
def test_a_mixed_batch_is_each_row_alone(case: Any, base: Any, kind: str, names: tuple[str, ...]):
    model, found = base(kind), [case(f"{kind}_{name}") for name in names]
    ids = np.stack([reference["input_ids"][0] for _, _, reference in found] + [found[0][2]["input_ids"][1]])
    order = np.random.default_rng(0).permutation(len(ids))
    which = np.array([*range(len(names)), -1])[order]
    params = choose_adapters(attach(model.params, [adapter for _, adapter, _ in found]), which)
    mixed = np.asarray(logits(model, ids[order], params))
    for row, number in zip(mixed, which, strict=True):
        wanted = found[number][2]["logits"][0] if number >= 0 else logits(model, ids[-1:])[0]
        assert apart(row, np.asarray(wanted)) < 1e-5


def test_generation_takes_an_adapter_for_each_prompt():
    model = forge.Forge(config=forge.ForgeConfig(20, dim=8, n_layers=1, n_heads=2, max_seq_len=32)).model
    rng, path = np.random.default_rng(0), "layers.0.attention.q"
    update = Update(*(rng.standard_normal(shape).astype(np.float32) for shape in ((8, 3), (3, 2, 4))))
    adapters = [
        Adapter({path: update}),
        Adapter(values={"final_norm.scale": rng.standard_normal(8).astype(np.float32)}),
    ]
    pool, prompts = attach(model.params, adapters), [[1, 2, 3, 4, 5], [9, 8, 7], [1, 2, 3]]
    mixed = forge.generate(model.spec, pool, prompts, adapters=[1, -1, 0], max_new_tokens=5, n=2)
    for i, number in enumerate((1, -1, 0)):
        ids = list(mixed[2 * i].ids)
        assert list(mixed[2 * i + 1].ids) == ids
        params = model.params if number < 0 else attach(model.params, adapters[number])
        alone = np.asarray(logits(model, np.array([prompts[i] + ids]), params))[0]
        assert alone[len(prompts[i]) - 1 : -1].argmax(-1).tolist() == ids
    with pytest.raises(ValueError, match="2 adapters for 3 prompts"):
        forge.generate(model.spec, pool, prompts, adapters=[0, 1], max_new_tokens=1)
    with pytest.raises(ValueError, match=r"none of number 2; expected -1 \(none\) to 1"):
        forge.generate(model.spec, pool, prompts, adapters=[0, 1, 2], max_new_tokens=1)
    with pytest.raises(ValueError, match="none to choose among"):
        forge.generate(model.spec, model.params, prompts, adapters=[0, 0, 0], max_new_tokens=1)


@pytest.mark.slow
def test_layers_with_unequal_adapters_are_stacked(case: Any, base: Any):
    model = base("llama")
    _, adapter, reference = case("llama_layers")
    params = stack(model.spec, attach(model.params, adapter))
    assert apart(logits(model, reference["input_ids"], params), reference["logits"]) < 1e-5
    with pytest.raises(ValueError, match="layers are stacked"):
        attach(stack(model.spec, model.params), case("llama_layers")[1])


@pytest.mark.slow
def test_layers_with_unequal_choices_are_stacked(case: Any, base: Any):
    model = base("llama")
    pool = attach(
        model.params, [case(f"llama_{name}")[1] for name in ("layers", "dora", "modules_to_save", "patterns")]
    )
    pool, ids = choose_adapters(pool, [2, 1]), case("llama_layers")[2]["input_ids"]
    assert apart(logits(model, ids, stack(model.spec, pool)), np.asarray(logits(model, ids, pool))) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_dora", "llama_embedding"])
def test_split_over_devices(case: Any, name: str):
    model, adapter, reference = case(name)
    mesh = parallel.make_mesh(2)
    params = parallel.shard(model.spec, attach(model.params, adapter), mesh)
    found, _ = parallel.sharded_forward(model.spec, mesh)(params, forge.inputs(reference["input_ids"]), None)
    assert apart(found, reference["logits"]) < 1e-5


@pytest.mark.slow
def test_on_packed_weights(case: Any):
    model, adapter, reference = case("llama_plain")
    packed = forge.quantize(model, "int8")
    both = adapted(packed, adapter), adapted(packed.unpacked(), adapter)
    one, other = (np.asarray(logits(each, reference["input_ids"])) for each in both)
    assert apart(one, other) < 1e-5
    whole = (jax.tree.leaves(merged(each).unpacked().params) for each in both)
    for leaf, wanted in zip(*whole, strict=True):
        np.testing.assert_array_equal(leaf, wanted)


def test_on_a_gguf_whose_heads_are_permuted(case: Any, tmp_path: Path):
    model, adapter, reference = case("llama_rslora")
    forge.Forge.from_model(model).export_to_gguf(tmp_path / "base.gguf", "F32")
    base = load(tmp_path / "base.gguf", dtype="float32", progress=False)
    again = forge.load_adapter(forge.export_adapter(adapter, model, tmp_path / "a.gguf"), base)
    for each in (adapter, again):
        assert apart(logits(adapted(base, each), reference["input_ids"]), reference["logits"]) < 1e-5


@pytest.mark.slow
def test_rows_choose_where_weights_are_split(case: Any, base: Any):
    model, mesh = base("llama"), parallel.make_mesh(2)
    names = ("dora", "embedding", "modules_to_save", "all_linear")
    pool = choose_adapters(attach(model.params, [case(f"llama_{name}")[1] for name in names]), [2, -1, 0, 1, 3])
    ids = np.tile(case("llama_dora")[2]["input_ids"][:1], (5, 1))
    params = parallel.shard(model.spec, pool, mesh)
    found, _ = parallel.sharded_forward(model.spec, mesh)(params, forge.inputs(ids), None)
    assert apart(found, np.asarray(logits(model, ids, pool))) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 3])  # 3 do not divide the vocabulary
def test_replaced_rows_where_the_vocabulary_is_split(base: Any, shards: int):
    model, rng = base("llama"), np.random.default_rng(0)

    def rows(*ids: int) -> Tokens:
        return Tokens(np.array(ids), rng.standard_normal((len(ids), 48)).astype(np.float32))

    adapters = [Adapter(tokens={"embed": rows(2, 150), "head": rows(7)}), Adapter(tokens={"head": rows(1, 99, 159)})]
    ids = np.array([[2, 150, 3, 2], [1, 2, 150, 4], [2, 2, 9, 150]])
    for params in (attach(model.params, adapters[0]), choose_adapters(attach(model.params, adapters), [1, -1, 0])):
        mesh = parallel.make_mesh(shards)
        placed = parallel.shard(model.spec, params, mesh)
        found, _ = parallel.sharded_forward(model.spec, mesh)(placed, forge.inputs(ids), None)
        assert apart(found, np.asarray(logits(model, ids, params))) < 1e-5
    for row, number in enumerate((1, -1, 0)):
        alone = model.params if number < 0 else merge(attach(model.params, adapters[number]))
        assert apart(found[row], np.asarray(logits(model, ids[row : row + 1], alone))[0]) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_written_and_read_again_it_is_the_same(case: Any, name: str, tmp_path: Path):
    model, adapter, _ = case(name)
    assert same(forge.load_adapter(forge.export_adapter(adapter, model, tmp_path / "peft"), model), adapter)


def test_gguf_is_laid_out_as_llama_cpp_applies_it(case: Any, tmp_path: Path):
    """By gguf-py: W[in, out] of ggml's mul_mat is a [in, rank] and b [rank, out]; the table's rows are in a."""
    gguf = pytest.importorskip("gguf")
    model, adapter, _ = case("llama_embedding")
    path = forge.export_adapter(adapter, model, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(path)
    field = {key: reader.fields[key].contents() for key in reader.fields}
    assert (field["general.type"], field["adapter.type"], field["general.architecture"]) == ("adapter", "lora", "llama")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    dim, vocab, rank = model.spec.dim, model.spec.vocab_size, 4
    assert field["adapter.lora.alpha"] / rank == adapter.updates["head"].scale
    shapes = {name: [int(n) for n in tensor.shape] for name, tensor in tensors.items()}
    assert shapes["blk.0.attn_q.weight.lora_a"] == [dim, rank]
    assert shapes["blk.0.attn_q.weight.lora_b"] == [rank, 64]
    assert (shapes["token_embd.weight.lora_a"], shapes["token_embd.weight.lora_b"]) == ([rank, vocab], [rank, dim])
    update = adapter.updates["embed"]
    np.testing.assert_array_equal(tensors["token_embd.weight.lora_a"].data.reshape(vocab, rank), update.a)
    assert same(forge.load_adapter(path, model), adapter)


def test_gguf_may_replace_norms(case: Any, tmp_path: Path):
    model, _, _ = case("llama_plain")
    scale, pair = np.arange(48, dtype=np.float32), np.ones((2, 48), np.float32)
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}

    def written(**tensors: np.ndarray) -> Path:
        rows = [(name.replace("__", "."), x.shape, "F32", partial(np.asarray, x)) for name, x in tensors.items()]
        write_gguf(tmp_path / "a.gguf", metadata, rows)
        return tmp_path / "a.gguf"

    adapter = forge.load_adapter(written(output_norm__weight=scale), model)
    np.testing.assert_array_equal(adapter.values["final_norm.scale"], scale)
    with pytest.raises(ValueError, match="only norms are replaced whole"):
        forge.load_adapter(written(output__weight=np.ones((160, 48), np.float32)), model)
    with pytest.raises(ValueError, match="has only one of lora_a and lora_b"):
        forge.load_adapter(written(output__weight__lora_a=pair), model)
    with pytest.raises(ValueError, match="have ranks 2 and 48"):
        forge.load_adapter(written(output__weight__lora_a=pair, output__weight__lora_b=pair), model)
    with pytest.raises(ValueError, match=r"the model has no blk\.9\.attn_q\.weight"):
        forge.load_adapter(written(blk__9__attn_q__weight__lora_a=pair), model)


def test_gguf_refuses_what_it_cannot_say(case: Any, tmp_path: Path):
    for name, what in (("llama_dora", "magnitudes"), ("qwen2_bias_all", "k_bias, which is replaced")):
        model, adapter, _ = case(name)
        with pytest.raises(ValueError, match=what):
            forge.export_adapter(adapter, model, tmp_path / "a.gguf")


def test_the_difference_of_two_models_is_an_adapter(case: Any):
    model, adapter, reference = case("llama_all_linear")
    tuned = merge(attach(model.params, adapter))
    found = extract(model.spec, model.params, tuned, 4)
    assert found.updates.keys() == adapter.updates.keys()
    assert apart(logits(model, reference["input_ids"], attach(model.params, found)), reference["logits"]) < 1e-5
    replaced = extract(model.spec, model.params, merge(attach(model.params, case("llama_modules_to_save")[1])), 48)
    assert "final_norm.scale" in replaced.values
    with pytest.raises(ValueError, match="rank 0"):
        extract(model.spec, model.params, tuned, 0)


def test_forge_holds_adapters_and_gives_back_its_base(shared: Path, case: Any):
    path, ids = shared / "oracle/lora", case("llama_dora")[2]["input_ids"]
    model = forge.load(shared / "oracle/corpus/llama", adapter=path / "llama_dora", dtype="float32", progress=False)
    base = model.adapters.base.params
    beside = np.asarray(model.forward(ids))
    assert apart(beside, case("llama_dora")[2]["logits"]) < 1e-5
    model.merge_lora()
    assert apart(model.forward(ids), beside) < 1e-5
    assert jax.tree.structure(model.params) == jax.tree.structure(base)
    with pytest.raises(ValueError, match="'default' is merged; call unmerge_lora first"):
        model.set_adapter(None)
    model.unmerge_lora("default")
    np.testing.assert_array_equal(model.forward(ids), beside)
    model.load_lora(path / "llama_plain", "plain", merge=True)
    assert apart(model.forward(case("llama_plain")[2]["input_ids"]), case("llama_plain")[2]["logits"]) < 1e-5
    model.unmerge_lora()
    model.set_adapter(None)
    assert all(x is y for x, y in zip(jax.tree.leaves(model.params), jax.tree.leaves(base), strict=True))
    with pytest.raises(ValueError, match="there is an adapter 'plain' already"):
        model.load_lora(path / "llama_plain", "plain")
    with pytest.raises(ValueError, match="there is no adapter 'other'; there is 'default', 'plain'"):
        model.set_adapter("other")


def test_the_command_line_takes_an_adapter(shared: Path, capsys: pytest.CaptureFixture[str]):
    model = str(shared / "oracle/corpus/llama")
    assert main(["generate", "x", "-m", model, "--adapter", "no/where"]) != 0
    assert "no/where: no such file or directory" in capsys.readouterr().err
    args = Namespace(revision=None, subfolder=None, file=None, allow=[], adapter=shared / "oracle/lora/llama_plain")
    assert isinstance(options.load(args, model, "float32").params["layers"]["0"]["attention"]["q"], Lora)


def test_experts_cannot_differ_by_row(case: Any):
    model, adapter, _ = case("mixtral_attn")
    tuned = jax.tree.map(lambda x: x, model.params)
    tuned["layers"]["0"]["moe"]["up"] = tuned["layers"]["0"]["moe"]["up"] + 1.0
    experts = extract(model.spec, model.params, tuned, 1)
    back = merge(attach(model.params, experts))["layers"]["0"]["moe"]["up"]
    assert apart(back, np.asarray(tuned["layers"]["0"]["moe"]["up"])) < 1e-5
    with pytest.raises(ValueError, match=r"layers\.0\.moe\.up is a stack of weights \(experts"):
        attach(model.params, [adapter, experts])
