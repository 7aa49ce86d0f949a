"""Compiling before the first text comes: sessions that go once through every program that later ones will need.

Programs are compiled by running them on texts without meaning. Nothing else is sure to compile what will run, on any
mesh and with any options, and it also pays what the first run of a program costs beside compiling.
"""

from collections.abc import Callable, Iterator, Sequence

from forge_jax.generation.session import FIRST, Session
from forge_jax.generation.sizes import capacity, chunks

Make = Callable[[list[int], int], Session]


def count(prompt: int, new: int, limit: int) -> int:
    """How many steps `warm` takes.

    Raises:
        ValueError: no prompt or no new token at all, or more than the context holds.
    """
    if prompt < 1 or new < 1:
        raise ValueError(f"warmup: {prompt} tokens of prompt and {new} new ones; expected at least 1 of each")
    capacity(prompt + new, limit)
    return len(list(lengths(prompt, limit))) + len(sizes(prompt + new, limit))


def warm(make: Make, prompt: int, new: int, limit: int) -> Iterator[None]:
    """Run every program that sessions with prompts up to `prompt` tokens and `new` more need, step by step.

    Args:
        make: a session of the batch and options that will be used, whose rows all are the given ids, with room for so
            many new tokens.
        limit: the model's context.
    """
    for length in lengths(prompt, limit):
        make([0] * length, 1)
        yield
    going, ended = unfinished(make, limit), unfinished(make, limit)
    for size in sizes(prompt + new, limit):
        if going.done:  # it chose an id that ends a text
            going = unfinished(make, limit)
        for session in (going, ended):
            if size > session.state.history.tokens_BS.shape[1]:
                session.widen(size)
        going.advance(1)
        ended.finish(0, 1)  # as a stop string does
        yield


def unfinished(make: Make, limit: int) -> Session:
    """A session of short texts that do not end at once."""
    session = make([0], limit - 1)
    for token in range(1, 8):
        if not session.done:
            break
        session = make([token], limit - 1)
    return session


def lengths(prompt: int, limit: int) -> Iterator[int]:
    """A few lengths of prompts up to `prompt` that need every program which any such length needs."""
    seen: set[tuple[int, int, bool]] = set()
    for length in ends(range(1, prompt + 1), limit):
        size = first_size(length, limit)
        needed = {(width, size, at == 0) for at, width in enumerate(chunks(length, size))}
        if not needed <= seen:
            seen |= needed
            yield length


def ends(all_lengths: Sequence[int], limit: int) -> Iterator[int]:
    """The longest of the neighbours that are read alike, from the longest to the shortest: it stands for them."""
    before = None
    for length in reversed(all_lengths):
        size = first_size(length, limit)
        like = (size, chunks(length, size))
        if like != before:
            yield length
        before = like


def first_size(length: int, limit: int) -> int:
    """The slots of the cache that a session with prompts of `length` begins with."""
    return capacity(min(length + FIRST, limit), limit)


def sizes(length: int, limit: int) -> list[int]:
    """The slots that a cache has on its way to `length` tokens, from the smallest."""
    return sorted({capacity(n, limit) for n in range(1, length + 1)} | {first_size(1, limit)})
