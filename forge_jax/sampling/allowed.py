"""The processor of constraints: one question to the host a step, for all rows, answered with a bit a token.

The question holds the whole history and not a step's news, so its answer is a pure function, which XLA may ask twice
or not at all. What programs are compiled for is independent of the constraints.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.sampling.matching import matcher
from forge_jax.sampling.state import History, SamplerValues

WORD = 32
CALLING = ("cpu", "gpu", "tpu")
"""Backends whose programs can call the host, by `jax.default_backend`."""


def keep_allowed(logits_BV: Array, values: SamplerValues, history: History) -> Array:
    """-inf at tokens that the row's constraint does not allow next; rows without one stay bit for bit."""
    allowed_BV = allowed(values, history, logits_BV.shape[1])
    return jnp.where(allowed_BV, logits_BV, -jnp.inf)


def allowed(values: SamplerValues, history: History, vocab_size: int) -> Array:
    """Which tokens may follow the generated text of each row, bool [B, V]. May be vmapped."""
    words = -(-vocab_size // WORD)
    shape = jax.ShapeDtypeStruct((*history.length_B.shape, words), jnp.uint32)
    asked = (values.constraint_B, history.tokens_BS, history.prompt_length_B, history.length_B)
    bits_BW = jax.pure_callback(partial(answer, words), shape, *asked, vmap_method="broadcast_all")
    shift_W = jax.lax.broadcasted_iota(jnp.uint32, (1, 1, WORD), 2)
    bits_BWI = jax.lax.shift_right_logical(bits_BW[:, :, None], jnp.broadcast_to(shift_W, (*bits_BW.shape, WORD)))
    return (bits_BWI & 1).astype(bool).reshape(bits_BW.shape[0], words * WORD)[:, :vocab_size]


def answer(words: int, *asked: Array) -> np.ndarray:
    """The host's side of `allowed`: uint32 [..., words] for numbers [...], tokens [..., S], starts and ends [...]."""
    number, tokens, start, end = map(np.asarray, asked)
    out = np.full((*number.shape, words), 0xFFFFFFFF, np.uint32)
    for at in np.ndindex(number.shape):
        if number[at]:
            out[at] = matcher(int(number[at])).allowed(tokens[at][start[at] : end[at]], words)
    return out


def check_host_calls() -> None:
    """Raise ValueError where a running program cannot ask the host."""
    if (backend := jax.default_backend()) not in CALLING:
        raise ValueError(
            f"a constraint asks the host once a token, which the backend {backend!r} cannot do; "
            f"run it on one of {', '.join(CALLING)}"
        )
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise ValueError(
            "a constraint needs JAX's CPU device beside the accelerator; add it: JAX_PLATFORMS=cuda,cpu (or tpu,cpu)"
        ) from error
