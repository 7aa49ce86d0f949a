"""Inkling 2 with middle layers that are run several times, each time told what the time before has found."""

from collections.abc import Iterator
from dataclasses import replace

from converters.architectures import inkling2
from converters.architectures.common import TRANSPOSED, stored_layers
from converters.architectures.family import Family
from converters.architectures.inkling import STORED_ENDS
from converters.rules import Rule, placed
from converters.take import Take
from forge_jax.spec import Again, Block, Branch, Message, ModelSpec, Norm

DEFAULTS = inkling2.DEFAULTS | {
    "hidden_size": 2304,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "swa_num_attention_heads": 24,
    "log_scaling_n_floor": 8192,
    "moe_intermediate_size": 1152,
    "n_routed_experts": 128,
    "loop_layer_index_start": 6,
    "loop_layer_index_end": 18,
    "loop_num_passes": 3,
    "loop_gate_rank": 64,
}
LOOP = {
    "loop_layer_index_start": "core_start",
    "loop_layer_index_end": "core_end",
    "loop_num_passes": "num_passes",
    "loop_gate_rank": "gate_rank",
}
"""Settings and what they are called in the dict that may hold them."""


def spread(take: Take) -> None:
    """Read the settings of the loop under their common names.

    Raises:
        ValueError: a setting is given twice and differs, or one is unknown.
    """
    nested = take.sub("loop_config")
    for common, theirs in LOOP.items():
        value = nested(theirs, None)
        if value is None:
            continue
        if take.config.setdefault(common, value) != value:
            raise ValueError(f"{nested.where}: {theirs} = {value}, but {common} = {take.config[common]}; remove one")
    nested.done()


def loop(take: Take) -> tuple[int, int, int]:
    """The first layer that is run again, the one after the last, and how often they are run.

    Raises:
        ValueError: they do not begin and end with a block of layers, are none, or are run once: what the file holds
            for messages would then have no use.
    """
    size, count = take("n_layers_per_attn_res_block"), take("num_hidden_layers")
    first, last, passes = (take(f"loop_{key}") for key in ("layer_index_start", "layer_index_end", "num_passes"))
    if not 0 < first < last <= count or first % size or last % size or passes < 2:
        raise ValueError(
            f"{take.where}: layers {first} to {last} of {count} are run {passes} times; expected 0 < "
            f"loop_layer_index_start < loop_layer_index_end <= num_hidden_layers, both multiples of "
            f"n_layers_per_attn_res_block = {size}, and loop_num_passes of at least 2"
        )
    return first, last, passes


def config(take: Take) -> ModelSpec:
    """The loop written out: each pass has its own layers and caches, with the same weights.

    A pass begins where the first one did. From the second on, queries, keys, values and experts get messages: the
    sums of the blocks of the pass before.
    """
    spread(take)
    spec = inkling2.config(take, DEFAULTS)
    first, last, passes = loop(take)
    single = Message(take("loop_gate_rank"), Norm(take("rms_norm_eps"), scale=False))
    size = take("n_layers_per_attn_res_block")
    messages = {"attention": replace(single, streams=("q", "k", "v")), "moe": single}

    def told(block: Block) -> Block:
        return block.with_branches(lambda branch: replace(branch, message=messages[branch.name]))

    def shared(block: Block, i: int) -> Block:
        return block.with_branches(lambda branch: replace(branch, shared=f"{branch.name}_{i}"))

    *layers, end = spec.layers  # what comes after the last layer stands in it, which may be run again
    layers, final = [*layers, replace(end, branches=end.branches[:2])], replace(end, branches=end.branches[2:])
    core = [shared(layers[i], i) for i in range(first, last)]
    restart = Block((Branch("again", Again(first // size, (last - first) // size), keep=0.0),))
    more = [restart, *map(told, core)] * (passes - 1)
    return replace(spec, layers=(*layers[:first], *core, *more, *layers[last:], final))


def message_rules(layers: list[tuple[str, ...]]) -> Iterator[Rule]:
    """The gates of each layer that gets messages, and the queries of all: one tensor holds two queries a layer."""
    gates = {"attn": (0, "q"), "k": (0, "k"), "v": (0, "v"), "mlp": (1, "x")}
    queries: dict[str, list[str]] = {name: [] for name in gates}
    for i, branches in enumerate(layers):
        if not branches[0].startswith("shared."):
            continue
        for name, (branch, stream) in gates.items():
            ours, theirs = f"{branches[branch]}.message.{stream}", f"model.llm.layers.{i}.controllers.{name}"
            yield Rule(f"{ours}.down", f"{theirs}.down_weight", "r (s d) -> s d r")
            yield Rule(f"{ours}.forget", f"{theirs}.forget_weight", TRANSPOSED)
            yield Rule(f"{ours}.gain", f"{theirs}.gain_weight", TRANSPOSED)
            queries[name].append(f"{ours}.query")
    for theirs, names in {"queries": ("attn", "mlp"), "kv_queries": ("k", "v")}.items():
        pairs = zip(*(queries[name] for name in names), strict=True)
        paths = tuple(path for pair in pairs for path in pair)
        yield Rule(paths, f"model.llm.middle_cycle_cross_pass_{theirs}", "l d -> l d")


def rules(spec: ModelSpec) -> Iterator[Rule]:
    """The rules of Inkling 2 for each layer that a file has, wherever it is run, and those of messages."""
    layers = stored_layers(spec)
    table = inkling2.FAMILY.table(replace(spec, layers=tuple(layers.values())))
    for i, places in enumerate(layers):
        yield from placed(table, i, dict(zip(("attention", "moe"), places, strict=True)))
    yield from message_rules(list(layers))


FAMILY = Family(("inkling2_loop_text",), config, (*STORED_ENDS, inkling2.FINAL), first=lambda spec: tuple(rules(spec)))
