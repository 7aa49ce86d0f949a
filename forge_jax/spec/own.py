"""Inputs that every layer has of its own, beside the stream."""

from dataclasses import dataclass

from forge_jax.spec.ops import Activation, Norm


@dataclass(frozen=True)
class OwnInputs:
    """For each layer `dim` features a token: (norm(project_scale * W x) + embed_scale * table[token]) / sqrt(2).

    x is the embedding. The table has `vocab_size` rows; tokens beyond them read the first.
    """

    vocab_size: int
    dim: int
    norm: Norm
    embed_scale: float
    project_scale: float


@dataclass(frozen=True)
class OwnInput:
    """out(act(gate(x)) * own): a layer takes in its own input, of width `dim`."""

    dim: int
    act: Activation = "silu"
