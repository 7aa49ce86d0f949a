"""What a caller asked of a session, checked."""

from collections.abc import Sequence
from typing import Any, TypedDict

from forge_jax.generation.held import Held
from forge_jax.generation.layouts import Layout


class Choices(TypedDict, total=False):
    """What functions that make sessions hand on to them as it is; `Session` says what each is, and has the defaults."""

    n: int
    seed: int
    cache_dtype: Any
    layout: Layout
    held: Held | None
    draft_always: bool
    invariant: int | None


def check_prompts(rows: list[list[int]], vocab_size: int, n: int) -> None:
    """Raise ValueError for no prompts, an empty one, or ids outside the vocabulary."""
    if not rows or n < 1:
        raise ValueError(f"generation: {len(rows)} prompts and n = {n}; both must be at least 1")
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"generation: prompt {i} is empty; give at least one token, for example the bos id")
        if min(row) < 0 or max(row) >= vocab_size:
            odd = next(t for t in row if not 0 <= t < vocab_size)
            raise ValueError(
                f"generation: prompt {i} has the id {odd}, outside the model's vocabulary of {vocab_size}; "
                "the tokenizer belongs to another model"
            )


def wanted(max_new_tokens: int | Sequence[int] | None, lengths: list[int], limit: int) -> list[int]:
    """New tokens of each row: as asked, or as many as the context still holds.

    Raises:
        ValueError: a prompt that fills the context, a negative number, or too few numbers.
    """
    if over := [length for length in lengths if length > limit]:
        raise ValueError(f"generation: a prompt of {over[0]} tokens is longer than the model's context of {limit}")
    if max_new_tokens is None:
        return [limit - length for length in lengths]
    new = [int(max_new_tokens)] * len(lengths) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(new) != len(lengths) or min(new) < 0:
        raise ValueError(f"generation: max_new_tokens = {max_new_tokens!r} for {len(lengths)} rows; expected 0 or more")
    return new


def check_invariant(
    room: int | None, layout: str, draft: object, adapters: Sequence[int] | None, held: Held | None
) -> None:
    """Raise ValueError where rows cannot be computed apart: from pages that they share, with adapters that they choose
    among together, after a text that was read in other pieces, or with drafts, of which there are more or fewer as the
    other rows take theirs."""
    if room is not None and held is not None:
        raise ValueError(
            f"generation: invariant={room} beside held texts, which were read in other pieces; leave `held` out, and "
            "the whole prompts are read"
        )
    if room is not None and layout != "dense":
        raise ValueError(f"generation: invariant={room} needs layout='dense', whose rows share nothing; not {layout!r}")
    if room is not None and adapters is not None:
        raise ValueError(f"generation: invariant={room} beside adapters by row; attach one adapter for all rows")
    if room is not None and draft is not None:
        raise ValueError(
            f"generation: invariant={room} beside a drafter: passes would differ with the other rows; leave one out"
        )


def check_held(adapters: Sequence[int]) -> None:
    """Raise ValueError if a row has one of several adapters: nothing in a held cache says with which it was read."""
    if any(adapter != -1 for adapter in adapters):
        raise ValueError(
            f"generation: texts are held without adapters by row, and these rows have {list(adapters)[:8]}; attach one "
            "adapter for all rows, or read the texts again"
        )


def check_room(length: int, room: int | None) -> None:
    """Raise ValueError for a text that is longer than what every cache of an invariant session has room for."""
    if room is not None and length > room:
        raise ValueError(
            f"generation: {length} tokens (prompt and what is to be generated) in a session with invariant={room}; "
            "ask for fewer, or give all sessions that are compared a larger number"
        )
