"""A model with a window and anchors that it was not trained with, so that it reads and writes without end."""

from dataclasses import replace
from typing import Any

from forge_jax.spec.model import Compressed, Latent, ModelSpec, attention_of
from forge_jax.spec.ops import Attention

ENDLESS = 1 << 30  # tokens; orders are int32


def windowed(spec: ModelSpec, window: int, anchors: int = 4) -> ModelSpec:
    """The spec in which every layer that looks back on all tokens sees the last `window` and the first `anchors` only.

    Distances are those within what is seen, as if it were the whole text (arXiv:2309.17453): positions have no end, and
    max_seq_len becomes 2^30. Layers with a window or chunk of their own, and running states, stay as they are.

    Raises:
        ValueError: sizes that cannot be, a window beyond what the model can look at, or layers whose positions are not
            distances; says which.
    """
    if window < 1 or anchors < 0 or window + anchors > spec.max_seq_len:
        raise ValueError(
            f"window: {window} tokens and {anchors} anchors; expected at least 1 and 0, and together at most "
            f"{spec.max_seq_len}, which the model can look at"
        )
    problems = [] if spec.positions is None else ["the model adds positions to its embeddings, and has no more of them"]

    def changed(op: Any) -> Any:
        if not unbounded(op):
            return replace(op, rope=endless(op)) if isinstance(op, Attention) else op
        wrong = obstacle(op)
        problems.extend([] if wrong is None or wrong in problems else [wrong])
        return op if wrong else replace(op, window=window, anchors=anchors, rope=endless(op))

    layers = tuple(layer.with_ops(changed) for layer in spec.layers)
    if problems:
        raise ValueError("window: " + "; ".join(problems))
    return replace(spec, layers=layers, max_seq_len=ENDLESS)


def unbounded(op: Any) -> bool:
    """Whether it looks back on all tokens, as they are or summed up."""
    match op:
        case Latent():
            return op.window is None
        case Compressed():
            return op.compression is not None
    inner = attention_of(op)
    return inner is not None and inner.window is None and inner.chunk is None


def endless(op: Attention) -> Any:
    """Its rope for positions without end."""
    return None if op.rope is None or op.rope.varies else replace(op.rope, endless=True)


def obstacle(op: Any) -> str | None:
    """Why an op that looks back on all tokens cannot have a window put on it, or None."""
    if not isinstance(op, Attention):
        return f"{type(op).__name__} has no form with a window of its choice"
    named = {"alibi": op.alibi, "relative": op.relative, "query_scaling": op.query_scaling, "blocks": op.blocks}
    given = [name for name, value in named.items() if value is not None]
    if given:
        return f"an attention with {', '.join(given)} says by itself how far it looks"
    if op.rope is not None and op.rope.varies:
        return "the frequencies of the rope depend on how long the text is"
    return None
