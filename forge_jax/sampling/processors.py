"""Logits processors and truncations: pure functions of logits, the values of each row and its history.

They run in the order of `PROCESSORS`, then temperature, then `TRUNCATIONS`. That is the order in which transformers
builds its chain, with presence and frequency penalties, which it lacks, after repetition. Nothing is ever sorted: a
truncation finds its border by bisection, which costs 31 sums and is several times faster than a sort of a vocabulary.
Knows no model, no text and no random number.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.sampling.allowed import keep_allowed
from forge_jax.sampling.state import History, SamplerValues, rows

INFINITY_BITS = 0x7F800000


# ------------------------------------------------------------------------------------------------ processors
def add_logit_bias(logits_BV: Array, values: SamplerValues, history: History) -> Array:
    """Add the bias of each listed token."""
    return logits_BV.at[rows(logits_BV.shape[0]), values.bias_ids_BN].add(values.bias_BN, mode="drop")


def penalise_repetition(logits_BV: Array, values: SamplerValues, history: History) -> Array:
    """Divide positive and multiply negative logits of tokens seen in prompt or output (arXiv:1909.05858)."""
    if history.seen_BV is None:
        raise ValueError("penalise_repetition: the history has no seen_BV; start it with the plan that is sampled with")
    penalty_B1 = values.repetition_B[:, None]
    lowered_BV = jnp.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1)
    return jnp.where(history.seen_BV, lowered_BV, logits_BV)


def penalise_counts(logits_BV: Array, values: SamplerValues, history: History) -> Array:
    """Subtract frequency * count, and presence where count > 0; generated tokens only (OpenAI's definition)."""
    if history.counts_BV is None:
        raise ValueError("penalise_counts: the history has no counts_BV; start it with the plan that is sampled with")
    counts_BV = history.counts_BV.astype(jnp.float32)
    present_BV = (history.counts_BV > 0).astype(jnp.float32)
    return logits_BV - values.frequency_B[:, None] * counts_BV - values.presence_B[:, None] * present_BV


def ban_words(logits_BV: Array, values: SamplerValues, history: History) -> Array:
    """Ban the last token of a sequence where the tokens before it, prompt included, are the rest of the sequence."""
    prefixes_BWP = values.word_prefixes_BWP
    size = prefixes_BWP.shape[2]
    place_BP = history.length_B[:, None] - size + jnp.arange(size)[None, :]
    tail_BP = jnp.take_along_axis(history.tokens_BS, jnp.maximum(place_BP, 0), axis=1)
    tail_BP = jnp.where(place_BP >= 0, tail_BP, -2)  # before the first token: equal to no id, and not to -1
    match_BW = jnp.all((prefixes_BWP == -1) | (prefixes_BWP == tail_BP[:, None, :]), axis=2)
    return ban(logits_BV, values.word_last_BW, match_BW)


def ban_early_stop(logits_BV: Array, values: SamplerValues, history: History) -> Array:
    """Ban the stop ids until `min_tokens` tokens have been generated."""
    early_B = history.length_B - history.prompt_length_B < values.min_tokens_B
    return ban(logits_BV, values.stop_ids_BE, jnp.broadcast_to(early_B[:, None], values.stop_ids_BE.shape))


@dataclass(frozen=True)
class VocabularyLimit:
    """A processor that bans ids from `size` on: rows of a padded embedding that no tokenizer knows."""

    size: int

    def __call__(self, logits_BV: Array, values: SamplerValues, history: History) -> Array:
        """Put -inf at them."""
        ids_1V = jax.lax.broadcasted_iota(jnp.int32, (1, logits_BV.shape[1]), 1)
        return jnp.where(ids_1V < self.size, logits_BV, -jnp.inf)


PROCESSORS = (add_logit_bias, penalise_repetition, penalise_counts, ban_words, ban_early_stop, keep_allowed)


def ban(logits_BV: Array, ids_BN: Array, where_BN: Array) -> Array:
    """-inf at the ids where `where_BN` holds; NaN stays NaN, so that it is still noticed."""
    minus_BN = jnp.where(where_BN, -jnp.inf, 0.0).astype(jnp.float32)
    return logits_BV.at[rows(logits_BV.shape[0]), ids_BN].add(minus_BN, mode="drop")


# ------------------------------------------------------------------------------------------------ truncations
def scale(logits_BM: Array, values: SamplerValues) -> Array:
    """Divide by the temperature (by 1 where it is 0) after moving the maximum to 0, so that nothing overflows."""
    temperature_B = jnp.where(values.temperature_B == 0, 1.0, values.temperature_B)
    return (logits_BM - jnp.max(logits_BM, axis=1, keepdims=True)) / temperature_B[:, None]


def keep_top_k(logits_BM: Array, values: SamplerValues) -> Array:
    """Keep the k best tokens; of equal ones the lowest ids (transformers keeps all that equal the k-th)."""
    return cut(logits_BM, nearest(below_best(logits_BM), jnp.ones_like(logits_BM), values.top_k_B))


def keep_top_p(logits_BM: Array, values: SamplerValues) -> Array:
    """Keep the smallest set of best tokens whose probabilities sum to p, at least one (arXiv:1904.09751)."""
    target_B = jnp.maximum(values.top_p_B, jnp.finfo(jnp.float32).tiny)  # a p of 0 keeps one
    return cut(logits_BM, nearest(below_best(logits_BM), jax.nn.softmax(logits_BM, axis=1), target_B))


def keep_min_p(logits_BM: Array, values: SamplerValues) -> Array:
    """Keep tokens of at least min_p times the probability of the best one (arXiv:2407.01082)."""
    return cut(logits_BM, below_best(logits_BM) <= -jnp.log(values.min_p_B)[:, None])


def keep_typical(logits_BM: Array, values: SamplerValues) -> Array:
    """Keep the tokens whose information is nearest to the entropy, until they sum to p (arXiv:2202.00666)."""
    log_BM = jax.nn.log_softmax(logits_BM, axis=1)
    p_BM = jnp.exp(log_BM)
    entropy_B1 = -jnp.sum(jnp.where(p_BM > 0, p_BM * log_BM, 0.0), axis=1, keepdims=True)
    distance_BM = jnp.abs(-log_BM - entropy_B1)
    return cut(logits_BM, distance_BM <= border(distance_BM, p_BM, values.typical_p_B)[:, None])


TRUNCATIONS = (keep_top_k, keep_top_p, keep_min_p, keep_typical)


def cut(logits_BM: Array, keep_BM: Array) -> Array:
    """-inf where `keep_BM` is false."""
    return jnp.where(keep_BM, logits_BM, -jnp.inf)


def below_best(logits_BM: Array) -> Array:
    """How far each logit lies below the best of its row, >= 0."""
    return jnp.max(logits_BM, axis=1, keepdims=True) - logits_BM


def nearest(distance_BM: Array, weight_BM: Array, target_B: Array) -> Array:
    """The smallest set of nearest entries whose weights sum to `target_B`; of equally near ones the first."""
    border_B1 = border(distance_BM, weight_BM, target_B)[:, None]
    inside_BM, tied_BM = distance_BM < border_B1, distance_BM == border_B1
    tied_weight_BM = jnp.where(tied_BM, weight_BM, 0.0)
    inside_B1 = jnp.sum(jnp.where(inside_BM, weight_BM, 0.0), axis=1, keepdims=True)
    before_BM = inside_B1 + jnp.cumsum(tied_weight_BM, axis=1) - tied_weight_BM
    return inside_BM | (tied_BM & (before_BM < target_B[:, None]))


def border(distance_BM: Array, weight_BM: Array, target_B: Array) -> Array:
    """The smallest distance within which the weights sum to at least `target_B` > 0; inf if they never do.

    Bisection bit by bit: floats that are not negative order like their bits read as integers.
    """
    bits_BM = jax.lax.bitcast_convert_type(distance_BM, jnp.int32)

    def narrow(i: Array, found_B: Array) -> Array:
        trial_B = found_B | jax.lax.shift_left(jnp.int32(1), jnp.int32(30) - i)
        nearer_B = jnp.sum(jnp.where(bits_BM < trial_B[:, None], weight_BM, 0.0), axis=1)
        return jnp.where(nearer_B < target_B, trial_B, found_B)

    found_B = jax.lax.fori_loop(jnp.int32(0), jnp.int32(31), narrow, jnp.zeros(target_B.shape, jnp.int32))
    return jax.lax.bitcast_convert_type(jnp.minimum(found_B, INFINITY_BITS), jnp.float32)
