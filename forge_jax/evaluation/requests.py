"""What evaluation harnesses ask of a model, answered in batches of few shapes. Knows no harness.

Texts become ids as lm-evaluation-harness has it: a context and its continuation are encoded together, so that the
continuation begins where the context's own ids end; whitespace between them belongs to the continuation.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from converters.tokenizer import Tokenizer
from forge_jax import text
from forge_jax.evaluation.rows import Row, overlapping, scored
from forge_jax.generation.sizes import bucket
from forge_jax.loading import Model
from forge_jax.sampling import SamplingParams

MOST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one thing, first come first
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


# ------------------------------------------------------------------------------------------------ ids
def prefix_of(tokenizer: Tokenizer) -> int:
    """The id that stands before a text that nothing comes before: that which begins texts, or else ends them.

    Raises:
        ValueError: the vocabulary has neither.
    """
    ids = [tokenizer.bos_id] if tokenizer.bos_id is not None else list(tokenizer.eos_ids)
    if not ids:
        raise ValueError("evaluation: the tokenizer has no token that begins or ends a text; name one as the prefix")
    return ids[0]


def encode(tokenizer: Tokenizer, prompt: str, prefix: int) -> list[int]:
    """The ids of a text; a prefix that is written out in it is not added again."""
    written_out = tokenizer.decode([prefix], skip_special=False)
    return tokenizer.encode(prompt, add_special=not (written_out and prompt.startswith(written_out)))


def continued(tokenizer: Tokenizer, context: str, continuation: str, prefix: int) -> Row:
    """A context and its continuation as ids, of which the continuation's are scored.

    Where the two grow together at the seam, the ids are the context's own and then those that both have beyond them.

    Raises:
        ValueError: the continuation has no ids of its own.
    """
    if context.strip():
        known = encode(tokenizer, context.rstrip(), prefix)
        ids = encode(tokenizer, context + continuation, prefix)
    else:
        known, ids = [prefix], tokenizer.encode(context + continuation, add_special=False)
        ids = ids if ids[:1] == known else known + ids
    if len(ids) <= len(known):
        raise ValueError(f"evaluation: the continuation {continuation!r} of {context[-40:]!r} adds no token")
    return Row(np.asarray(known + ids[len(known) :], np.int32), len(ids) - len(known))


def rolled(ids: Sequence[int], prefix: int, limit: int) -> list[Row]:
    """A text of any length as rows of up to `limit` ids before the last, so that each of its ids is scored once."""
    return overlapping(np.asarray([prefix, *ids], np.int32), limit + 1, limit)


# ------------------------------------------------------------------------------------------------ answers
def likelihoods(
    model: Model, rows: Sequence[Row], *, limit: int, batch: int, progress: bool = False
) -> list[tuple[float, bool]]:
    """The log-probability of each row's scored ids in nats, and whether the model would choose just them.

    Of a row of more than `limit` + 1 ids the first are left out. Rows of like size are computed together, padded to a
    power of two.

    Raises:
        ValueError: more ids to score than the limit, or ids outside the vocabulary.
    """
    cut = [Row(row.ids[-limit - 1 :], row.count) for row in rows]
    shapes = [(min(bucket(len(ids) - 1), limit), min(bucket(count), limit)) for ids, count in cut]
    for ids, count in cut:
        if count > limit:
            raise ValueError(f"evaluation: {count} tokens to score do not fit the model's context of {limit}")
        if ids.min() < 0 or ids.max() >= model.spec.logits:
            raise ValueError(f"evaluation: id {ids.max()} is outside the model's vocabulary of {model.spec.logits}")
    out: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
    for length, places in sorted(set(shapes), reverse=True):  # the largest first: it shows whether memory is enough
        members = [i for i, shape in enumerate(shapes) if shape == (length, places)]
        made = scored([model], [cut[i] for i in members], length=length, places=places, batch=batch, progress=progress)
        for i, found in zip(members, made, strict=True):
            best = bool((found.best_MN[0] == found.target_N).all())
            out[i] = (float(found.logprob_MN[0].sum(dtype=np.float64)), best)
    return out


def settings(given: Mapping[str, Any], most: int) -> tuple[list[str], int, SamplingParams]:
    """Stop strings, the number of new tokens (`most` if nothing is said) and how they are chosen; greedily by default.

    Raises:
        ValueError: a setting that there is not.
    """
    known = ("until", "do_sample", *MOST, *SAMPLING)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"evaluation: generation settings {unknown} are unknown; expected {', '.join(known)}")
    until = given.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    new = next((int(given[name]) for name in MOST if given.get(name) is not None), most)
    chosen = {name: given[name] for name in SAMPLING if given.get(name) is not None}
    drawn = given.get("do_sample")
    if drawn is False or (drawn is None and not chosen.get("temperature")):
        chosen["temperature"] = 0
    return [stop for stop in stops if stop], new, SamplingParams(**chosen)


def written(
    model: Model,
    prompts: Sequence[Sequence[int]],
    given: Mapping[str, Any],
    *,
    limit: int,
    batch: int,
    most: int = 256,
) -> list[str]:
    """What the model writes after each prompt up to a stop string or the end of the text, with neither.

    Prompts that leave no room for the new tokens lose their first ids. Rows of like length are computed together.

    Raises:
        ValueError: as `settings`, or more new tokens than the limit leaves room for.
    """
    stops, new, sampling = settings(given, most)
    if new >= limit:
        raise ValueError(f"evaluation: {new} new tokens leave no room for a prompt in a context of {limit}")
    cut = [list(prompt[-(limit - new) :]) for prompt in prompts]
    tokenizer, ends = text.need_tokenizer(model), text.stop_ids(model)
    order = sorted(range(len(cut)), key=lambda i: -len(cut[i]))
    out = [""] * len(cut)
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        full = [*rows, *[rows[-1]] * (batch - len(rows))]  # the same program for the last batch
        replies, _ = text.complete(model, [cut[i] for i in full], max_new_tokens=new, sampling=sampling, stop=stops)
        for i, reply in zip(rows, replies, strict=False):
            out[i] = before(tokenizer.decode([token for token in reply.ids if token not in ends]), stops)
    return out


def before(made: str, stops: Iterable[str]) -> str:
    """The text before whichever stop string comes first."""
    return made[: min((at for stop in stops if (at := made.find(stop)) >= 0), default=len(made))]
