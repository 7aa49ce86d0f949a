"""Zamba: selective state spaces, some of them fed by one block of attention whose weights occur once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from converters.architectures.common import (
    LAYER,
    TRANSPOSED,
    activation,
    attention_rules,
    decoder,
    end_rules,
    gated_mlp,
    mlp_rules,
    norm_rules,
)
from converters.architectures.family import Family
from converters.architectures.ssm import QUIET, mamba_rules, rank
from converters.rules import Rule, filled, placed
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Chain, Joined, Mamba, Mamba2, ModelSpec, Norm, Project, Sum

DEFAULTS = {
    "vocab_size": 32000,
    "tie_word_embeddings": True,
    "hidden_size": 3712,
    "intermediate_size": 14848,
    "num_hidden_layers": 76,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_mamba_heads": 2,
    "hidden_act": "gelu",
    "hidden_mamba_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "attn_layer_period": 6,
    "attn_layer_offset": 4,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": "auto",
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


def listed(take: Take, default: Sequence[str]) -> list[bool]:
    """Whether each layer is fed by a shared block, as the config says or else `default`.

    Raises:
        ValueError: a kind that is neither, or a list of the wrong length.
    """
    kinds, count = take.either("layers_block_type", "layer_types", default=default), take("num_hidden_layers")
    if len(kinds) != count or set(kinds) - {"mamba", "linear_attention", "hybrid"}:
        raise ValueError(f"{take.where}: layers_block_type {kinds}; expected linear_attention or hybrid {count} times")
    return [kind == "hybrid" for kind in kinds]


def attention(take: Take) -> Attention:
    """Attention on twice the width; scores are divided by the root of half a head's features."""
    heads, width = take("num_attention_heads"), 2 * take("hidden_size")
    take.require("attention_hidden_size", width)
    size = take.either("attention_head_dim", "head_dim", default=width // heads)
    kv_heads = take("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(f"{take.where}: {heads} attention heads cannot share {kv_heads} key-value heads")
    return Attention(heads, kv_heads, size, (size / 2) ** -0.5)


def fed(shared: Sequence[Branch], mamba: Mamba | Mamba2, norm: Norm) -> Block:
    """x + mamba(norm(x + project(shared(x, embedding))))."""
    block = Branch("block", Chain((*shared, Branch("project", Project()))))
    return Block((Branch("fed", Chain((Branch("sum", Sum((block,), keep=1.0)), Branch("mamba", mamba, pre=norm)))),))


def config(take: Take) -> ModelSpec:
    """Which layers are fed is listed, or follows from a period that starts with the fourth."""
    take.assume(DEFAULTS)
    take.ignore(*QUIET)
    norm, period, offset = Norm(take("rms_norm_eps")), take("attn_layer_period"), take("attn_layer_offset")
    mamba = Mamba(
        take("mamba_expand") * take("hidden_size"),
        take("mamba_d_state"),
        rank(take, "mamba_dt_rank"),
        take("mamba_d_conv"),
        take("n_mamba_heads"),
        activation(take, "hidden_mamba_act"),
        take("mamba_proj_bias"),
        take("mamba_conv_bias"),
    )
    if mamba.dim % mamba.heads:
        raise ValueError(f"{take.where}: {mamba.heads} heads of mamba cannot share {mamba.dim} channels")
    tied = take("tie_word_embeddings")  # the reference ties the blocks only along with the head
    shared = (
        Branch("attention", Joined(attention(take), "embed", norm), shared="attention" if tied else None),
        Branch("mlp", gated_mlp(take), pre=norm, shared="mlp" if tied else None),
    )
    rest = ("hybrid" if i % period == offset else "mamba" for i in range(take("num_hidden_layers") - 3))
    layers = {True: fed(shared, mamba, norm), False: Block((Branch("mamba", mamba, pre=norm),))}
    return decoder(take, (layers[yes] for yes in listed(take, ["mamba", "mamba", "hybrid", *rest])), norm)


def shared_rules(spec: ModelSpec, rules: Sequence[Rule]) -> Iterator[Rule]:
    """The rules of what layers share, which is stored in the first that has it."""
    first: dict[str, tuple[int, str]] = {}
    for i, block in enumerate(spec.layers):
        for branch in block.every():
            if branch.shared is not None:
                first.setdefault(branch.shared, (i, branch.name))
    for shared, (i, name) in first.items():
        yield from placed(rules, i, {name: f"shared.{shared}"})


def fed_rules(spec: ModelSpec, rules: Sequence[Rule]) -> Iterator[Rule]:
    """The rules of the state spaces in layers that are fed."""
    for i in (i for i, block in enumerate(spec.layers) if any(branch.name == "project" for branch in block.every())):
        for rule in rules:
            ours = tuple(filled(path, {"l": str(i)}) for path in rule.paths)
            yield replace(rule, ours=ours, theirs=filled(rule.theirs, {"l": str(i)}))


def block_rules(theirs: str) -> tuple[Rule, ...]:
    """The shared block but for its feed-forward layer."""
    return (
        *attention_rules(f"{theirs}.self_attn"),
        *norm_rules("layers.{l}.attention.norm", f"{theirs}.input_layernorm"),
        *norm_rules("layers.{l}.mlp.pre", f"{theirs}.pre_ff_layernorm"),
    )


def state_rules(theirs: str) -> tuple[Rule, ...]:
    """A state space whose heads have their own projections; x and z alternate in the projection in."""
    ours = "layers.{l}.mamba"
    both, low = (f"{ours}.x", f"{ours}.z"), tuple(f"{ours}.{part}" for part in ("dt_in", "b", "c"))
    split = ("n r h -> n h r", "n s h -> n h s", "n s h -> n h s")
    return (
        Rule(both, f"{theirs}.mamba.in_proj.weight", "(n h q) d -> q d n h"),
        Rule(tuple(f"{path}_bias" for path in both), f"{theirs}.mamba.in_proj.bias", "(n h q) -> q n h"),
        Rule(low, f"{theirs}.mamba.x_proj_weight", split, cat="n c h"),
        Rule(f"{ours}.dt", f"{theirs}.mamba.dt_proj_weight", "n h r -> n r h"),
        Rule(f"{ours}.dt_bias", f"{theirs}.mamba.dt_proj_bias"),
        Rule(f"{ours}.a_log", f"{theirs}.mamba.A_log"),
        Rule(f"{ours}.skip", f"{theirs}.mamba.D"),
        *mamba_rules(f"{theirs}.mamba"),
        *norm_rules(f"{ours}.pre", f"{theirs}.input_layernorm"),
    )


THEIRS = f"{LAYER}.shared_transf"
SHARED = (*block_rules(THEIRS), *mlp_rules(f"{THEIRS}.feed_forward"))

ENDS = (
    *end_rules(norm="model.final_layernorm"),
    Rule("layers.{l}.project.weight", f"{LAYER}.linear.weight", TRANSPOSED),
)

FAMILY = Family(
    ("zamba",),
    config,
    (*ENDS, *SHARED, *state_rules(LAYER)),
    first=lambda spec: (*shared_rules(spec, SHARED), *fed_rules(spec, state_rules(f"{LAYER}.mamba_decoder"))),
)
