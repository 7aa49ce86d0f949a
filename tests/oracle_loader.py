"""The loader that judges of reference checkpoints ask for: logits and greedy continuations of a checkpoint, in float32.

`judge.py tests/oracle_loader.py` (in the folder of reference checkpoints) runs it; the tests use it too.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from converters.adapters.peft import read_peft
from converters.checkpoint import open_checkpoint
from forge_jax import generation
from forge_jax.decoder import Inputs, forward
from forge_jax.lora import attach
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec

Forward = Callable[..., np.ndarray]

run = partial(jax.jit, static_argnums=0)(forward)


def open_float32(path: str | Path) -> tuple[ModelSpec, Tree]:
    """The spec and the float32 parameters of a checkpoint."""
    checkpoint = open_checkpoint(Path(path))
    try:
        return checkpoint.spec, checkpoint.read(lambda _, values: jnp.asarray(values).astype(jnp.float32))
    finally:
        checkpoint.source.close()


def model_type(path: str | Path) -> str:
    """The family of a checkpoint."""
    return json.loads((Path(path) / "config.json").read_text())["model_type"]


def order_of(shape: tuple[int, int], mask: Any, position_ids: Any) -> np.ndarray:
    """Where each token stands: given, or counted along the mask; -1 where the mask is 0."""
    keep = np.ones(shape, np.int32) if mask is None else np.asarray(mask, np.int32)
    order = np.cumsum(keep, 1) - 1 if position_ids is None else np.broadcast_to(np.asarray(position_ids), shape)
    return np.where(keep == 1, order, -1).astype(np.int32)


def load(path: str | Path, *, adapter: str | None = None) -> Forward:
    """A function of (input_ids, attention_mask, position_ids) that gives logits [B, T, V].

    Raises:
        NotImplementedError: for inputs that are not text.
    """
    spec, params = open_float32(path)
    if adapter is not None:
        params = attach(params, read_peft(Path(adapter), model_type(path), spec))

    def call(input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **others: Any) -> np.ndarray:
        if others:
            raise NotImplementedError(f"inputs that are not text are not read yet: {sorted(others)}")
        tokens = jnp.asarray(input_ids, jnp.int32)
        order = jnp.asarray(order_of(tokens.shape, attention_mask, position_ids))
        return np.asarray(run(spec, params, Inputs(tokens, order))[0])

    return call


def generate(path: str | Path, input_ids: Any, n: int) -> np.ndarray:
    """The `n` ids [B, n] that greedy decoding appends."""
    spec, params = open_float32(path)
    rows = np.asarray(input_ids)
    # the reference goes on past the context that the config names
    spec = replace(spec, max_seq_len=max(spec.max_seq_len, rows.shape[1] + n))
    outputs = generation.generate(spec, params, rows.tolist(), max_new_tokens=n)
    return np.array([output.ids for output in outputs])
