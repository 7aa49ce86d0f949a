"""The goldens and the defaults against transformers itself, where it and torch are installed."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import GOLDENS, Golden, read_golden
from hub_models import HUB

from converters.architectures import apertus, cwm, families, find, gemma4, gpt_oss, laguna, lfm3, ministral3, zaya
from converters.take import Take

pytestmark = pytest.mark.torch

NAMES = sorted(path.stem for path in GOLDENS.glob("*.npz"))

# What a config must say about the size of a model, as small as it can be with every default for the rest.
SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 2048,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
}
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 160, "hidden_size": 2048, "n_layer": 2, "n_head": 4},
    "gpt_neo": {"vocab_size": 160, "hidden_size": 2048, "num_layers": 24, "num_heads": 4},
    "cohere_compass_text": SIZES | {"rope_parameters": {"full_attention": None}},
    "mpt": {"vocab_size": 160, "d_model": 2048, "n_layers": 2, "n_heads": 4},
    "xglm": {"vocab_size": 160, "d_model": 2048, "num_layers": 2, "attention_heads": 4, "ffn_dim": 56},
    "opt": SIZES | {"ffn_dim": 56},
    "deepseek_v2": SIZES | {"num_experts_per_tok": 2},
    "dots1": SIZES | {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "longcat_flash": {"hidden_size": 2048, "num_layers": 2, "num_attention_heads": 32},
    "helium": SIZES | {"hidden_size": 2560, "num_attention_heads": 20},
    "bitnet": SIZES | {"hidden_size": 2560, "num_attention_heads": 20},
    "codegen": {"vocab_size": 160, "n_embd": 2048, "n_layer": 2, "n_head": 4},
    "ctrl": {"vocab_size": 160, "n_embd": 2048, "n_layer": 2, "n_head": 4, "dff": 56},
    "lfm2_moe": SIZES | {"layer_types": ["conv", "full_attention"]},
    "deepseek_v4": {key: value for key, value in SIZES.items() if key != "intermediate_size"},
    "zamba2": SIZES | {"layers_block_type": ["mamba", "hybrid"]},
    "zamba": SIZES | {"num_hidden_layers": 8},
    "dory": SIZES | {"num_hidden_layers": 18},
    "gemma3n_text": SIZES | {"num_hidden_layers": 20},
    "inkling2_text": {key: SIZES[key] for key in SIZES if key != "intermediate_size"} | {"unpadded_vocab_size": 160},
    "inkling2_loop_text": {key: SIZES[key] for key in SIZES if key != "intermediate_size"}
    | {"unpadded_vocab_size": 160, "num_hidden_layers": 18},
}
# Defaults that are no field of the config class but stand in its code.
IN_CODE = {
    ("gemma3_text", "sliding_window_pattern"): 6,
    ("gemma3_text", "rope_theta"): 1000000.0,
    ("gemma3_text", "rope_local_base_freq"): 10000.0,
    ("ministral3", "rope_parameters"): ministral3.ROPE,
    ("apertus", "rope_parameters"): apertus.ROPE,
    ("apertus1p5_text", "rope_parameters"): apertus.ROPE,
    ("cwm", "rope_parameters"): cwm.ROPE,
    ("gpt_oss", "rope_parameters"): gpt_oss.ROPE,
    ("gpt_neo", "attention_types"): [[["global", "local"], 12]],
    ("dots3_note_text", "first_k_dense_replace"): 1,
    ("bloom", "max_position_embeddings"): 2048,
    ("cohere2", "sliding_window_pattern"): 4,
    ("mpt", "max_position_embeddings"): 2048,
    ("glm4_moe_lite", "first_k_dense_replace"): 1,
    ("axk1", "first_k_dense_replace"): 1,
    ("axk2", "first_k_dense_replace"): 1,
    ("modernbert-decoder", "global_attn_every_n_layers"): 3,
    ("modernbert-decoder", "global_rope_theta"): 160000.0,
    ("modernbert-decoder", "local_rope_theta"): 10000.0,
    ("lfm3", "rope_parameters"): lfm3.ROPES,
    ("bailing_hybrid", "rope_theta"): 6000000.0,
    ("flint", "mlp_only_layers"): [0, 1],
    ("laguna", "rope_parameters"): laguna.DEFAULTS["rope_parameters"],
    ("zaya", "rope_parameters"): zaya.ROPES,
    ("gemma3n_text", "rope_theta"): 1000000.0,
    ("gemma3n_text", "rope_local_base_freq"): 10000.0,
    ("gemma4_text", "global_head_dim"): 512,
    ("gemma4_text", "rope_parameters"): gemma4.DEFAULTS["rope_parameters"],
    ("gemma4_unified_text", "global_head_dim"): 512,
    ("gemma4_unified_text", "rope_parameters"): gemma4.DEFAULTS["rope_parameters"],
}


@pytest.fixture(scope="module")
def transformers() -> Any:
    """The library, or a skip."""
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it imports
        return pytest.importorskip("transformers")


def by_type() -> dict[str, list[Golden]]:
    """The goldens of each model type."""
    found: dict[str, list[Golden]] = {}
    for golden in map(read_golden, NAMES):
        found.setdefault(golden.config["model_type"], []).append(golden)
    return found


OF_TYPE = by_type()
PLAINEST = {model_type: goldens[0] for model_type, goldens in OF_TYPE.items()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in {golden.name for golden in PLAINEST.values()} else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_a_golden_is_what_the_reference_gives(transformers: Any, name: str) -> None:
    from make_goldens import VARIANTS, reference

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    stored, fresh = read_golden(name), reference(name, VARIANTS[name])
    assert stored.config == fresh.config
    assert stored.shapes == fresh.shapes
    np.testing.assert_array_equal(stored.tokens, fresh.tokens)
    # another release, processor or number of threads sums in another order
    np.testing.assert_allclose(stored.logits, fresh.logits, rtol=0, atol=1e-5 * float(np.abs(stored.logits).max()))


def test_every_variant_has_its_golden() -> None:
    from variants import VARIANTS

    assert NAMES == sorted(VARIANTS)
    assert set(PLAINEST) == set(families()) - {"forge"}  # our own, of which the reference knows nothing


# where the reference saves what it ignores itself, and what we refuse
NOT_SAVED_AS_READ = {"minimax_m3_vl_text_bare": "rotary_dim = 64"}


@pytest.mark.parametrize("model_type", sorted(set(PLAINEST) - set(HUB)))
def test_a_config_that_the_reference_saves_means_the_same(transformers: Any, model_type: str, tmp_path: Path) -> None:
    """A fine-tuned checkpoint has every key spelt out, those too that follow from others."""
    file = tmp_path / "config.json"
    for golden in OF_TYPE[model_type]:
        file.write_text(json.dumps(golden.config))
        transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
        saved = json.loads(file.read_text())
        if golden.name in NOT_SAVED_AS_READ:
            with pytest.raises(ValueError, match=NOT_SAVED_AS_READ[golden.name]):
                golden.understood(saved)
        else:
            assert golden.understood(saved).spec == golden.spec, golden.name


@pytest.mark.parametrize("model_type", sorted(set(PLAINEST) - set(HUB)))
def test_defaults_are_those_of_the_config_class(transformers: Any, model_type: str) -> None:
    """A default that is missing or wrong would show only in a config that leaves the key out."""
    given = {"model_type": model_type} | OTHER_SIZES.get(model_type, SIZES)
    take = Take(given, model_type)
    find(model_type, model_type).config(take)
    assumed = {key: value for key, value in take.config.items() if key not in {*given, *SIZES}}
    assert assumed
    class_ = transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    theirs = class_()
    for key, value in assumed.items():
        if (model_type, key) in IN_CODE:
            expected = IN_CODE[model_type, key]
        elif key == "rope_theta":
            expected = class_.default_theta
        elif key in class_.__dataclass_fields__:
            expected = class_.__dataclass_fields__[key].default
        else:
            expected = getattr(theirs, key)
        assert value == expected, key
