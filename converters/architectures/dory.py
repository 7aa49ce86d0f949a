"""Dory: a normalised transformer (arXiv:2410.01131) whose middle layers are run several times.

Every state has length 1, and a branch moves it part of the way to what it gives. Files come in two layouts: published
ones count attention and feed-forward layers apart, those that the reference saves count pairs of them.
"""

from collections.abc import Iterator
from dataclasses import replace

from converters.architectures.common import (
    HEADS_IN,
    HEADS_OUT,
    TRANSPOSED,
    activation,
    decoder,
    end_rules,
    grouped_attention,
    head_dim,
    layer_types,
    stored_layers,
    weight_and_bias,
    windows,
)
from converters.architectures.family import Family
from converters.rope import read_ropes
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Attention, Block, Branch, Exchange, Gate, Mlp, ModelSpec, Norm, Toward

DEFAULTS = {
    "vocab_size": 131072,
    "hidden_size": 2560,
    "intermediate_size": 7168,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.0177,
    "sliding_window": 1024,
    "ngpt_alpha_init": 0.05,
    "n_input_layers": 8,
    "n_output_layers": 8,
    "n_recurrent_loops": 2,
}
COUNTS = ("num_hidden_layers", "n_input_layers", "n_recurrent_layers", "n_output_layers")
THETAS = {"full_attention": 10_000_000.0, "sliding_attention": 10_000.0}
UNIT = Norm(1e-6, "unit", scale=False)


def pair_up(take: Take) -> None:
    """Count pairs of an attention and a feed-forward layer, as the reference does.

    Raises:
        ValueError: the layers are not such pairs.
    """
    kinds = take("layer_types", None) or ()
    if "mlp" not in kinds:
        return
    if len(kinds) % 2 or set(kinds[1::2]) != {"mlp"} or "mlp" in kinds[::2]:
        raise ValueError(f"{take.where}: layer_types {kinds}; expected attention and mlp in turns")
    counts = {key: take(key, None) for key in COUNTS}
    if odd := {key: count for key, count in counts.items() if count is not None and count % 2}:
        raise ValueError(f"{take.where}: {odd}; expected even numbers, as layer_types lists attention and mlp apart")
    take.config.update({key: count // 2 for key, count in counts.items() if count is not None}, layer_types=kinds[::2])


def attentions(take: Take, count: int) -> list[Attention]:
    """The attention of each layer: unit queries and keys, the former rescaled after the rope."""
    every_fourth = ["sliding_attention" if (i + 1) % 4 else "full_attention" for i in range(count)]
    kinds = layer_types(take, count, every_fourth)
    sizes, ropes = windows(take, kinds, take("sliding_window", None)), read_ropes(take, head_dim(take), THETAS)
    bias, start, base = take("attention_bias", False), take("initializer_range"), grouped_attention(take)
    attention = replace(
        base,
        qk_norm=UNIT,
        q_gain=base.head_dim**0.5 / start,
        gate=Gate(gain=take("hidden_size") ** 0.25 / start),
        out_norm=UNIT,
        qkv_bias=bias,
        o_bias=bias,
    )
    return [replace(attention, rope=ropes[kind], window=size) for kind, size in zip(kinds, sizes, strict=True)]


def passes(take: Take, count: int) -> Iterator[int | None]:
    """The layers in the order in which they are run; None begins a pass through the middle ones.

    Raises:
        ValueError: the sections do not add up to the layers, or there is no pass.
    """
    first, last, loops = take("n_input_layers"), take("n_output_layers"), take("n_recurrent_loops")
    middle = take("n_recurrent_layers", None)
    middle = count - first - last if middle is None else middle
    if first + middle + last != count or min(first, middle, last) < 0 or loops < 1:
        raise ValueError(
            f"{take.where}: {first} + {middle} + {last} layers of {count}, the middle ones run {loops} times; "
            "expected parts that add up to the whole, and at least one run"
        )
    # with it, what a token sees depends on where a prompt was cut; a full forward is the same in both modes
    take.require("recurrent_kv_cache_mode", "per_loop")
    yield from range(first)
    for _ in range(loops):
        yield None
        yield from range(first, first + middle)
    yield from range(first + middle, count)


def config(take: Take) -> ModelSpec:
    """The recurrence written out: each pass has its own layers and caches, with the same weights."""
    take.assume(DEFAULTS)
    pair_up(take)
    start, count = take("initializer_range"), take("num_hidden_layers")
    rate = Toward(take("ngpt_alpha_init") / start)
    mlp = Mlp(
        take("intermediate_size"),
        activation(take, "hidden_act"),
        bias=take("mlp_bias", False),
        norm=UNIT,
        gain=take("hidden_size") ** 0.5,
    )
    plan = list(passes(take, count))

    def pair(i: int, op: Attention) -> Block:
        again = plan.count(i) > 1
        branches = (
            Branch(name, part, pre=UNIT, post=UNIT, keep=rate, shared=f"{name}_{i}" if again else None)
            for name, part in (("attention", op), ("mlp", mlp))
        )
        return Block(tuple(branches), residual="normed")

    def layers() -> Iterator[Block]:
        pairs = [pair(i, op) for i, op in enumerate(attentions(take, count))]
        leave: str | None = "entry"  # the first pass leaves what every pass begins with
        for i in plan:
            if i is not None:
                yield pairs[i]
                continue
            yield Block((Branch("enter", Exchange("entry", leave), pre=UNIT),), residual="normed")
            leave = None

    return replace(decoder(take, layers(), UNIT), token_gain=1 / start)


def pair_rules(first: str, second: str, attention: str, mlp: str, *rates: str) -> tuple[Rule, ...]:
    """The rules of one pair of layers: our paths of both, what their names of both begin with, their rates."""
    linears = {"gate": "g_proj", "q": "q_proj", "k": "k_proj", "v": "v_proj"}
    gains = {"q_gain": "sqk", "gate_gain": "s_gate"}
    return (
        *(
            rule
            for part, name in linears.items()
            for rule in weight_and_bias(f"{first}.{part}", f"{attention}.{name}", HEADS_OUT, "(n h) -> n h")
        ),
        *weight_and_bias(f"{first}.o", f"{attention}.o_proj", HEADS_IN),
        *(Rule(f"{first}.{part}", f"{attention}.{name}", "(n h) -> n h") for part, name in gains.items()),
        *(
            rule
            for part in ("gate", "up", "down")
            for rule in weight_and_bias(f"{second}.{part}", f"{mlp}.{part}_proj", TRANSPOSED)
        ),
        *(Rule(f"{second}.{part}_gain", f"{mlp}.suv_{part}") for part in ("gate", "up")),
        *(Rule(f"{ours}.keep", rate) for ours, rate in zip((first, second), rates, strict=True)),
    )


def rules(spec: ModelSpec) -> Iterator[Rule]:
    """The rules of all layers, in the layout of the reference and then in that of published files."""
    for i, (first, second) in enumerate(stored_layers(spec)):
        saved, apart = f"backbone.layers.{i}", [f"backbone.layers.{2 * i + j}" for j in range(2)]
        yield from pair_rules(
            first, second, f"{saved}.self_attn", f"{saved}.mlp", f"{saved}.lambda_1", f"{saved}.lambda_2"
        )
        yield from pair_rules(
            first, second, *(f"{layer}.mixer" for layer in apart), f"{apart[0]}.attn_alpha", f"{apart[1]}.mlp_alpha"
        )


ENDS = (*end_rules("backbone.embeddings"), Rule("token_gain", "lm_head.logit_scale"))

FAMILY = Family(("dory",), config, ENDS, "backbone.", first=lambda spec: tuple(rules(spec)))
