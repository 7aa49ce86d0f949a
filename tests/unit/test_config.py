"""ForgeConfig and the presets: every default, check, alias and count of the seed API."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from forge_jax import params
from forge_jax.config import ForgeConfig, QuantizationConfig, unsupported
from forge_jax.presets import (
    MODEL_PRESETS,
    estimate_memory_usage,
    estimate_parameters,
    get_preset,
    list_presets,
    preset_config,
)
from forge_jax.spec import DynamicNtk, Linear, Llama3, Mlp, Norm, Positions, Yarn

DEFAULTS = {
    "vocab_size": 8000,
    "dim": 512,
    "n_layers": 8,
    "n_heads": 8,
    "n_kv_heads": 8,
    "hidden_dim": 1408,
    "max_seq_len": 1024,
    "dropout": 0.1,
    "use_rope": True,
    "use_rms_norm": True,
    "use_swiglu": True,
    "use_bias": False,
    "rope_theta": 10000.0,
    "rope_scaling_type": None,
    "rope_scaling_factor": 1.0,
    "use_moe": False,
    "num_experts": 8,
    "num_experts_per_token": 2,
    "moe_load_balancing": 0.01,
    "sliding_window": None,
    "use_paged_attn": False,
    "kv_cache_dtype": None,
    "use_gradient_checkpointing": False,
    "vision_hidden_size": None,
    "audio_hidden_size": None,
}
SMALL = ForgeConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64)


# ------------------------------------------------------------------------------------------------ ForgeConfig
def test_fields_their_order_and_defaults():
    assert list(ForgeConfig().to_dict().items()) == list(DEFAULTS.items())
    assert [field.name for field in fields(ForgeConfig)] == list(DEFAULTS)
    assert ForgeConfig(100, 32, 2, 4, 2, 128, 64, 0.0).to_dict() | {"dropout": 0.1} == SMALL.to_dict()


def test_it_is_immutable_hashable_and_survives_json():
    assert hash(SMALL) == hash(ForgeConfig.from_dict(json.loads(json.dumps(SMALL.to_dict()))))
    assert SMALL.freeze() is SMALL
    with pytest.raises(FrozenInstanceError):
        SMALL.dim = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_aliases_win_and_can_be_read():
    config = ForgeConfig(dim=100, n_layers=1, n_heads=3, max_seq_len=9, depth=2, heads=4, max_len=64, embed_dim=32)
    assert (config.dim, config.n_layers, config.n_heads, config.max_seq_len) == (32, 2, 4, 64)
    assert (config.embed_dim, config.depth, config.heads, config.max_len) == (32, 2, 4, 64)
    assert config.n_kv_heads == 4
    assert ForgeConfig.from_dict({"depth": 3, "n_layers": 1}).n_layers == 3
    assert replace(SMALL, depth=5).n_layers == 5
    assert replace(SMALL, n_layers=5).n_layers == 5


@pytest.mark.parametrize(
    ("dim", "swiglu", "hidden"), [(512, True, 1408), (192, True, 512), (64, True, 192), (512, False, 2048)]
)
def test_hidden_dim_is_derived(dim: int, swiglu: bool, hidden: int):
    assert ForgeConfig(dim=dim, use_swiglu=swiglu).hidden_dim == hidden
    assert ForgeConfig(dim=dim, use_swiglu=swiglu, hidden_dim=77).hidden_dim == 77


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *[({name: 0}, f"{name} must be") for name in ("vocab_size", "dim", "n_layers", "n_heads", "max_seq_len")],
        *[({name: -1}, f"{name} must be") for name in ("hidden_dim", "n_kv_heads", "sliding_window")],
        ({"dim": "512"}, "dim must be a whole number > 0; found '512'"),
        ({"n_layers": True}, "n_layers must be"),
        ({"depth": 0}, "n_layers must be"),
        ({"dropout": 1.5}, r"dropout must be a number in \[0, 1\]; found 1.5"),
        ({"dropout": -0.1}, "dropout must be"),
        ({"dim": 513}, "dim must be a multiple of n_heads; found dim 513, n_heads 8"),
        ({"n_kv_heads": 3}, "n_heads must be a multiple of n_kv_heads; found n_heads 8, n_kv_heads 3"),
        ({"dim": 24}, "must be even with use_rope"),
        ({"rope_scaling_type": "ntk"}, "rope_scaling_type must be one of linear, dynamic, yarn, llama3, longrope, pro"),
        ({"rope_scaling_type": "linear", "rope_scaling_factor": 0.0}, "rope_scaling_factor must be"),
        ({"rope_scaling_type": "linear", "use_rope": False}, "needs use_rope=True"),
        ({"rope_theta": 0.0}, "rope_theta must be"),
        ({"use_moe": True, "num_experts": 0}, "num_experts must be"),
        ({"use_moe": True, "num_experts_per_token": 0}, "num_experts_per_token must be"),
        (
            {"use_moe": True, "num_experts_per_token": 9},
            "num_experts_per_token must be at most num_experts; found 9 of",
        ),
        ({"kv_cache_dtype": "int7"}, "kv_cache_dtype must be one of int8, fp16, bf16, fp8, int4; found 'int7'"),
        ({"use_bias": 1}, "use_bias must be True or False"),
        ({"vocab_size": 0, "dropout": 2}, "vocab_size .*; dropout "),
    ],
)
def test_a_wrong_value_is_named(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ForgeConfig(**wrong)


def test_what_does_not_apply_is_not_checked():
    ForgeConfig(num_experts=0, num_experts_per_token=99, rope_scaling_factor=0.0).to_spec()
    ForgeConfig(dim=24, use_rope=False)
    for name in ("int8", "fp16", "bf16", "fp8", "int4"):
        assert ForgeConfig(kv_cache_dtype=name).kv_cache_dtype == name


def test_an_unknown_key_names_the_nearest_field():
    with pytest.raises(ValueError, match="'n_layer' is no field .the nearest is 'n_layers'"):
        ForgeConfig.from_dict({"n_layer": 3})


@pytest.mark.parametrize("wrong", [{"mode": "int3"}, {"group_size": 0}, {"group_size": 1.5}])
def test_quantization_config(wrong: dict):
    assert QuantizationConfig() == QuantizationConfig("none", 128, True, False)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        QuantizationConfig(**wrong)


# ------------------------------------------------------------------------------------------------ to_spec
def test_the_spec_of_a_config():
    spec = SMALL.to_spec()
    assert (spec.vocab_size, spec.dim, len(spec.layers), spec.max_seq_len, spec.tied) == (100, 32, 2, 64, True)
    attention, mlp = spec.layers[0].branches
    assert (attention.name, mlp.name) == ("attention", "mlp")
    assert attention.op.heads == 4
    assert attention.op.kv_heads == 2
    assert attention.op.scale == 8**-0.5
    assert (attention.op.rope.dim, attention.op.rope.theta) == (8, 10000.0)
    assert mlp.op == Mlp(128, act="silu", gated=True)
    assert spec.final_norm == attention.pre == mlp.pre == Norm(eps=1e-6, kind="rms")
    assert spec.positions is None


def test_the_other_side_of_every_flag():
    config = replace(SMALL, use_rope=False, use_rms_norm=False, use_swiglu=False, use_bias=True, sliding_window=16)
    spec = config.to_spec()
    attention, mlp = (branch.op for branch in spec.layers[0].branches)
    assert spec.positions == Positions(64)
    assert spec.final_norm == Norm(eps=1e-6, kind="layer", bias=True)
    assert mlp == Mlp(128, act="gelu", gated=False, bias=True)
    assert attention.rope is None
    assert (attention.qkv_bias, attention.o_bias, attention.window) == (True, True, 16)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("linear", Linear(4.0)),
        ("dynamic", DynamicNtk(4.0, 16)),
        ("yarn", Yarn(4.0, 16, attention_factor=1.138629436111989)),
        ("llama3", Llama3(4.0, 1.0, 4.0, 16)),
    ],
)
def test_rope_scaling(name: str, scaling: object):
    config = replace(SMALL, rope_scaling_type=name, rope_scaling_factor=4.0)
    assert config.to_spec().layers[1].branches[0].op.rope.scaling == scaling


@pytest.mark.parametrize(
    "option",
    [
        {"use_gradient_checkpointing": True},
        {"rope_scaling_type": "longrope"},
        {"rope_scaling_type": "proportional"},
        {"vision_hidden_size": 8},
        {"audio_hidden_size": 8},
    ],
)
def test_an_option_that_cannot_be_honoured_is_an_error_that_names_it(option: dict):
    config = replace(SMALL, **option)
    assert ForgeConfig.from_dict(config.to_dict()) == config
    assert len(unsupported(config)) == 1
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        config.to_spec()


@pytest.mark.parametrize(
    "option",
    [{}, {"kv_cache_dtype": "fp16"}, {"kv_cache_dtype": "int4"}, {"use_paged_attn": True}, {"sliding_window": 3}],
)
def test_supported_options(option: dict):
    assert unsupported(replace(SMALL, **option)) == []


# ------------------------------------------------------------------------------------------------ presets
TABLE = {
    "pi_zero": ("64/2/2/1/192/256/0.0", "0.61M"),
    "nano": ("128/4/4/2/384/256/0.1", "1.81M"),
    "pi_4": ("192/4/4/2/512/512/0.05", "3.16M"),
    "micro": ("192/4/4/2/512/384/0.1", "3.16M"),
    "pi_5": ("256/6/8/4/704/1024/0.05", "6.48M"),
    "tiny": ("256/6/8/4/704/512/0.1", "6.48M"),
    "mini": ("384/6/6/3/1024/512/0.1", "12.81M"),
    "small": ("512/8/8/4/1408/1024/0.1", "27.70M"),
    "medium": ("768/12/12/4/2048/2048/0.1", "81.66M"),
    "base": ("896/14/14/2/2432/2048/0.1", "124.41M"),
    "large": ("1024/16/16/4/2752/4096/0.1", "185.44M"),
    "xl": ("1536/24/24/6/4096/4096/0.05", "606.91M"),
    "xxl": ("2048/32/32/8/5504/8192/0.05", "1.43B"),
    "huge": ("2560/40/40/8/6848/8192/0.05", "2.75B"),
    "giant": ("4096/32/32/8/10944/8192/0.05", "5.68B"),
    "colossal": ("4096/48/32/8/10944/16384/0.05", "8.50B"),
    "titan": ("6144/48/48/12/16384/16384/0.05", "19.1B"),
    "omega": ("8192/64/64/16/21888/32768/0.05", "45.2B"),
}


def test_all_eighteen_presets_are_there_in_order():
    assert list(MODEL_PRESETS) == list(list_presets()) == list(TABLE)
    assert set(list_presets()["small"]) == {
        *("description", "estimated_params", "dim", "layers", "heads", "max_seq_len"),
    }


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_and_its_parameter_count(name: str):
    """The count at the precision of the table, and exactly that of the tree of parameters."""
    shape, printed = TABLE[name]
    c = get_preset(name)
    row = (c.dim, c.n_layers, c.n_heads, c.n_kv_heads, c.hidden_dim, c.max_seq_len, c.dropout)
    assert "/".join(map(str, row)) == shape
    digits = len(printed[:-1].split(".")[1])
    unit = {"M": 1e6, "B": 1e9}[printed[-1]]
    count = estimate_parameters(c)
    assert f"{count / unit:.{digits}f}" == printed[:-1]
    assert count == params.count(c.to_spec()) == list_presets()[name]["estimated_params"]


@pytest.mark.parametrize(
    "option",
    [
        {"use_rope": False},
        {"use_rms_norm": False},
        {"use_swiglu": False, "hidden_dim": None},
        {"use_bias": True},
        {"use_bias": True, "use_moe": True},
        {"use_moe": True, "num_experts": 3, "use_swiglu": False},
        {"use_bias": True, "use_swiglu": False, "use_rms_norm": False, "use_rope": False, "n_kv_heads": 1},
    ],
)
def test_the_count_is_that_of_the_parameters_for_every_option(option: dict):
    config = replace(SMALL, **option)
    assert estimate_parameters(config) == params.count(config.to_spec())


def test_experts_and_their_router_are_counted():
    dense = estimate_parameters(SMALL)
    sparse = estimate_parameters(replace(SMALL, use_moe=True, num_experts=4))
    assert sparse - dense == 2 * (3 * 3 * 32 * 128 + 32 * 4)


def test_preset_overrides():
    config = preset_config("small", vocab_size=100, dim=256, depth=3, dropout=0.0)
    assert (config.vocab_size, config.dim, config.n_layers, config.dropout) == (100, 256, 3, 0.0)
    assert config.hidden_dim == ForgeConfig(dim=256).hidden_dim
    assert preset_config("small", hidden_dim=100).hidden_dim == 100
    assert preset_config("small") == get_preset("small") == MODEL_PRESETS["small"]
    assert get_preset("tiny", 77).vocab_size == 77


def test_wrong_presets():
    with pytest.raises(TypeError, match="found 3 of type int"):
        preset_config(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="found 'smal' .nearest: 'small'"):
        preset_config("smal")
    with pytest.raises(ValueError, match="preset 'small': 'n_head' is no field .the nearest is 'n_heads'"):
        preset_config("small", n_head=3)
    with pytest.raises(ValueError, match="vocab_size must be"):
        get_preset("small", 0)


# ------------------------------------------------------------------------------------------------ memory
def test_memory_is_computed_from_the_shapes():
    plain = estimate_memory_usage("tiny")
    assert plain["parameters"] == 6475008
    assert plain["weights_bytes"] == 4 * 6475008
    assert plain["kv_cache_bytes"] == 2 * 6 * 4 * 32 * 512 * 4
    assert plain["total_bytes"] == plain["weights_bytes"] + plain["kv_cache_bytes"]
    assert plain["total_mb"] * 2**20 == plain["total_bytes"]
    assert estimate_memory_usage("tiny", batch_size=3)["kv_cache_bytes"] == 3 * plain["kv_cache_bytes"]


def test_quantised_memory():
    linear, vectors, table = 6 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 704), 4 * 13 * 256, 4 * 8000 * 256
    outputs = 6 * (2 * 256 + 2 * 128 + 2 * 704 + 256)
    assert estimate_memory_usage("tiny", "int8")["weights_bytes"] == table + vectors + linear + 4 * outputs
    assert estimate_memory_usage("tiny", "dynamic") == estimate_memory_usage("tiny", "int8")
    groups = 6 * (2 * (256 + 2 * 64 + 704) * 2 + 256 * 6)  # 256 inputs are 2 groups of 128, 704 are 6
    assert groups == 6 * (2 * 256 * 2 + 2 * 128 * 2 + 2 * 704 * 2 + 256 * 6)
    assert estimate_memory_usage("tiny", "int4")["weights_bytes"] == table + vectors + linear // 2 + 4 * groups
    whole = estimate_memory_usage("tiny", QuantizationConfig("int8", quantize_embedding=True))["weights_bytes"]
    assert whole == 8000 * 256 + 4 * 8000 + vectors + linear + 4 * outputs
    nothing = QuantizationConfig("int8", quantize_linear=False)
    assert estimate_memory_usage("tiny", nothing) == estimate_memory_usage("tiny")


def test_the_cache_counts_its_dtype_and_window():
    assert estimate_memory_usage(replace(SMALL, kv_cache_dtype="bf16"))["kv_cache_bytes"] == 2 * 2 * 2 * 8 * 64 * 2
    assert estimate_memory_usage(replace(SMALL, kv_cache_dtype="int4"))["kv_cache_bytes"] == 2 * 2 * 2 * (4 + 2) * 64
    assert estimate_memory_usage(replace(SMALL, sliding_window=16))["kv_cache_bytes"] == 2 * 2 * 2 * 8 * 16 * 4


def test_wrong_memory_questions():
    with pytest.raises(ValueError, match="mode must be one of none, dynamic, int8, int4; found 'int2'"):
        estimate_memory_usage("tiny", "int2")
    with pytest.raises(ValueError, match="batch_size must be"):
        estimate_memory_usage("tiny", batch_size=0)
    with pytest.raises(ValueError, match="preset size must be one of"):
        estimate_memory_usage("tinny")


def test_configs_need_no_jax():
    code = "import sys, forge_jax.config, forge_jax.presets; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
