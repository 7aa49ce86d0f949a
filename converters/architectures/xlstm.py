"""xLSTM: a matrix memory with exponential gates, then a gated feed-forward layer; logits have a soft cap."""

from collections.abc import Mapping
from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    TRANSPOSED,
    end_rules,
    norm_rules,
    rename,
    weight_and_bias,
)
from converters.architectures.family import Family
from converters.architectures.ssm import ENDLESS
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, Mlp, Mlstm, ModelSpec, Norm

DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_heads": 8,
    "use_bias": False,
    "norm_eps": 1e-6,
    "qk_dim_factor": 0.5,
    "v_dim_factor": 1.0,
    "eps": 1e-6,
    "ffn_proj_factor": 2.667,
    "ffn_round_up_to_multiple_of": 64,
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
    "weight_mode": "single",
}
# which program computes it, how much of it together and in which precision; how it is initialised
IDLE = """
chunkwise_kernel sequence_kernel step_kernel mode chunk_size return_last_states autocast_kernel_dtype
inference_state_dtype norm_reduction_force_float32 max_inference_chunksize add_embedding_dropout
add_forward_backend_padding igate_bias_init_range
""".split()


def config(take: Take) -> ModelSpec:
    """Pre-norm; weights are stored apart ("single") or some of them together ("fused")."""
    rename(take, {"hidden_size": "embedding_dim"})
    if (blocks := take("num_blocks", None)) is not None:
        take.config["num_hidden_layers"] = blocks  # as in the reference, which saves its default for the other name
    take.assume(DEFAULTS)
    take.ignore(*IDLE, "weight_mode")  # the names of the tensors say it
    take.require("add_out_norm", True)
    take.require("tie_word_embeddings", False)
    dim, heads, eps, bias = take("hidden_size"), take("num_heads"), take("norm_eps"), take("use_bias")
    keys, values = (int(dim * take(key)) for key in ("qk_dim_factor", "v_dim_factor"))
    if keys % heads or values % heads:
        raise ValueError(f"{take.where}: {heads} heads cannot share {keys} features of keys and {values} of values")
    take.require("head_dim", values // heads)
    inner = Norm(eps, "layer", bias=bias)
    memory = Mlstm(heads, keys // heads, values // heads, inner, take("eps"), take("gate_soft_cap"), bias)
    step = take("ffn_round_up_to_multiple_of")
    mlp = Mlp(int((dim * take("ffn_proj_factor") + step - 1) // step * step), bias=bias)
    norm = Norm(eps, bias=bias)
    block = Block((Branch("memory", memory, pre=norm), Branch("mlp", mlp, pre=norm)))
    layers = (block,) * take("num_hidden_layers")
    spec = ModelSpec(take("vocab_size"), dim, layers, ENDLESS, replace(norm, bias=False))
    return replace(spec, logit_softcap=take("output_logit_soft_cap"))


OURS, LAYER = "layers.{l}.memory", "backbone.blocks.{l}"
THEIRS = f"{LAYER}.mlstm_layer"
# our maps: the name of each in a file, and its axes
HEADS = {"q": ("q", "n h"), "k": ("k", "n h"), "v": ("v", "n v"), "gate": ("ogate_preact", "n v")}
GATES = {"input": ("igate_preact", "n"), "forget": ("fgate_preact", "n")}


def maps(ours: str, theirs: str, parts: Mapping[str, tuple[str, str]], fused: str) -> tuple[Rule, ...]:
    """Linear maps that are stored apart under `theirs`, or one after the other in its tensor `fused`."""
    names = tuple(f"{ours}.{part}" for part in parts)
    axes = tuple(axes for _, axes in parts.values())
    return (
        Rule(names, f"{theirs}.{fused}.weight", tuple(f"({a}) d -> d {a}" for a in axes), cat="c d"),
        Rule(
            tuple(f"{name}_bias" for name in names), f"{theirs}.{fused}.bias", tuple(f"({a}) -> {a}" for a in axes), "c"
        ),
        *(
            rule
            for name, (each, a) in zip(names, parts.values(), strict=True)
            for rule in weight_and_bias(name, f"{theirs}.{each}", f"({a}) d -> d {a}", f"({a}) -> {a}")
        ),
    )


FAMILY = Family(
    ("xlstm",),
    config,
    (
        *end_rules("backbone.embeddings", "backbone.out_norm"),
        *maps(OURS, THEIRS, HEADS, "qkv_opreact"),
        *maps(OURS, THEIRS, GATES, "ifgate_preact"),
        *maps(
            "layers.{l}.mlp", f"{LAYER}.ffn", {"gate": ("proj_up_gate", "f"), "up": ("proj_up", "f")}, "proj_up_gate_z"
        ),
        *weight_and_bias("layers.{l}.mlp.down", f"{LAYER}.ffn.proj_down", TRANSPOSED),
        *norm_rules(f"{OURS}.norm", f"{THEIRS}.multihead_norm", "(n h) -> n h"),
        *weight_and_bias(f"{OURS}.o", f"{THEIRS}.out_proj", HEADS_IN),
        *norm_rules(f"{OURS}.pre", f"{LAYER}.norm_mlstm"),
        *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.norm_ffn"),
    ),
    prefix="backbone.",
)
