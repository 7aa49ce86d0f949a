"""What a spec says, one question a function, where GGUF wants to know it."""

from typing import Any

from converters.gguf.extras_common import slides
from converters.gguf.names import latents
from converters.gguf.names_state import named
from forge_jax.spec import Attention, Block, Branch, Mamba, Mamba2, Mlp, ModelSpec, Moe, Rope


def branches(spec: ModelSpec) -> list[Branch]:
    """The branches of every layer, those of sums too, in order."""
    return [branch for block in spec.layers for branch in block.every()]


def attentions(spec: ModelSpec) -> list[Attention]:
    """The attention of every layer, in order."""
    return [branch.op for branch in branches(spec) if isinstance(branch.op, Attention)]


def feed_forward(spec: ModelSpec) -> list[Mlp | Moe]:
    """The feed-forward layers, dense ones before mixtures."""
    found = [branch.op for branch in branches(spec) if isinstance(branch.op, Mlp | Moe)]
    return sorted(found, key=lambda op: isinstance(op, Moe))


def mixture(spec: ModelSpec) -> Moe | None:
    """The first mixture of experts."""
    return next((branch.op for branch in branches(spec) if isinstance(branch.op, Moe)), None)


def shared(op: Moe) -> int:
    """The width of the expert that every token goes through, 0 if there is none."""
    return op.shared.dim if op.shared else 0


def shared_width(spec: ModelSpec) -> int:
    """The same of a model."""
    op = mixture(spec)
    return shared(op) if op else 0


def mixtures(spec: ModelSpec) -> list[int]:
    """Which layers are mixtures of experts."""
    return [i for i, block in enumerate(spec.layers) if any(isinstance(b.op, Moe) for b in block.branches)]


def window(spec: ModelSpec) -> int | None:
    """The window of the layers that have one."""
    return next((op.window for op in attentions(spec) if op.window is not None), None)


def state_space(spec: ModelSpec) -> Any:
    """The first state space model.

    Raises:
        ValueError: there is none.
    """
    for branch in branches(spec):
        if isinstance(branch.op, Mamba | Mamba2):
            return branch.op
    raise ValueError("GGUF: this architecture has state space models, the model has none")


def has(block: Block, kind: type) -> bool:
    """Whether a layer has an op of this kind."""
    return any(isinstance(branch.op, kind) for branch in block.branches)


def step_rank(spec: ModelSpec) -> int:
    """The rank of the step size, or how many heads have one."""
    if delta := named(spec, "delta"):
        return delta.value_heads
    op = state_space(spec)
    return op.rank if isinstance(op, Mamba) else op.heads


def inner_size(spec: ModelSpec) -> int:
    """The width of what has a state."""
    if delta := named(spec, "delta"):
        return delta.value_heads * delta.value_dim
    op = state_space(spec)
    return op.dim if isinstance(op, Mamba) else op.heads * op.head_dim


def eps(spec: ModelSpec) -> float | None:
    """The epsilon of the norms."""
    return spec.final_norm.eps if spec.final_norm else None


def activation_of(spec: ModelSpec) -> str:
    """The activation of feed-forward layers, or else of state space models."""
    found = feed_forward(spec)
    return found[0].act if found else state_space(spec).act


def rope_of(spec: ModelSpec) -> Rope:
    """The rope of the layers without a window, or else of any.

    Raises:
        ValueError: no layer has one.
    """
    ordered = sorted(attentions(spec), key=lambda op: op.window is not None)
    rope = next((op.rope for op in (*latents(spec), *ordered) if op.rope is not None), None)
    if rope is None:
        raise ValueError("GGUF: this architecture has rotary positions, and no layer of the model has")
    return rope


def pattern(spec: ModelSpec, usual: int) -> int | None:
    """Every how many layers one has no window; None where that is the usual number, or no number fits."""
    found = [op.window is not None for op in attentions(spec)]
    if found == slides(usual, len(found)):
        return None
    return next((n for n in range(len(found) + 1) if slides(n, len(found)) == found), None)


def local_rope(spec: ModelSpec) -> Rope | None:
    """The rope of layers with a window."""
    return next((op.rope for op in attentions(spec) if op.window is not None and op.rope), None)


def local_theta(spec: ModelSpec) -> float | None:
    """Its base."""
    local = local_rope(spec)
    return local.theta if local else None
