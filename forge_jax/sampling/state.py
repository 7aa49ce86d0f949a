"""What a sampler carries: the static plan, the values of each row, and the history of each row.

Nothing here knows a model, text or a request. The plan is hashable and decides what is compiled; values and history
are arrays whose first axis is always the batch, so that rows can be joined, taken out and changed without compiling.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

PAD = 2**31 - 1
"""An id outside every vocabulary: scattering to it is dropped."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplerValues:
    """The parameters of every row; a changed value never recompiles.

    `key_B` holds typed PRNG keys. Neutral values: temperature 1, top_k inf, top_p inf, min_p 0, typical_p inf,
    repetition 1, presence and frequency 0, min_tokens 0, ids PAD. Temperature 0 makes its row greedy.
    """

    key_B: Array
    temperature_B: Array
    top_k_B: Array
    top_p_B: Array
    min_p_B: Array
    typical_p_B: Array
    repetition_B: Array
    presence_B: Array
    frequency_B: Array
    min_tokens_B: Array
    stop_ids_BE: Array
    bias_ids_BN: Array
    bias_BN: Array
    word_prefixes_BWP: Array
    """Bad words without their last token, right-aligned; -1 stands for no condition."""
    word_last_BW: Array
    constraint_B: Array
    """The number of the row's `matching.Matcher`, 0 where the text is free."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class History:
    """The tokens of every row so far, prompt first, without padding on the left.

    tokens_BS: int32, tokens_BS[b, : length_B[b]] are valid. seen_BV (bool): the tokens of prompt and output;
    counts_BV (int32): how often each token was generated. Either is None where the plan does not need it.
    """

    tokens_BS: Array
    length_B: Array
    prompt_length_B: Array
    seen_BV: Array | None = None
    counts_BV: Array | None = None


Processor = Callable[[Array, SamplerValues, History], Array]
"""(logits_BV float32, values, history) -> logits_BV."""

Truncation = Callable[[Array, SamplerValues], Array]
"""(logits_BM float32, values) -> logits_BM with -inf for what is cut; M is the vocabulary or the best of it."""


@dataclass(frozen=True)
class SamplerPlan:
    """What is compiled: the active functions in their order. A static argument of jitted functions.

    `greedy`: every row takes the best token, nothing after the processors is computed. `candidates`: the draw looks
    at this many best tokens only, which top-k makes exact; None looks at the whole vocabulary. `logprobs`: how many
    best tokens are reported a step; 0 reports the drawn one alone, None nothing. A processor of your own may be
    added with `dataclasses.replace`.
    """

    greedy: bool = False
    processors: tuple[Processor, ...] = ()
    truncations: tuple[Truncation, ...] = ()
    candidates: int | None = None
    logprobs: int | None = None
    needs_seen: bool = False
    needs_counts: bool = False


def start_history(plan: SamplerPlan, tokens_BS: Array, prompt_length_B: Array, vocab_size: int) -> History:
    """The history after the prompts, which fill the first `prompt_length_B` places of the buffer `tokens_BS`."""
    batch, size = tokens_BS.shape
    seen_BV = counts_BV = None
    if plan.needs_seen:
        inside_BS = jnp.arange(size)[None, :] < prompt_length_B[:, None]
        ids_BS = jnp.where(inside_BS, tokens_BS, PAD)
        seen_BV = jnp.zeros((batch, vocab_size), bool).at[rows(batch), ids_BS].set(True, mode="drop")
    if plan.needs_counts:
        counts_BV = jnp.zeros((batch, vocab_size), jnp.int32)
    return History(tokens_BS, prompt_length_B, prompt_length_B, seen_BV, counts_BV)


def update_history(history: History, token_B: Array, active_B: Array | None = None) -> History:
    """Append one generated token to every row, or to the rows where `active_B` is true; a full buffer drops it."""
    batch = token_B.shape[0]
    active_B = jnp.ones(batch, bool) if active_B is None else active_B
    row_B, id_B = jnp.arange(batch), jnp.where(active_B, token_B, PAD)
    place_B = jnp.where(active_B, history.length_B, PAD)
    seen_BV, counts_BV = history.seen_BV, history.counts_BV
    return replace(
        history,
        tokens_BS=history.tokens_BS.at[row_B, place_B].set(token_B, mode="drop"),
        length_B=history.length_B + active_B.astype(history.length_B.dtype),
        seen_BV=None if seen_BV is None else seen_BV.at[row_B, id_B].set(True, mode="drop"),
        counts_BV=None if counts_BV is None else counts_BV.at[row_B, id_B].add(1, mode="drop"),
    )


def rows(batch: int) -> Array:
    """Row numbers as [B, 1], to index beside ids of [B, N]."""
    return jnp.arange(batch)[:, None]
