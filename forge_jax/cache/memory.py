"""What each kind of op remembers between calls, as data: one table for caches, their sharding and their size.

An op that looks back on tokens has slabs with slots; an op that sums up the past has a state that every call replaces.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from forge_jax.spec import (
    Attention,
    Branch,
    Chain,
    ChannelMix,
    Compressed,
    ConvAttention,
    DeltaNet,
    Differential,
    HeadMixture,
    Indexer,
    Joined,
    Latent,
    LinearAttention,
    Mamba,
    Mamba2,
    Mlstm,
    ModelSpec,
    NgramInput,
    Op,
    RgLru,
    Selective,
    ShortConv,
    Sum,
    Wkv,
    attention_of,
)


@dataclass(frozen=True)
class Slab:
    """One array of an op's memory.

    `slots`: [B, *shape[:-1], S, shape[-1]] in the dtype of the cache, a token in each slot, or in order what stands for
    `every` tokens. Otherwise a running state [B, *shape] in float32. `axes` are the logical axes of `shape`, as in
    `Param`. `exact`: tokens are chosen by it, so that it is kept in floats (see `forge_jax.cache.policy`).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    slots: bool = True
    every: int | None = None
    exact: bool = False


def attention_memory(op: Attention) -> dict[str, Slab]:
    """Keys and values, unless they are another layer's; the key that blocks are picked by is whole on every device."""
    if op.reads is not None:
        return {}
    axes = ("kv_heads", "head")
    shapes = {"k": (op.kv_heads, op.head_dim), "v": (op.kv_heads, op.value_size)}
    out = {name: Slab(shape, axes) for name, shape in shapes.items()}
    if op.blocks is not None:
        out["index"] = Slab((1, op.blocks.dim), (None, None), exact=True)
    if op.smooth is not None:
        past = op.smooth.taps - 1
        out |= {f"{name}_tail": Slab((*shape, past), (*axes, None), slots=False) for name, shape in shapes.items()}
    return out


def mamba_memory(op: Mamba) -> dict[str, Slab]:
    """The last inputs of the convolution, and the state."""
    channels, axes = (op.heads, op.dim // op.heads), (None, "ff", None)
    return {
        "tail": Slab((*channels, op.conv - 1), axes, slots=False),
        "state": Slab((*channels, op.state), axes, slots=False),
    }


def mamba2_memory(op: Mamba2) -> dict[str, Slab]:
    """The last inputs of each convolution, and the state."""
    heads, groups, axes = (op.heads, op.head_dim), (op.groups, op.state), ("heads", "head", None)
    return {
        "x_tail": Slab((*heads, op.conv - 1), axes, slots=False),
        "b_tail": Slab((*groups, op.conv - 1), (None, None, None), slots=False),
        "c_tail": Slab((*groups, op.conv - 1), (None, None, None), slots=False),
        "state": Slab((*heads, op.state), axes, slots=False),
    }


def latent_memory(op: Latent) -> dict[str, Slab]:
    """One entry for all heads: the latent and the shared key; and an indexer's key. Every device has all of them."""
    sizes = {"entry": op.rank + op.rope_dim} | ({"index": op.indexer.dim} if isinstance(op.indexer, Indexer) else {})
    return {name: Slab((1, size), (None, None), exact=name == "index") for name, size in sizes.items()}


def differential_memory(op: Differential) -> dict[str, Slab]:
    """Both keys of each pair, and the value that they share."""
    pairs, dim = op.attention.kv_heads, op.attention.head_dim
    return {"k": Slab((2 * pairs, dim), ("kv_heads", "head")), "v": Slab((pairs, 2 * dim), ("kv_heads", "head"))}


def compressed_memory(op: Compressed) -> dict[str, Slab]:
    """The last tokens; the entries, and the latest tokens that further ones are made of. Every device has all of it."""
    out = {"kv": Slab((1, op.head_dim), (None, None))}
    if op.compression is None:
        return out
    every, twice, indexer = op.compression.every, 2 if op.compression.overlap else 1, op.compression.indexer
    for name, size in {"entry": op.head_dim, **({"index": indexer.dim} if indexer else {})}.items():
        out[name] = Slab((1, size), (None, None), every=every, exact=name == "index")
        # a key and a weight for each time that a token takes part
        out[f"{name}_ring"] = Slab((every * twice, 2 * twice * size), (None, None), slots=False)
    return out


def wkv_memory(op: Wkv, dim: int) -> dict[str, Slab]:
    """The token before, and the average: numerator, denominator, and the logarithm that both are divided by."""
    channels = Slab((op.dim,), ("ff",), slots=False)
    return shift_memory(dim) | {"num": channels, "den": channels, "top": channels}


def shift_memory(dim: int) -> dict[str, Slab]:
    """The token before, as it entered."""
    return {"before": Slab((dim, 1), ("embed", None), slots=False)}


def delta_memory(op: DeltaNet) -> dict[str, Slab]:
    """The last inputs of each convolution, and what maps keys to values."""
    keys, values, state = (op.key_heads, op.key_dim), (op.value_heads, op.value_dim), (op.value_heads, op.key_dim)
    return {
        "q_tail": Slab((*keys, op.taps - 1), ("kv_heads", "head", None), slots=False),
        "k_tail": Slab((*keys, op.taps - 1), ("kv_heads", "head", None), slots=False),
        "v_tail": Slab((*values, op.taps - 1), ("heads", "head", None), slots=False),
        "state": Slab((*state, op.value_dim), ("heads", "head", None), slots=False),
    }


def linear_memory(op: LinearAttention) -> dict[str, Slab]:
    """What maps keys to values: values, then keys."""
    return {"state": Slab((op.heads, op.head_dim, op.head_dim), ("heads", "head", None), slots=False)}


def rg_lru_memory(op: RgLru) -> dict[str, Slab]:
    """The last inputs of the convolution, and the state."""
    channels, axes = (op.heads, op.head_dim), ("heads", "head")
    return {
        "tail": Slab((*channels, op.conv - 1), (*axes, None), slots=False),
        "state": Slab(channels, axes, slots=False),
    }


def mlstm_memory(op: Mlstm) -> dict[str, Slab]:
    """What maps keys to values, the keys alone, and the logarithm that both are divided by."""
    shapes = {"values": (op.key_dim, op.value_dim), "keys": (op.key_dim,), "top": ()}
    axes = ("heads", "head", None)
    return {name: Slab((op.heads, *s), axes[: 1 + len(s)], slots=False) for name, s in shapes.items()}


def ngram_memory(op: NgramInput, dim: int) -> dict[str, Slab]:
    """The tokens before, for each place of an n-gram, and the last inputs of the convolution."""
    tokens = len(op.multipliers)
    return {
        "before": Slab((tokens, tokens - 1), (None, None), slots=False),
        "tail": Slab((op.streams, dim, (op.taps - 1) * tokens), (None, "embed", None), slots=False),
    }


def selective_memory(op: Selective) -> dict[str, Slab]:
    """Keys, values and merits, whole on every device."""
    heads, dim = op.attention.kv_heads, op.attention.head_dim
    slab = Slab((heads, dim), (None, None))
    return {"k": slab, "v": slab, "merit": Slab((heads, 1), (None, None), exact=True)}


def conv_attention_memory(op: ConvAttention) -> dict[str, Slab]:
    """Keys and values, the last inputs of the convolutions, and the last token's part in the next one's values."""
    base, past = op.attention, sum(op.taps) - 2
    return attention_memory(base) | {
        "q_tail": Slab((base.heads, base.head_dim, past), ("heads", "head", None), slots=False),
        "k_tail": Slab((base.kv_heads, base.head_dim, past), ("kv_heads", "head", None), slots=False),
        "v_tail": Slab((op.half, 1), (None, None), slots=False),
    }


OPS: dict[type, Callable[[Any, int], dict[str, Slab]]] = {
    Attention: lambda op, dim: attention_memory(op),
    Joined: lambda op, dim: attention_memory(op.attention),
    Selective: lambda op, dim: selective_memory(op),
    HeadMixture: lambda op, dim: attention_memory(op.attention),
    ConvAttention: lambda op, dim: conv_attention_memory(op),
    Differential: lambda op, dim: differential_memory(op),
    Compressed: lambda op, dim: compressed_memory(op),
    ChannelMix: lambda op, dim: shift_memory(dim),
    Wkv: lambda op, dim: wkv_memory(op, dim),
    DeltaNet: lambda op, dim: delta_memory(op),
    Mamba: lambda op, dim: mamba_memory(op),
    Mlstm: lambda op, dim: mlstm_memory(op),
    Mamba2: lambda op, dim: mamba2_memory(op),
    Latent: lambda op, dim: latent_memory(op),
    LinearAttention: lambda op, dim: linear_memory(op),
    RgLru: lambda op, dim: rg_lru_memory(op),
    NgramInput: ngram_memory,
    ShortConv: lambda op, dim: {"tail": Slab((op.dim, op.taps - 1), ("ff", None), slots=False)},
}


def memory(op: Op, dim: int) -> dict[str, Slab]:
    """The slabs of an op on a stream of width `dim`; empty for one without memory."""
    return OPS[type(op)](op, dim) if type(op) in OPS else {}


def window(op: Op) -> int | None:
    """How many tokens back an op with slots looks, itself included; None: all of them."""
    if isinstance(op, Compressed | Latent):
        return op.window
    inner = attention_of(op)
    sizes = (inner.window, inner.chunk) if inner is not None else ()
    return min((size for size in sizes if size is not None), default=None)


def anchors(op: Op) -> int:
    """How many first tokens an op with slots sees besides those in its window."""
    inner = attention_of(op)
    return 0 if inner is None else inner.anchors


def place_key(op: Op) -> str:
    """Layers with the same key have equally many slots."""
    size, first = window(op), anchors(op)
    return "full" if size is None else f"window{size}+{first}" if first else f"window{size}"


def smooth_name(branch: Branch) -> str:
    """Under which name a layer keeps what the smoothing of a branch remembers."""
    return f"{branch.name}_smooth"


def memories(spec: ModelSpec) -> Iterator[tuple[int, str, Any, dict[str, Slab]]]:
    """(layer, name, op, slabs) of every op and every smoothing that remembers; a smoothing's has no slots."""
    for i, block in enumerate(spec.layers):
        for branch in block.every():
            if not isinstance(branch.op, Sum | Chain) and (slabs := memory(branch.op, spec.dim)):
                yield i, branch.name, branch.op, slabs
            if branch.smooth is not None:
                tail = Slab((spec.dim, branch.smooth.taps - 1), ("embed", None), slots=False)
                yield i, smooth_name(branch), branch.op, {"tail": tail}


def recurrent(spec: ModelSpec) -> bool:
    """Whether some op keeps a running state, from which no token can be taken back."""
    return any(not slab.slots for _, _, _, slabs in memories(spec) for slab in slabs.values())
