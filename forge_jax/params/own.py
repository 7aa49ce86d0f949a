"""The parameters of inputs that every layer has of its own, and of several streams."""

from forge_jax.params.layers import norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import AltUp, GatedStreams, Hyper, OwnInput, OwnInputs, Streams


def own_inputs_params(own: OwnInputs, layers: int, dim: int) -> Tree:
    """table [V, L, P], project [D, L, P] and the norm over P."""
    return {
        "table": Param((own.vocab_size, layers, own.dim), ("vocab", "layers", None), inputs=0),
        "project": Param((dim, layers, own.dim), ("embed", "layers", None)),
        "norm": norm_params(own.norm, (own.dim,), (None,)),
    }


def own_input_params(op: OwnInput, dim: int) -> Tree:
    """gate [D, P], out [P, D]."""
    return {"gate": Param((dim, op.dim), ("embed", None)), "out": Param((op.dim, dim), (None, "embed"))}


def altup_params(streams: AltUp, dim: int) -> Tree:
    """What a layer mixes its streams by: router [D, S], predict [S, S, S], correct [S, S], scale [D] and a norm."""
    count = streams.count
    return {
        "router": Param((dim, count), ("embed", None)),
        "norm": norm_params(streams.norm, (dim,), ("embed",)),
        "predict": Param((count,) * 3, (None,) * 3),
        "correct": Param((count,) * 2, (None,) * 2),
        "scale": Param((dim,), ("embed",), fill=0.0),
    }


def mixing_params(streams: GatedStreams | Hyper, dim: int, *, gives: bool = True) -> Tree:
    """What a branch mixes its streams by, and, if it `gives` anything, what it adds to each by.

    Hyper: z [S, D, W] and its base [W], a scale for each kind of them. Gated: norm [S, D], down [S, D, R], up [R, S, D]
    and inject [S, D, S].
    """
    count, axes = streams.count, (None, "embed", None)
    if isinstance(streams, GatedStreams):
        out: Tree = {
            "norm": norm_params(streams.norm, (count, dim), axes[:2]),
            "down": Param((count, dim, streams.rank), axes, inputs=2),
            "up": Param((streams.rank, count, dim), (None, None, "embed")),
        }
        return out | ({"inject": Param((count, dim, count), axes, inputs=2)} if gives else {})
    kinds = (count,) if not gives else (count, count, count**2) if streams.sinkhorn else (count, count)
    return {
        "z": Param((count, dim, sum(kinds)), axes, inputs=2),
        "base": Param((sum(kinds),), (None,), fill=0.0),
        "scale": Param((len(kinds),), (None,), fill=1.0),
    }


def stream_ends_params(streams: Streams, dim: int) -> Tree:
    """What stands between the embedding or the head and the streams.

    Alternating updates: enter [D, S - 1, D] and leave [S - 1, D, D], of all but the first. Otherwise what a branch sees
    its streams by, in the end.
    """
    if not isinstance(streams, AltUp):
        return mixing_params(streams, dim, gives=False)
    others = streams.count - 1
    return {
        "enter": Param((dim, others, dim), ("embed", None, None)),
        "leave": Param((others, dim, dim), (None, "embed", None), stacked=1),
    }
