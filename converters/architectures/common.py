"""Pieces that many families share: naming tables and small readers. No family's name stands here."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from converters.rope import read_rope
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Activation, Attention, Block, Branch, Latent, Mlp, ModelSpec, Norm, Rope

# theirs -> ours for a linear layer stored [out, in], as PyTorch does
HEADS_OUT = "(n h) d -> d n h"
HEADS_IN = "d (n h) -> n h d"
TRANSPOSED = "a b -> b a"

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "linear": "identity",
}


# common name -> the name it has in the GPT-2 line of configs
GPT_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# settings of a classification head that is not part of a language model
SUMMARY = ("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj")


def rename(take: Take, names: Mapping[str, str]) -> None:
    """Read settings that a family calls otherwise under their common names, {common: theirs}.

    Raises:
        ValueError: both names are there and disagree.
    """
    for common, theirs in names.items():
        value = take(theirs, None)
        if value is None:
            continue
        if take.has(common) and take.config[common] != value:
            raise ValueError(f"{take.where}: {theirs} = {value!r}, but {common} = {take.config[common]!r}; remove one")
        take.config[common] = value


def activation(take: Take, *keys: str, default: str | None = None) -> Activation:
    """The activation that the first present key names.

    Raises:
        ValueError: none is given and there is no default, or the name is unknown.
    """
    name = take.either(*keys, default=default)
    if name not in ACTIVATIONS:
        raise ValueError(f"{take.where}: {keys[0]} = {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def head_dim(take: Take) -> int:
    """Features of a head: given, or the width shared out among the heads."""
    return int(take("head_dim", None) or take("hidden_size") // take("num_attention_heads"))


def grouped_attention(take: Take, rope: Rope | None = None) -> Attention:
    """Grouped attention over everything before, scores divided by sqrt(head_dim), no biases.

    A family `replace`s what differs. Without num_key_value_heads, every head has its own.

    Raises:
        ValueError: the heads cannot be grouped.
    """
    heads, size = take("num_attention_heads"), head_dim(take)
    kv_heads = take("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(f"{take.where}: {heads} attention heads cannot share {kv_heads} key-value heads")
    return Attention(heads, kv_heads, size, size**-0.5, rope)


def rotary_attention(take: Take) -> Attention:
    """`grouped_attention` with a rotary embedding over whole heads, in halves."""
    return grouped_attention(take, read_rope(take, head_dim(take)))


def gated_mlp(take: Take, act: str = "hidden_act") -> Mlp:
    """A gated feed-forward layer without biases; `act` is the key that names its activation."""
    return Mlp(take("intermediate_size"), activation(take, act))


def decoder(take: Take, layers: Iterable[Block], norm: Norm) -> ModelSpec:
    """Embedding, layers, final norm and head. A family `replace`s what differs."""
    return ModelSpec(
        take("vocab_size"),
        take("hidden_size"),
        tuple(layers),
        take("max_position_embeddings"),
        norm,
        tied=take("tie_word_embeddings", False),
    )


def layer_types(take: Take, count: int, default: Sequence[str], *local: str) -> tuple[str, ...]:
    """The kind of each layer, as the config gives it or else `default`: "full_attention", or one of `local`.

    Without `local`, the other kind is "sliding_attention".

    Raises:
        ValueError: another kind, or a list of the wrong length.
    """
    kinds = tuple(take("layer_types", None) or default)
    if len(kinds) != count:
        raise ValueError(f"{take.where}: layer_types has {len(kinds)} entries for {count} layers")
    known = ("full_attention", *(local or ("sliding_attention",)))
    if odd := sorted(set(kinds) - set(known)):
        raise ValueError(f"{take.where}: layer_types has {odd}; expected {' or '.join(known)}")
    return kinds


def by_layer(
    take: Take, given: Mapping[str, Mapping[str, Any]], count: int, known: Container[str]
) -> list[dict[str, Any]]:
    """What a per_layer_config says of each layer otherwise than the model.

    Its keys are numbers, "5" or, in larger models, "05".

    Raises:
        ValueError: keys that are no layer of the model, or what it says is not `known` to differ by layer.
    """
    layers: list[dict[str, Any]] = [{} for _ in range(count)]
    for number, layer in given.items():
        if not str(number).isdecimal() or int(number) >= count:
            raise ValueError(f"{take.where}: per_layer_config has a layer {number!r}; expected numbers below {count}")
        if odd := sorted(key for key in layer if key not in known):
            raise ValueError(f"{take.where}: per_layer_config has {odd}, which may not differ by layer")
        layers[int(number)] = dict(layer)
    return layers


def windows(take: Take, kinds: Sequence[str], size: int | None) -> tuple[int | None, ...]:
    """The window of each layer: `size` where its kind is sliding, else None.

    Raises:
        ValueError: a layer slides and there is no size.
    """
    if size is None and "sliding_attention" in kinds:
        raise ValueError(
            f"{take.where}: layer {kinds.index('sliding_attention')} is sliding_attention, no sliding_window"
        )
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)


def pre_norm(attention: Attention | Latent, mlp: Mlp, norm: Norm, scale: float = 1.0) -> Block:
    """The common block: x + attention(norm(x)), then + mlp(norm(x))."""
    return Block((Branch("attention", attention, pre=norm, scale=scale), Branch("mlp", mlp, pre=norm, scale=scale)))


def parallel(attention: Attention, mlp: Mlp, norm: Norm) -> Block:
    """Both branches on one norm of the layer's input: x + attention(norm(x)) + mlp(norm(x))."""
    return Block((Branch("attention", attention), Branch("mlp", mlp)), parallel=True, pre=norm)


def alibi_slopes(heads: int, halvings: float = 8.0) -> tuple[float, ...]:
    """One slope a head, a geometric series (arXiv:2108.12409); past a power of two, every other of a finer one.

    The last slope of a power of two is 1 halved `halvings` times.
    """
    whole = 1 << (heads.bit_length() - 1)
    coarse, fine = (float(np.float32(2.0 ** -(halvings / count))) for count in (whole, 2 * whole))
    return (*(coarse**i for i in range(1, whole + 1)), *(fine**i for i in range(1, 2 * (heads - whole), 2)))


def sandwich(attention: Attention, mlp: Mlp, norm: Norm) -> Block:
    """A norm before and after each branch."""
    return Block((Branch("attention", attention, pre=norm, post=norm), Branch("mlp", mlp, pre=norm, post=norm)))


def post_norm(attention: Attention, mlp: Mlp, norm: Norm) -> Block:
    """A norm after each branch only, before its sum with the stream."""
    return Block((Branch("attention", attention, post=norm), Branch("mlp", mlp, post=norm)))


def stored_layers(spec: ModelSpec) -> dict[tuple[str, ...], Block]:
    """The layers as a file has them, those once that are run several times: where each one's branches lie in our tree.

    Blocks of a single branch are none of them: they only wire the others.
    """
    out: dict[tuple[str, ...], Block] = {}
    for i, block in enumerate(spec.layers):
        if len(block.branches) > 1:
            places = (f"shared.{b.shared}" if b.shared else f"layers.{i}.{b.name}" for b in block.branches)
            out.setdefault(tuple(places), block)
    return out


def weight_and_bias(ours: str, theirs: str, layout: str, bias_layout: str = "") -> tuple[Rule, ...]:
    """A linear layer: `ours` with their .weight, `ours`_bias with their .bias."""
    return (Rule(ours, f"{theirs}.weight", layout), Rule(f"{ours}_bias", f"{theirs}.bias", bias_layout))


def norm_rules(ours: str, theirs: str, layout: str = "") -> tuple[Rule, ...]:
    """A norm: scale and bias."""
    return (Rule(f"{ours}.scale", f"{theirs}.weight", layout), Rule(f"{ours}.bias", f"{theirs}.bias", layout))


def end_rules(embed: str = "model.embed_tokens", norm: str = "model.norm", head: str = "lm_head") -> tuple[Rule, ...]:
    """Embedding, final norm and head."""
    return (
        Rule("embed", f"{embed}.weight"),
        *norm_rules("final_norm", norm),
        *weight_and_bias("head", head, "v d -> d v"),
    )


def attention_rules(theirs: str, q: str = "q_proj", k: str = "k_proj", v: str = "v_proj", o: str = "o_proj"):
    """Separate q, k, v, o with biases, and norms over a head."""
    ours = "layers.{l}.attention"
    return (
        *(
            rule
            for mine, name in (("q", q), ("k", k), ("v", v))
            for rule in weight_and_bias(f"{ours}.{mine}", f"{theirs}.{name}", HEADS_OUT, "(n h) -> n h")
        ),
        *weight_and_bias(f"{ours}.o", f"{theirs}.{o}", HEADS_IN),
        *norm_rules(f"{ours}.q_norm", f"{theirs}.q_norm"),
        *norm_rules(f"{ours}.k_norm", f"{theirs}.k_norm"),
    )


def whole_norm_rules(theirs: str) -> tuple[Rule, ...]:
    """Norms of queries and keys over all heads together; they go before `attention_rules`."""
    return tuple(
        Rule(f"layers.{{l}}.attention.{name}.scale", f"{theirs}.{name}.weight", "(n h) -> n h")
        for name in ("q_norm", "k_norm")
    )


def stacked_qkv(theirs: str) -> Rule:
    """q, k, v in one matrix [out, in]: all of q, then all of k, then all of v."""
    return Rule(
        tuple(f"layers.{{l}}.attention.{part}" for part in "qkv"),
        f"{theirs}.weight",
        tuple(f"({heads} h) d -> d {heads} h" for heads in "nkk"),
        cat="c d",
    )


def grouped_qkv_rules(theirs: str) -> tuple[Rule, ...]:
    """q, k, v in one tensor: for each key-value head its queries, its key, its value, whatever the grouping."""
    parts = tuple(f"layers.{{l}}.attention.{part}" for part in "qkv")
    one, one_bias = "k one h d -> d k one h", "k one h -> k one h"
    return (
        Rule(parts, f"{theirs}.weight", ("k g h d -> d (k g) h", one, one), cat="(k c h) d"),
        Rule(
            tuple(f"{part}_bias" for part in parts),
            f"{theirs}.bias",
            ("k g h -> (k g) h", one_bias, one_bias),
            cat="(k c h)",
        ),
    )


def mlp_rules(theirs: str, **names: str) -> tuple[Rule, ...]:
    """Feed-forward weights [out, in] with biases; keywords rename: up="fc1"."""
    named = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"} | names
    return tuple(
        rule
        for mine, name in named.items()
        for rule in weight_and_bias(f"layers.{{l}}.mlp.{mine}", f"{theirs}.{name}", TRANSPOSED)
    )


def fused_gate_up(theirs: str, ours: str = "layers.{l}.mlp") -> Rule:
    """Gate and up in one tensor, one after the other."""
    return Rule((f"{ours}.gate", f"{ours}.up"), f"{theirs}.weight", "(q f) d -> q d f")


def pre_norm_rules(layer: str, first: str = "input_layernorm", second: str = "post_attention_layernorm"):
    """The norms of `pre_norm` blocks."""
    return (
        *norm_rules("layers.{l}.attention.pre", f"{layer}.{first}"),
        *norm_rules("layers.{l}.mlp.pre", f"{layer}.{second}"),
    )


LAYER = "model.layers.{l}"

# embed, separate projections, gated mlp, two norms before: the most common names
COMMON = (*end_rules(), *attention_rules(f"{LAYER}.self_attn"), *mlp_rules(f"{LAYER}.mlp"), *pre_norm_rules(LAYER))

# the same with a norm before and after each branch
SANDWICH = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *norm_rules("layers.{l}.attention.pre", f"{LAYER}.input_layernorm"),
    *norm_rules("layers.{l}.attention.post", f"{LAYER}.post_attention_layernorm"),
    *norm_rules("layers.{l}.mlp.pre", f"{LAYER}.pre_feedforward_layernorm"),
    *norm_rules("layers.{l}.mlp.post", f"{LAYER}.post_feedforward_layernorm"),
)

# the same with a norm after each branch only
POST_NORM = (
    *end_rules(),
    *attention_rules(f"{LAYER}.self_attn"),
    *mlp_rules(f"{LAYER}.mlp"),
    *norm_rules("layers.{l}.attention.post", f"{LAYER}.post_attention_layernorm"),
    *norm_rules("layers.{l}.mlp.post", f"{LAYER}.post_feedforward_layernorm"),
)
