"""One token a row from logits: the chain of a plan, then a draw that depends only on (seed of the row, position).

The noise of a token is a hash of (key of the row, position, token id), so a row draws the same token alone, in any
batch, and whether the draw looked at the whole vocabulary or at the best candidates. Knows no model and no text.
"""

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.sampling.processors import scale
from forge_jax.sampling.state import History, SamplerPlan, SamplerValues


def sample(
    plan: SamplerPlan, values: SamplerValues, logits_BV: Array, history: History
) -> tuple[Array, dict[str, Array]]:
    """Draw the next token of every row, int32 [B], for the position `history.length_B`.

    The second result reports, by the model's own distribution, log_softmax of `logits_BV` before any processing:
        "logprob" [B]: of the drawn token.
        "top_ids", "top_logprobs" [B, plan.logprobs]: the best tokens, best first (absent where plan.logprobs is None).
        "nan" [B]: no token could be drawn (a NaN or +inf among the logits, or every token banned); the token of
            such a row is a valid id without meaning.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    scores_BV = process(plan, values, logits_BV, history)
    if plan.greedy:
        token_B = best(scores_BV)
    else:
        token_B = draw(plan, values, scores_BV, history)
    total_B = jax.nn.logsumexp(logits_BV, axis=1)
    info = {
        "logprob": jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0] - total_B,
        # XLA's maximum may skip NaN on CPU, so it is looked for by itself
        "nan": jnp.any(jnp.isnan(scores_BV), axis=1) | ~jnp.isfinite(jnp.max(scores_BV, axis=1)),
    }
    if plan.logprobs is not None:
        top_BN, info["top_ids"] = jax.lax.top_k(logits_BV, plan.logprobs)
        info["top_logprobs"] = top_BN - total_B[:, None]
    return token_B, info


def process(plan: SamplerPlan, values: SamplerValues, logits_BV: Array, history: History) -> Array:
    """Biases, penalties and bans: the logits that a greedy row takes the maximum of."""
    for processor in plan.processors:
        logits_BV = processor(logits_BV, values, history)
    return logits_BV


def distribution(plan: SamplerPlan, values: SamplerValues, logits_BV: Array, history: History) -> Array:
    """The probabilities [B, V] that `sample` draws from; one token has them all where the temperature is 0."""
    scores_BV = process(plan, values, logits_BV.astype(jnp.float32), history)
    certain_BV = (token_ids(scores_BV) == best(scores_BV)[:, None]).astype(jnp.float32)
    if plan.greedy:
        return certain_BV
    drawn_BV = jax.nn.softmax(truncate(plan, values, scale(scores_BV, values)), axis=1)
    return jnp.where(values.temperature_B[:, None] == 0, certain_BV, drawn_BV)


def draw(plan: SamplerPlan, values: SamplerValues, scores_BV: Array, history: History) -> Array:
    """Gumbel-max over what the truncations keep; rows of temperature 0 take their best token."""
    if plan.candidates is None:
        scores_BM, ids_BM = scores_BV, token_ids(scores_BV)
    else:
        scores_BM, ids_BM = jax.lax.top_k(scores_BV, plan.candidates)
    scaled_BM = scale(scores_BM, values)
    noisy_BM = truncate(plan, values, scaled_BM) + noise(values.key_B, history.length_B, ids_BM)
    place_B = best(jnp.where(values.temperature_B[:, None] == 0, scaled_BM, noisy_BM))
    # candidates come in the order of their scores, equal ones in that of their ids
    return place_B if plan.candidates is None else jnp.take_along_axis(ids_BM, place_B[:, None], axis=1)[:, 0]


def truncate(plan: SamplerPlan, values: SamplerValues, scaled_BM: Array) -> Array:
    """Put -inf at the tokens that the plan's truncations cut."""
    for truncation in plan.truncations:
        scaled_BM = truncation(scaled_BM, values)
    return scaled_BM


def noise(key_B: Array, position_B: Array, ids_BM: Array) -> Array:
    """Gumbel noise of each (row, position, token id): -log of an exponential variable."""

    def bits(key: Array, position: Array, ids_M: Array) -> Array:
        here = jax.random.fold_in(key, position)
        return jax.vmap(lambda token: jax.random.key_data(jax.random.fold_in(here, token))[0])(ids_M)

    bits_BM = jax.vmap(bits)(key_B, position_B, ids_BM)
    # small uniforms become large noise: there a float32 keeps all 32 bits, which rare tokens of a large vocabulary need
    uniform_BM = (bits_BM.astype(jnp.float32) + 0.5) * 2.0**-32
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform_BM, 1 - 2.0**-24)))


def best(scores_BM: Array) -> Array:
    """The place of the highest score, the first among equal ones; the last where no score is a number.

    Two vector passes, faster than argmax on a CPU.
    """
    highest_BM = scores_BM == jnp.max(scores_BM, axis=1, keepdims=True)
    return jnp.min(jnp.where(highest_BM, token_ids(scores_BM), scores_BM.shape[1] - 1), axis=1)


def token_ids(scores_BV: Array) -> Array:
    """The id of every place, [B, V]."""
    return jax.lax.broadcasted_iota(jnp.int32, scores_BV.shape, 1)
