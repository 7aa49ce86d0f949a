"""Texts from their prompts to their ends, in one call."""

from collections.abc import Iterator, Sequence
from typing import Any

from forge_jax.generation.results import Output
from forge_jax.generation.session import Session
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec


def generate(spec: ModelSpec, params: Tree, prompts: Sequence[Sequence[int]], **options: Any) -> list[Output]:
    """Complete every prompt. Options are those of `Session`."""
    session = Session(spec, params, prompts, **options)
    session.advance()
    return session.outputs()


def stream(
    spec: ModelSpec, params: Tree, prompts: Sequence[Sequence[int]], **options: Any
) -> Iterator[list[int | None]]:
    """Yield each step's new id of every row, None for rows that have ended. The same tokens as `generate`."""
    return Session(spec, params, prompts, **options).steps()
