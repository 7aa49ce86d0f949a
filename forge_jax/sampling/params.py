"""What a user asks of sampling, checked, and its translation into a plan and arrays.

Works on the host with plain numbers; the only arrays are those that `build` hands out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np

from forge_jax.sampling import processors as chain
from forge_jax.sampling.allowed import check_host_calls
from forge_jax.sampling.constraint import Constraint
from forge_jax.sampling.keys import row_keys
from forge_jax.sampling.matching import Matcher, Vocabulary
from forge_jax.sampling.state import PAD, SamplerPlan, SamplerValues

CANDIDATES = (64, 256, 1024, 4096)
"""How many best tokens a draw may be limited to: few sizes, so that another top_k seldom compiles again."""


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one row are chosen; the defaults draw from the model's own distribution.

    Args:
        temperature: 0 is greedy.
        top_k: keep the k best tokens; 0 or None keeps all.
        top_p, min_p, typical_p: nucleus, relative and typical truncation; 1, 0 and 1 are off.
        repetition_penalty: over prompt and output, > 1 discourages.
        presence_penalty, frequency_penalty: over the output only, in logits.
        logit_bias: {token id: number added to its logit}; -inf bans it.
        bad_words: token sequences that must not be completed; one that is a single stop id bans stopping with it.
        min_tokens: no stop id before so many tokens were generated.
        seed: the row draws the same tokens in any batch; None derives one from the base seed and the row number.
        logprobs: report this many best tokens a step, beside the drawn one; None reports neither.
        constraint: what the output must be as a whole; the logprobs stay those of the free model.
    """

    temperature: float = 1.0
    top_k: int | None = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None = None
    bad_words: Sequence[Sequence[int]] = ()
    min_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        """Check every field and make the collections immutable.

        Raises:
            ValueError: names the field, the value found and the range allowed.
        """
        check_real("temperature", self.temperature, 0 <= _real(self.temperature) < inf, "in [0, inf)")
        check_whole("top_k", 0 if self.top_k is None else self.top_k)
        check_real("top_p", self.top_p, 0 <= _real(self.top_p) <= 1, "in [0, 1]")
        check_real("min_p", self.min_p, 0 <= _real(self.min_p) <= 1, "in [0, 1]")
        check_real("typical_p", self.typical_p, 0 < _real(self.typical_p) <= 1, "in (0, 1]")
        penalty = self.repetition_penalty
        check_real("repetition_penalty", penalty, 0 < _real(penalty) < inf, "in (0, inf)")
        check_real("presence_penalty", self.presence_penalty, isfinite(_real(self.presence_penalty)), "finite")
        check_real("frequency_penalty", self.frequency_penalty, isfinite(_real(self.frequency_penalty)), "finite")
        check_whole("min_tokens", self.min_tokens)
        check_whole("seed", 0 if self.seed is None else self.seed, below=2**64)
        check_whole("logprobs", 0 if self.logprobs is None else self.logprobs)
        if not isinstance(self.constraint, Constraint | None):
            raise ValueError(f"SamplingParams.constraint: found {self.constraint!r}, expected Constraint.json(...)")
        for token, bias in self.bias_pairs:
            check_whole("logit_bias", token, what="token id")
            check_real("logit_bias", bias, -inf <= _real(bias) < inf, f"below inf (bias of token {token})")
        for word in self.bad_words:
            if not word:
                raise ValueError(f"SamplingParams.bad_words: found an empty sequence in {self.bad_words!r}; remove it")
            for token in word:
                check_whole("bad_words", token, what="token id")
        object.__setattr__(self, "logit_bias", self.bias_pairs or None)
        object.__setattr__(self, "bad_words", tuple(tuple(word) for word in self.bad_words))

    @property
    def bias_pairs(self) -> tuple[tuple[int, float], ...]:
        """The logit biases as (token id, bias)."""
        return tuple(self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias or ())


def build(
    params: SamplingParams | Sequence[SamplingParams],
    batch: int,
    vocab_size: int,
    stop_ids: Sequence[int] = (),
    base_seed: int = 0,
    matchers: Sequence[Matcher | None] = (),
) -> tuple[SamplerPlan, SamplerValues]:
    """Translate what each row asks into (static plan, arrays); one SamplingParams stands for all rows.

    A processor is active if any row uses it, neutral where a row does not. Rows without a seed get one derived from
    `base_seed` and their number. `matchers` are those of `matchers_of`; the caller keeps them as long as the values.

    Raises:
        ValueError: the number of params is not the batch, an id is outside the vocabulary, or a constraint has no
            matcher; says which.
    """
    asked = a_row(params, batch)
    check_whole("base_seed", base_seed, below=2**64, owner="build")
    check_ids(asked, vocab_size, stop_ids)
    matchers = matchers or (None,) * batch
    if [m and m.constraint for m in matchers] != [p.constraint for p in asked]:
        raise ValueError("sampling: the constraints need their matchers; make them with matchers_of(params, ...)")
    numbers = jax.device_put(np.array([m.number if m else 0 for m in matchers], np.int32))
    return plan_of(asked, vocab_size, stop_ids), values_of(asked, stop_ids, base_seed, numbers)


def a_row(params: SamplingParams | Sequence[SamplingParams], batch: int) -> tuple[SamplingParams, ...]:
    """What each row asks. ValueError if there are not as many as rows."""
    asked = (params,) * batch if isinstance(params, SamplingParams) else tuple(params)
    if len(asked) != batch:
        raise ValueError(f"sampling: found {len(asked)} SamplingParams for a batch of {batch}; give one, or one a row")
    return asked


def matchers_of(
    params: SamplingParams | Sequence[SamplingParams],
    batch: int,
    vocabulary: Vocabulary | None,
    stop_ids: Sequence[int] = (),
) -> tuple[Matcher | None, ...]:
    """The host's part of each row's constraint.

    Raises:
        ValueError: a constraint that is not valid, no vocabulary, or a backend that cannot ask the host.
        ImportError: llguidance is not installed.
    """
    constraints = [p.constraint for p in a_row(params, batch)]
    if not any(constraints):
        return (None,) * batch
    check_host_calls()
    if vocabulary is None:
        raise ValueError(
            "sampling: a constraint needs the bytes of the tokens; give the session vocabulary=model.vocabulary, or a "
            "forge_jax.Vocabulary of your own"
        )
    return tuple(Matcher(c, vocabulary, stop_ids) if c else None for c in constraints)


def plan_of(asked: Sequence[SamplingParams], vocab_size: int, stop_ids: Sequence[int]) -> SamplerPlan:
    """The union of what the rows need."""
    drawn = [p for p in asked if p.temperature > 0]
    repetition = any(p.repetition_penalty != 1 for p in asked)
    counts = any(p.presence_penalty or p.frequency_penalty for p in asked)
    processors = (
        any(p.bias_pairs for p in asked),
        repetition,
        counts,
        any(p.bad_words for p in asked),
        bool(stop_ids) and any(p.min_tokens for p in asked),
        any(p.constraint for p in asked),
    )
    truncations = (
        any(p.top_k for p in drawn),
        any(p.top_p < 1 for p in drawn),
        any(p.min_p > 0 for p in drawn),
        any(p.typical_p < 1 for p in drawn),
    )
    # a draw may look at the best few only if every drawn row asks for no more
    largest = max((p.top_k for p in drawn if p.top_k), default=0) if all(p.top_k for p in drawn) else 0
    fitting = [size for size in CANDIDATES if 0 < largest <= size < vocab_size]
    return SamplerPlan(
        greedy=not drawn,
        processors=tuple(f for f, active in zip(chain.PROCESSORS, processors, strict=True) if active),
        truncations=tuple(f for f, active in zip(chain.TRUNCATIONS, truncations, strict=True) if active),
        candidates=fitting[0] if fitting else None,
        logprobs=max((p.logprobs for p in asked if p.logprobs is not None), default=None),
        needs_seen=repetition,
        needs_counts=counts,
    )


def values_of(
    asked: Sequence[SamplingParams], stop_ids: Sequence[int], base_seed: int, constraint_B: jax.Array
) -> SamplerValues:
    """The arrays of every row; their lengths are powers of two, so that one more id seldom compiles again.

    Made on the host and put as they are: each array made on the device would be a program to compile.
    """
    biases = [p.bias_pairs for p in asked]
    prefixes, last = word_arrays([p.bad_words for p in asked])
    return SamplerValues(
        key_B=row_keys([p.seed for p in asked], base_seed),
        temperature_B=floats(p.temperature for p in asked),
        top_k_B=floats(p.top_k or inf for p in asked),
        top_p_B=floats(p.top_p if p.top_p < 1 else inf for p in asked),
        min_p_B=floats(p.min_p for p in asked),
        typical_p_B=floats(p.typical_p if p.typical_p < 1 else inf for p in asked),
        repetition_B=floats(p.repetition_penalty for p in asked),
        presence_B=floats(p.presence_penalty for p in asked),
        frequency_B=floats(p.frequency_penalty for p in asked),
        min_tokens_B=jax.device_put(np.array([min(p.min_tokens, PAD) for p in asked], np.int32)),
        stop_ids_BE=jax.device_put(padded([list(stop_ids)] * len(asked), PAD, np.int32)),
        bias_ids_BN=jax.device_put(padded([[token for token, _ in pairs] for pairs in biases], PAD, np.int32)),
        bias_BN=jax.device_put(padded([[bias for _, bias in pairs] for pairs in biases], 0.0, np.float32)),
        word_prefixes_BWP=jax.device_put(prefixes),
        word_last_BW=jax.device_put(last),
        constraint_B=constraint_B,
    )


def word_arrays(words: Sequence[Sequence[Sequence[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """The bad words of every row as (prefixes [B, W, P], last tokens [B, W])."""
    last = padded([[word[-1] for word in row] for row in words], PAD, np.int32)
    longest = power_of_two(max((len(word) - 1 for row in words for word in row), default=0))
    prefixes = np.full((*last.shape, longest), -1, np.int32)
    for b, row in enumerate(words):
        for w, word in enumerate(row):
            if len(word) > 1:
                prefixes[b, w, 1 - len(word) :] = word[:-1]
    return prefixes, last


def floats(numbers: Any) -> jax.Array:
    """A float32 [B]."""
    return jax.device_put(np.array(list(numbers), np.float32))


def padded(lists: Sequence[Sequence[float]], fill: float, dtype: type) -> np.ndarray:
    """Ragged rows as one array, as long as the longest rounded up to a power of two."""
    out = np.full((len(lists), power_of_two(max(map(len, lists), default=0))), fill, dtype)
    for row, numbers in zip(out, lists, strict=True):
        row[: len(numbers)] = numbers
    return out


def power_of_two(number: int) -> int:
    """The next power of two; 0 stays 0."""
    return 1 << (number - 1).bit_length() if number else 0


# ------------------------------------------------------------------------------------------------ checks
def check_ids(asked: Sequence[SamplingParams], vocab_size: int, stop_ids: Sequence[int]) -> None:
    """Every id that a row or the stop condition names must be in the vocabulary, and logprobs no larger than it."""
    named = [("stop_ids", token) for token in stop_ids]
    for p in asked:
        named += [("logit_bias", token) for token, _ in p.bias_pairs]
        named += [("bad_words", token) for word in p.bad_words for token in word]
        named += [("logprobs", p.logprobs - 1)] if p.logprobs else []
    wrong = [f"{field} {token}" for field, token in named if not 0 <= token < vocab_size]
    if wrong:
        shown = ", ".join(wrong[:5])
        raise ValueError(f"sampling: {len(wrong)} ids outside the vocabulary of {vocab_size} tokens: {shown}")


def check_real(field: str, value: Any, allowed: bool, expected: str) -> None:
    """Raise unless `allowed`."""
    if not allowed:
        raise ValueError(f"SamplingParams.{field}: found {value!r}, expected a number {expected}")


def check_whole(
    field: str, value: Any, below: float = inf, what: str = "whole number", owner: str = "SamplingParams"
) -> None:
    """Raise unless `value` is a whole number in [0, below)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < below:
        raise ValueError(f"{owner}.{field}: found {value!r}, expected a {what} in [0, {below})")


def _real(value: Any) -> float:
    """The number, or NaN, which is in no range."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")
