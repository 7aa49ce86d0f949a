"""ONNX decoders: the same parameters and logits as the checkpoints that they were exported from."""

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import TOKENS, VOCABULARY, Golden, read_golden
from onnx import TensorProto, helper, numpy_helper
from onnx_files import Names, decoder, genai, save
from oracle_loader import generate, load

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.detect import open_source
from forge_jax import Forge, loading
from forge_jax.params import flatten
from forge_jax.tensor import QTensor

R = np.random.default_rng(5)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return read_golden("llama")


def parameters(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Every leaf, on the host, and the source closed."""
    with closing(checkpoint.source):
        return dict(flatten(checkpoint.read(lambda _, values: np.asarray(values))))


def assert_same(folder: Path, golden: Golden) -> None:
    """The model in a folder is the golden, bit for bit."""
    ours = parameters(checkpoint := open_checkpoint(folder))
    assert checkpoint.source.format == "onnx"
    assert checkpoint.spec == golden.spec
    theirs = dict(flatten(golden.params))
    assert sorted(ours) == sorted(theirs)
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], np.asarray(leaf), err_msg=path)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# ------------------------------------------------------------------------------------------------ references
@pytest.mark.parametrize(
    "name", ["gpt2_int8dyn", "gpt2_past", "llama_optimum", "llama_past", "llama_ts", "phi3_past", "qwen2_dynamo"]
)
def test_logits_of_reference_exports(shared: Path, name: str):
    case = shared / "oracle/onnx" / name
    if not case.exists():
        pytest.skip(f"{case} is not there")
    with np.load(case / "ref.npz") as file:
        ours = load(case / "model.onnx")(file["input_ids"])
        # onnxruntime rounds what flows between int8 matrices to int8 too
        assert distance(ours, file["logits"]) < (5e-2 if "int8" in name else 1e-5)


def test_an_export_of_a_real_model_is_the_model(shared: Path, tmp_path: Path):
    folder = shared / "models/stories260K"
    shutil.copytree(folder / "onnx", tmp_path / "onnx")
    shutil.copy(folder / "hf/config.json", tmp_path)  # above the folder "onnx", as repositories have it
    ours = parameters(open_checkpoint(tmp_path / "onnx"))
    for path, leaf in parameters(open_checkpoint(folder / "hf")).items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


def test_a_head_quantised_apart_from_its_embedding_is_its_own(shared: Path, tmp_path: Path):
    """The config ties them; what is written from here says that they are two."""
    case = shared / "oracle/onnx/gpt2_int8dyn"
    if not case.exists():
        pytest.skip(f"{case} is not there")
    forge = Forge.from_onnx(case, progress=False)
    back = Forge.from_any(forge.export_to_huggingface(tmp_path / "hf"), progress=False)
    assert not forge.model.spec.tied
    assert back.model.spec == forge.model.spec


def test_an_int8_export_says_what_onnxruntime_says(shared: Path, tmp_path: Path):
    folder = shared / "models/stories260K"
    shutil.copy(folder / "onnx/model_int8.onnx", tmp_path)
    shutil.copy(folder / "hf/config.json", tmp_path)
    expected = json.loads((folder / "onnx/int8_reference.json").read_text())
    assert generate(tmp_path / "model_int8.onnx", [expected[:1]], len(expected) - 1)[0].tolist() == expected[1:]


# ------------------------------------------------------------------------------------------------ graphs made here
def test_the_graph_made_here_computes_the_golden(golden: Golden):
    """The witness of the others: what they take apart is a decoder that runs."""
    session = onnxruntime.InferenceSession(decoder(golden).SerializeToString())
    logits = np.asarray(session.run(None, {"input_ids": golden.tokens.astype(np.int64)})[0])
    assert distance(logits[:, list(TOKENS), VOCABULARY], golden.logits) < 1e-5


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("names", ["scopes", "notes", "none"])
def test_matrices_that_lost_their_names(golden: Golden, tmp_path: Path, names: Names, beside: bool):
    assert_same(save(decoder(golden, names), tmp_path, golden.config, beside=beside), golden)


@pytest.mark.parametrize("packed", [False, True])
def test_a_graph_of_the_genai_builder(golden: Golden, tmp_path: Path, packed: bool):
    assert_same(save(genai(golden, packed=packed), tmp_path, golden.config), golden)


def test_a_genai_directory_without_a_config(golden: Golden, tmp_path: Path):
    folder = save(genai(golden), tmp_path)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_size": 24}
    decoder_config = {"hidden_size": 64, "num_hidden_layers": 2, **heads}
    said = {"model": {"type": "llama", "context_length": 128, "vocab_size": 160, "decoder": decoder_config}}
    (folder / "genai_config.json").write_text(json.dumps(said))
    assert_same(folder, golden)
    said["model"]["type"] = "phi"
    (folder / "genai_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"genai_config.json: of type 'phi' it does not say enough .* put the model's"):
        open_checkpoint(folder)
    (folder / "genai_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        open_checkpoint(folder)


def test_a_merged_decoder(golden: Golden, tmp_path: Path):
    """Both branches of an If hold the decoder, the weights lie outside of them."""
    graph = decoder(golden).graph
    branches: dict[str, Any] = {
        name: helper.make_graph(list(graph.node), name, [], list(graph.output))
        for name in ("then_branch", "else_branch")
    }
    either = helper.make_node("If", ["use_cache_branch"], ["logits"], "if", **branches)
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    inputs = [*graph.input, flag]
    merged = helper.make_graph([either], "merged", inputs, list(graph.output), list(graph.initializer))
    assert_same(save(helper.make_model(merged, ir_version=8), tmp_path, golden.config), golden)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_a_few_bits_stay_packed(golden: Golden, tmp_path: Path, bits: int):
    folder = save(genai(golden, bits=bits), tmp_path, golden.config)
    packed, dense = (loading.load(folder, packed=keep, progress=False) for keep in (True, False))
    kept = [path for path, leaf in flatten(packed.params) if isinstance(leaf, QTensor)]
    assert len(kept) == 2 * 7 + 1  # of both layers q, k, v, o, gate, up, down; and the head
    for path, leaf in flatten(packed.params):
        ours = np.asarray(leaf.dense() if isinstance(leaf, QTensor) else leaf)
        np.testing.assert_array_equal(ours, np.asarray(dict(flatten(dense.params))[path]), err_msg=path)


def test_equal_tensors_that_an_exporter_has_joined(golden: Golden, tmp_path: Path):
    """Of the norms of a model that was never trained one is left; the modules of the nodes say whose it is."""
    ones = {name: np.ones_like(x) if "norm" in name else x for name, x in golden.arrays.items()}
    plain = Golden("ones", golden.config, golden.shapes, golden.tokens, golden.logits)
    plain.__dict__["arrays"] = ones
    model = decoder(plain)
    norms = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith("norm.weight")]
    for node in model.graph.node:
        node.input[:] = [norms[0] if name in norms else name for name in node.input]
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in norms[1:]]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    assert_same(save(model, tmp_path, golden.config), plain)


def test_constant_nodes_hold_tensors_too(golden: Golden, tmp_path: Path):
    model = decoder(golden)
    constants = [helper.make_node("Constant", [], [t.name], f"/{t.name}", value=t) for t in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    graph = helper.make_graph(nodes, "main", list(model.graph.input), list(model.graph.output))
    assert_same(save(helper.make_model(graph, ir_version=8), tmp_path, golden.config), golden)


@pytest.mark.parametrize("raw", [False, True])
def test_every_way_to_store_numbers(tmp_path: Path, raw: bool):
    """In the fields of their types as varints and floats, or as raw bytes."""
    kinds = [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16, 17, 19, 21, 22]
    tensors = []
    for kind in kinds:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        low = -3 if kind in (1, 3, 5, 6, 7, 10, 11, 16, 17, 19, 22) else 0
        values = np.arange(low, low + 6).reshape(2, 3) if kind != 9 else np.arange(6).reshape(2, 3) % 2
        array = values.astype(dtype)
        stored = array.tobytes() if raw and kind < 21 else array.reshape(-1)
        if raw and kind >= 21:
            tensors.append(numpy_helper.from_array(array, f"t{kind}"))
        else:
            tensors.append(helper.make_tensor(f"t{kind}", kind, (2, 3), stored, raw=raw))
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with closing(open_source(tmp_path)) as source:
        for tensor in tensors:
            expected = numpy_helper.to_array(tensor)
            np.testing.assert_array_equal(source.read(tensor.name).astype(np.float64), expected.astype(np.float64))
            assert source.tensors[tensor.name].shape == (2, 3)


# ------------------------------------------------------------------------------------------------ what does not fit
def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the values of a stored tensor."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def test_rotary_frequencies_of_another_model(golden: Golden, tmp_path: Path):
    config = golden.config | {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    with pytest.raises(ValueError, match=r"are rotary frequencies .* the config asks for .* one of the two is wrong"):
        open_checkpoint(save(decoder(golden), tmp_path, config))
    with pytest.raises(ValueError, match=r"cos_cache \[64, 12\] is used by nothing"):
        open_checkpoint(save(genai(golden), tmp_path, config))


def test_an_epsilon_of_another_model(golden: Golden, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has epsilon = 0.001, the config asks for 1e-06; config.json is not"):
        open_checkpoint(save(decoder(golden), tmp_path, golden.config | {"rms_norm_eps": 1e-6}))


def test_heads_of_another_model(golden: Golden, tmp_path: Path):
    config = golden.config | {"num_attention_heads": 8, "head_dim": 12, "num_key_value_heads": 4}
    with pytest.raises(ValueError, match=r"has kv_num_heads = 2, the config asks for 4"):
        open_checkpoint(save(genai(golden), tmp_path, config))


def test_a_weight_that_belongs_to_nothing(golden: Golden, tmp_path: Path):
    model = decoder(golden)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32) / 3, "extra"))
    model.graph.node.append(helper.make_node("MatMul", ["logits", "extra"], ["more"]))
    with pytest.raises(ValueError, match=r"1 tensors do not fit the config: extra \[4, 3\] is used by nothing"):
        open_checkpoint(save(model, tmp_path, golden.config))


def test_a_config_with_more_layers_than_the_graph(golden: Golden, tmp_path: Path):
    with pytest.raises(ValueError, match=r"model.layers.2.self_attn.q_proj.weight is missing"):
        open_checkpoint(save(decoder(golden), tmp_path, golden.config | {"num_hidden_layers": 3}))


def test_two_tensors_of_one_name(golden: Golden, tmp_path: Path):
    model = decoder(golden)
    (node,) = (node for node in model.graph.node if "/layers.1/self_attn/q_proj/" in node.name)
    node.name = node.name.replace("layers.1", "layers.0")
    with pytest.raises(ValueError, match=r"both seem to be 'model.layers.0.self_attn.q_proj.weight'"):
        open_checkpoint(save(model, tmp_path, golden.config))


def test_the_facade_loads_it(golden: Golden, tmp_path: Path):
    forge = Forge.from_onnx(save(decoder(golden), tmp_path, golden.config), progress=False)
    assert forge.model.format == "onnx"
    assert forge.model.spec == golden.spec


# ------------------------------------------------------------------------------------------------ exporters themselves
FAMILIES = (
    *("bloom", "cohere2", "falcon", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite"),
    *("lfm2", "llama", "mistral", "modernbert_decoder", "olmo2", "openai_gpt", "opt", "phi", "phi3", "qwen2", "qwen3"),
    *("stablelm", "starcoder2"),
)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", FAMILIES)
def test_what_torch_exports(name: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tiny_checkpoint import write_golden_directory

    golden = read_golden(name)
    source = write_golden_directory(name, tmp_path / "source")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager"
        )

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model.eval()

            def forward(self, input_ids: Any, attention_mask: Any) -> Any:
                return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

        (tmp_path / "onnx").mkdir()
        ids = torch.from_numpy(golden.tokens).long()
        names, free = ["input_ids", "attention_mask"], {0: "rows", 1: "length"}
        options = {"dynamic_axes": dict.fromkeys(names, free), "opset_version": 17, "dynamo": False}
        with torch.no_grad():
            torch.onnx.export(
                Logits(),
                (ids, torch.ones_like(ids)),
                str(tmp_path / "onnx/model.onnx"),
                input_names=names,
                output_names=["logits"],
                **options,
            )
    (tmp_path / "onnx/config.json").write_text(json.dumps(golden.config))
    ours, theirs = parameters(open_checkpoint(tmp_path / "onnx")), dict(flatten(golden.params))
    assert sorted(ours) == sorted(theirs)
    for path, leaf in theirs.items():  # folded, 1 + w is rounded
        np.testing.assert_allclose(ours[path], np.asarray(leaf), rtol=0, atol=3e-7, err_msg=path)
