"""What `Forge.forward` takes, checked, and the loss that it gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def checked_ids(ids: Any, vocab_size: int) -> Array:
    """Ids as int32 [B, T]; a single row may come without B.

    Raises:
        ValueError: another shape or dtype, or ids outside the vocabulary.
    """
    array = np.asarray(ids)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"Forge: ids are {array.dtype}{list(array.shape)}; expected integers of shape [B, T]")
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        raise ValueError(f"Forge: ids reach from {array.min()} to {array.max()}; the vocabulary has {vocab_size}")
    return jnp.asarray(array, jnp.int32)


def checked_targets(targets: Any, ids_BT: Array, vocab_size: int, ignore_index: int) -> Array:
    """Targets as int32 [B, T]; what is ignored may be outside the vocabulary.

    Raises:
        ValueError: another shape than the ids have, or as `checked_ids`.
    """
    array = np.asarray(targets)
    array = array[None] if array.ndim == 1 else array
    if array.shape != ids_BT.shape:
        raise ValueError(f"Forge.forward: targets are {list(array.shape)}, the ids {list(ids_BT.shape)}")
    checked_ids(np.where(array == ignore_index, 0, array), vocab_size)
    return jnp.asarray(array, jnp.int32)


def cross_entropy(logits_BTV: Array, targets_BT: Array, ignore_index: int) -> Array:
    """Mean negative log-likelihood in nats over the targets that are not `ignore_index`; 0 if there are none."""
    keep = targets_BT != ignore_index
    ids = jnp.where(keep, targets_BT, 0)
    chosen = jnp.take_along_axis(logits_BTV, ids[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits_BTV, axis=-1) - chosen
    return jnp.where(keep, loss, 0.0).sum() / jnp.maximum(keep.sum(), 1).astype(loss.dtype)
