"""Adapters that PEFT makes, on tiny models of its own library: every feature, read here, gives PEFT's logits.

What is written here is read by PEFT in turn.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forge_jax as forge
from forge_jax import parallel
from forge_jax.adapting import adapted, merged
from forge_jax.loading import Model, load
from forge_jax.lora import attach, choose_adapters
from forge_jax.ops import Context

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.torch").load_file

pytestmark = [
    pytest.mark.usefixtures("quick_compiles"),
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": GROUPED,
    "phi3": GROUPED,
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "mixtral": {**GROUPED, "num_local_experts": 3},
    "gpt_oss": {**GROUPED, "num_local_experts": 3, "head_dim": 4, "num_experts_per_tok": 2},
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 24},
    "gpt_neox": {**SIZES, "max_position_embeddings": 64, "rotary_pct": 0.5},
    "falcon_mamba": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 3},
}
IDS = np.random.default_rng(0).integers(0, 40, (2, 9))
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "rank_pattern": {"qkv_proj": 5}}),
    "fused_dora": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"], "use_dora": True}),
    "interleaved": ("gpt_neox", {"target_modules": ["query_key_value", "dense_h_to_4h"], "use_dora": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "wte", "wpe"], "fan_in_fan_out": True}),
    "all_linear": ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    "regex": (
        "llama",
        {"target_modules": r".*(?:attn|mlp)\b.*[qu]p?_proj", "exclude_modules": r".*\.1\..*up.*"},
    ),
    "excluded": ("llama", {"target_modules": EVERY, "exclude_modules": ["layers.0.mlp.up_proj", "v_proj"]}),
    "layers": (
        "llama",
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
    ),
    "any_layer": ("gpt2", {"target_modules": ["c_fc"], "layers_to_transform": [0], "fan_in_fan_out": True}),
    "patterns": (
        "llama",
        {
            "target_modules": EVERY,
            "rank_pattern": {r"1\..*\.down_proj": 2, "q_proj": 6},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "o_proj": 5},
            "use_rslora": True,
        },
    ),
    "lora_bias": ("llama", {"target_modules": EVERY, "lora_bias": True}),
    "bias_lora_only": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "layers.0.mlp.up_proj"]}),
    "tied_saved": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied_head": ("qwen2", {"target_modules": ["lm_head", "v_proj"]}),
    "tied_dora": ("qwen2", {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "tied_embedding": ("qwen2", {"target_modules": ["embed_tokens"]}),
    "tied_both": ("qwen2", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 30, 7]}),
    "tied_tokens": ("qwen2", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 30, 7]}),
    "tokens_by_name": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [5]}},
    ),
    "experts": (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 2}},
    ),
    "experts_down": ("mixtral", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "experts_turned": ("gpt_oss", {"target_modules": ["o_proj"], "target_parameters": EXPERTS}),
    "state_space": ("falcon_mamba", {"target_modules": ["x_proj", "in_proj", "embeddings"]}),
}


def shaken(module: Any, scale: float = 0.3) -> None:
    """Random numbers on every parameter, so that an ignored one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Model]]:
    """A tiny model of a kind, as a directory and loaded here."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()

    @cache
    def make(kind: str) -> tuple[Path, Model]:
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp(kind)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **CONFIGS[kind]))
        shaken(model, 0.1)
        model.save_pretrained(path)
        return path, load(path, dtype="float32", progress=False)

    return make


def original(base: Path) -> Any:
    """The model that PyTorch has of a base."""
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")


def trained(base: Path, options: Mapping[str, Any], target: Path) -> np.ndarray:
    """Write an adapter of random numbers with PEFT; returns its logits."""
    torch.manual_seed(2)
    config = peft.LoraConfig(
        **{"r": 3, "lora_alpha": 5, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | options
    )
    wrapped = peft.get_peft_model(original(base), config)
    shaken(wrapped)
    wrapped.save_pretrained(target)
    return logits(wrapped)


def logits(model: Any) -> np.ndarray:
    """What PyTorch gives."""
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.numpy()


def distance(model: Model, reference: np.ndarray) -> float:
    """The largest difference of the logits, relative to the largest logit."""
    found, _ = forge.forward(model.spec, model.params, forge.inputs(IDS))
    return apart(np.asarray(found), reference)


def apart(found: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(found - reference).max() / np.abs(reference).max())


QUICK = ("fused_dora",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_logits_are_those_of_peft_both_ways(name: str, base_of: Callable[[str], tuple[Path, Model]], tmp_path: Path):
    kind, options = CASES[name]
    path, model = base_of(kind)
    reference = trained(path, options, tmp_path / "a")
    assert distance(model, reference) > 1e-2, "the adapter does nothing"
    adapter = forge.load_adapter(tmp_path / "a", model)
    assert distance(adapted(model, adapter), reference) < 1e-5
    written = forge.export_adapter(adapter, model, tmp_path / "b")
    back = peft.PeftModel.from_pretrained(original(path), written)
    assert apart(logits(back), reference) < 1e-5
    assert distance(adapted(model, forge.load_adapter(written, model)), reference) < 1e-5


@pytest.mark.slow
def test_rows_choose_how_a_tied_embedding_is_adapted(base_of: Callable[[str], tuple[Path, Model]], tmp_path: Path):
    path, model = base_of("qwen2")
    names = ["tied_saved", "tied_head", "tied_dora", "tied_embedding", "tied_tokens", "bias_lora_only"]
    references = [trained(path, CASES[name][1], tmp_path / name)[0] for name in names]
    pool = attach(model.params, [forge.load_adapter(tmp_path / name, model) for name in names])
    params = choose_adapters(pool, [*range(len(names)), -1])
    ids = np.tile(IDS[:1], (len(names) + 1, 1))
    found = np.asarray(forge.forward(model.spec, params, forge.inputs(ids))[0])
    alone = np.asarray(forge.forward(model.spec, model.params, forge.inputs(IDS[:1]))[0])
    for row, reference in zip(found, [*references, *alone], strict=True):
        assert apart(row, reference) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("way", ["every", "gathered", "grouped", "ragged"])
def test_updates_of_experts_on_every_path(way: str, base_of: Callable[[str], tuple[Path, Model]], tmp_path: Path):
    kind, options = CASES["experts_turned"]
    path, model = base_of(kind)
    reference = trained(path, options, tmp_path / "a")
    params = attach(model.params, forge.load_adapter(tmp_path / "a", model))
    found, _ = forge.forward(model.spec, params, forge.inputs(IDS), ctx=Context(experts=way))
    assert apart(np.asarray(found), reference) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 3])
def test_a_tied_embedding_adapted_apart_is_split(
    shards: int, base_of: Callable[[str], tuple[Path, Model]], tmp_path: Path
):
    path, model = base_of("qwen2")
    reference, mesh = trained(path, CASES["tied_dora"][1], tmp_path / "a"), parallel.make_mesh(shards)
    params = attach(model.params, forge.load_adapter(tmp_path / "a", model))
    split = parallel.shard(model.spec, params, mesh)
    found, _ = parallel.sharded_forward(model.spec, mesh)(split, forge.inputs(IDS), None)
    assert apart(np.asarray(found), reference) < 1e-5


@pytest.mark.slow
def test_weights_of_torch_are_read(base_of: Callable[[str], tuple[Path, Model]], tmp_path: Path):
    path, model = base_of("llama")
    reference = trained(path, CASES["lora_bias"][1], tmp_path / "a")
    file = tmp_path / "a/adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "a/adapter_model.bin")
    file.unlink()
    assert distance(adapted(model, forge.load_adapter(tmp_path / "a", model)), reference) < 1e-5


@pytest.mark.slow
def test_a_bias_of_an_update_survives_the_mesh_and_rows(base_of: Callable[[str], tuple[Path, Model]], tmp_path: Path):
    path, model = base_of("llama")
    reference = trained(path, CASES["lora_bias"][1], tmp_path / "a")
    adapter, mesh = forge.load_adapter(tmp_path / "a", model), parallel.make_mesh(2)
    for params in (attach(model.params, adapter), choose_adapters(attach(model.params, [adapter]), [0, 0])):
        split = parallel.shard(model.spec, params, mesh)
        found, _ = parallel.sharded_forward(model.spec, mesh)(split, forge.inputs(IDS), None)
        assert apart(np.asarray(found), reference) < 1e-5
    with pytest.raises(ValueError, match="has a bias, and the model has none there; keep it attached"):
        forge.merge(attach(model.params, adapter))


@pytest.mark.slow
def test_a_merged_model_whose_head_was_tied_is_exported(base_of: Callable[[str], tuple[Path, Model]], tmp_path: Path):
    path, model = base_of("qwen2")
    reference = trained(path, CASES["tied_embedding"][1], tmp_path / "a")
    whole = merged(adapted(model, forge.load_adapter(tmp_path / "a", model)))
    written = forge.Forge.from_model(whole).export_to_huggingface(tmp_path / "b")
    assert distance(load(written, dtype="float32", progress=False), reference) < 1e-5
    assert apart(logits(original(written)), reference) < 1e-5
