"""The parameters of messages between passes."""

from forge_jax.params.tree import Param, Tree
from forge_jax.spec import Message


def message_params(op: Message, dim: int) -> Tree:
    """Of each stream: query [D], down [2, D, R] of the stream and its message, forget and gain [R, D]."""
    up = Param((op.rank, dim), (None, "embed"))
    parts = {
        "query": Param((dim,), ("embed",), fill=0.0),
        "down": Param((2, dim, op.rank), (None, "embed", None), inputs=2),
        "forget": up,
        "gain": up,
    }
    return {name: dict(parts) for name in op.streams}
