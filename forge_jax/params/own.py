"""The parameters of inputs that every layer has of its own, and of several streams."""

from forge_jax.params.layers import norm_params
from forge_jax.params.tree import Param, Tree
from forge_jax.spec import AltUp, OwnInput, OwnInputs


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


def stream_ends_params(streams: AltUp, dim: int) -> Tree:
    """enter [D, S - 1, D] and leave [S - 1, D, D]: between the embedding or the head and the streams but the first."""
    others = streams.count - 1
    return {
        "enter": Param((dim, others, dim), ("embed", None, None)),
        "leave": Param((others, dim, dim), (None, "embed", None), stacked=1),
    }
