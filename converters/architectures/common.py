"""Pieces that many families share: naming tables and small readers. No family's name stands here."""

from collections.abc import Sequence

from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Activation, Attention, Block, Branch, Mlp, Norm

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
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "identity",
}


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


def layer_types(take: Take, count: int, default: Sequence[str]) -> tuple[str, ...]:
    """The kind of each layer, "full_attention" or "sliding_attention", where the config gives it or else `default`.

    Raises:
        ValueError: another kind, or a list of the wrong length.
    """
    kinds = tuple(take("layer_types", None) or default)
    if len(kinds) != count:
        raise ValueError(f"{take.where}: layer_types has {len(kinds)} entries for {count} layers")
    if odd := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"{take.where}: layer_types has {odd}; expected full_attention or sliding_attention")
    return kinds


def pre_norm(attention: Attention, mlp: Mlp, norm: Norm, scale: float = 1.0) -> Block:
    """The common block: x + attention(norm(x)), then + mlp(norm(x))."""
    return Block((Branch("attention", attention, pre=norm, scale=scale), Branch("mlp", mlp, pre=norm, scale=scale)))


def sandwich(attention: Attention, mlp: Mlp, norm: Norm) -> Block:
    """A norm before and after each branch."""
    return Block((Branch("attention", attention, pre=norm, post=norm), Branch("mlp", mlp, pre=norm, post=norm)))


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


def mlp_rules(theirs: str, **names: str) -> tuple[Rule, ...]:
    """Feed-forward weights [out, in] with biases; keywords rename: up="fc1"."""
    named = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"} | names
    return tuple(
        rule
        for mine, name in named.items()
        for rule in weight_and_bias(f"layers.{{l}}.mlp.{mine}", f"{theirs}.{name}", TRANSPOSED)
    )


def pre_norm_rules(layer: str, first: str = "input_layernorm", second: str = "post_attention_layernorm"):
    """The norms of `pre_norm` blocks."""
    return (
        *norm_rules("layers.{l}.attention.pre", f"{layer}.{first}"),
        *norm_rules("layers.{l}.mlp.pre", f"{layer}.{second}"),
    )


LAYER = "model.layers.{l}"

# embed, separate projections, gated mlp, two norms before: the most common names
COMMON = (*end_rules(), *attention_rules(f"{LAYER}.self_attn"), *mlp_rules(f"{LAYER}.mlp"), *pre_norm_rules(LAYER))
