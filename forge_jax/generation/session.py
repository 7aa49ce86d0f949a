"""One batch of texts in the making, on the host: which program to call next, and what came out.

A session holds the only reference to its state, which every call donates, so there is never a second cache. An
interrupt never falls between a call and the storing of its result: a session that was interrupted can go on.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from forge_jax import cache as caches
from forge_jax import stacking
from forge_jax.decoder import forward
from forge_jax.generation import loop
from forge_jax.generation.loop import Record, State
from forge_jax.generation.sizes import capacity, chunks, compute_dtype, with_adapters
from forge_jax.ops import Context
from forge_jax.params import Tree
from forge_jax.sampling import SamplerPlan, SamplingParams, VocabularyLimit, build, start_history
from forge_jax.spec import ModelSpec
from forge_jax.tensor import has_packed

BURST = 32  # tokens made between two looks at the host, so how long an interrupt waits, and how far a row is rewound

FIRST = 128  # new tokens that a cache has room for before it must grow

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Output:
    """What one row gave: the new ids (the stop id, if one ended it, is the last), why it ended, and its logprobs."""

    ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[dict[int, float], ...] | None = None


@dataclass(frozen=True)
class Programs:
    """The compiled functions that run a model. `LOCAL` is for one device; forge_jax.parallel makes others.

    forward: (spec, params, inputs, cache) to (logits, cache), the cache donated.
    """

    forward: Callable[..., tuple[Array, caches.Cache | None]]
    prefill: Callable[..., tuple[Array, caches.Cache]]
    choose: Callable[..., State]
    advance: Callable[..., State]
    new_cache: Callable[..., caches.Cache]


def local_programs(options: dict[str, str] | None = None) -> Programs:
    """The programs for one device; `options` are XLA's, for those that read prompts and make tokens."""
    return Programs(
        forward=jax.jit(forward, static_argnames=("spec",), donate_argnames=("cache",)),
        prefill=jax.jit(
            loop.prefill,
            static_argnames=("spec", "ctx"),
            donate_argnames=("cache", "logits_BV"),
            compiler_options=options,
        ),
        choose=jax.jit(loop.choose, static_argnames=("plan",)),  # hands on what it does not change, without a copy
        advance=jax.jit(
            loop.advance, static_argnames=("spec", "plan", "ctx"), donate_argnames=("state",), compiler_options=options
        ),
        new_cache=jax.jit(caches.init, static_argnames=("spec", "batch", "length", "slack", "dtype")),
    )


LOCAL = local_programs()
# XLA for CPUs would open the packed weights of all layers at once, to have work for many threads: a step of SmolLM2 in
# Q4_1 would take 136 MB beside its weights, not 4, and no less time
FRUGAL = local_programs({"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"})


class Session:
    """Prompts in, tokens out, more prompts in, ...

    >>> session = Session(spec, params, [[1, 2, 3]], max_new_tokens=20)   # doctest: +SKIP
    >>> session.advance()                                                 # doctest: +SKIP
    >>> session.outputs()[0].ids                                          # doctest: +SKIP
    """

    def __init__(
        self,
        spec: ModelSpec,
        params: Tree,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int] | None = None,
        sampling: SamplingParams | Sequence[SamplingParams] = SamplingParams(temperature=0),  # noqa: B008  frozen
        stop_ids: Sequence[int] = (),
        n: int = 1,
        seed: int = 0,
        cache_dtype: DTypeLike | None = None,
        known_ids: int | None = None,
        adapters: Sequence[int] | None = None,
        programs: Programs = LOCAL,
    ) -> None:
        """Read the prompts and choose the first token of each row.

        Args:
            prompts: ids of each row; lengths may differ.
            max_new_tokens: for all rows, or one a row; None: until the context is full.
            sampling: for all rows, or one a row (of `n` times the prompts).
            stop_ids: ids that end a row.
            n: continuations of each prompt, in neighbouring rows; the prompt is read once.
            seed: for rows whose sampling has none.
            cache_dtype: of the keys and values; None: that of the parameters.
            known_ids: ids from here on are never chosen: rows of the embedding that the tokenizer does not have.
            adapters: which of several adapters each prompt has, -1 for none; see `forge_jax.lora.attach`.

        Raises:
            ValueError: an empty prompt, an id outside the vocabulary, or more tokens than the context holds.
        """
        self.spec, self.programs = spec, FRUGAL if has_packed(params) and programs is LOCAL else programs
        rows = [list(map(int, prompt)) for prompt in prompts]
        self.params = with_adapters(params, adapters, len(rows), 1)
        check_prompts(rows, spec.vocab_size, n)
        self.batch = len(rows) * n
        self.plan, self.values = build(sampling, self.batch, spec.logits, stop_ids, seed)
        if known_ids is not None and known_ids < spec.logits:
            self.plan = replace(self.plan, processors=(VocabularyLimit(known_ids), *self.plan.processors))
        self.stale = False  # whether a running state holds tokens that were taken back: the text is then read again
        self.stop_ids = frozenset(int(i) for i in stop_ids)
        self.cache_dtype = jnp.dtype(cache_dtype or compute_dtype(params))
        if not jnp.issubdtype(self.cache_dtype, jnp.floating):
            raise ValueError(f"cache_dtype {self.cache_dtype}: keys and values are floats; expected float32")
        size, new_tokens = self.room([row for row in rows for _ in range(n)], max_new_tokens)
        cache = self.empty_cache(len(rows), size)
        logits, cache = self.read(cache, size, rows, [0] * len(rows), fresh=True)
        if n > 1:
            logits, cache = jnp.repeat(logits, n, axis=0), caches.repeat(cache, n)
            self.params = with_adapters(params, adapters, len(rows), n)
        self.begin(cache, size, [row for row in rows for _ in range(n)], new_tokens, logits)

    def empty_cache(self, rows: int, size: int) -> caches.Cache:
        """A cache for `rows` texts of up to `size` tokens, stacked if the parameters are."""
        cache = self.programs.new_cache(self.spec, rows, size, slack=BURST, dtype=self.cache_dtype)
        return stacking.stack_cache(self.spec, cache) if stacking.stacked(self.params) else cache

    def room(self, rows: list[list[int]], max_new_tokens: int | Sequence[int] | None) -> tuple[int, list[int]]:
        """The cache size to begin with, and the new tokens of each row. More room is made when it is needed."""
        new_tokens = wanted(max_new_tokens, list(map(len, rows)), self.spec.max_seq_len)
        for row, new in zip(rows, new_tokens, strict=True):
            capacity(len(row) + new, self.spec.max_seq_len)  # all of it must fit the context in the end
        first = min(max(map(len, rows)) + FIRST, self.spec.max_seq_len)  # whatever is asked: one program for all
        return capacity(first, self.spec.max_seq_len), new_tokens

    def begin(
        self, cache: caches.Cache, size: int, rows: list[list[int]], new_tokens: list[int], logits: Array
    ) -> None:
        """Start the history after the prompts `rows`, with room for `size` tokens; choose the first token of each."""
        tokens = np.zeros((self.batch, size), np.int32)
        for buffer, row in zip(tokens, rows, strict=True):
            buffer[: len(row)] = row
        self.start_lengths = np.array(list(map(len, rows)), np.int32)
        history = start_history(self.plan, jnp.asarray(tokens), jnp.asarray(self.start_lengths), self.spec.logits)
        limit = jnp.asarray(self.start_lengths + np.array(new_tokens, np.int32))
        done = limit <= history.length_B
        state = State(cache, history, limit, done, jnp.zeros_like(done), new_record(self.plan, self.batch, size))
        self.state = self.programs.choose(self.plan, self.values, logits, state)
        self.check()

    # -------------------------------------------------------------------------------------------- reading
    def read(
        self, cache: caches.Cache, size: int, rows: list[list[int]], starts: Sequence[int], *, fresh: bool
    ) -> tuple[Array, caches.Cache]:
        """Put tokens of every row through the model, from the order `starts` on. Returns the last logits, the cache.

        No piece is longer than `size`, the tokens that the cache is for.
        """
        logits = jnp.zeros((len(rows), self.spec.logits), jnp.float32)
        at = 0
        for width in chunks(max(map(len, rows)), size):
            tokens, order = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
            for i, row in enumerate(rows):
                piece = row[at : at + width]
                tokens[i, : len(piece)] = piece
                order[i, : len(piece)] = np.arange(len(piece)) + starts[i] + at
            ctx = Context(fresh=fresh and at == 0)
            logits, cache = self.programs.prefill(self.spec, self.params, cache, tokens, order, logits, ctx)
            at += width
        return logits, cache

    # -------------------------------------------------------------------------------------------- decoding
    def advance(self, count: int | None = None) -> bool:
        """Make up to `count` more tokens a row (None: to the end). Returns whether a row is still unfinished.

        Raises:
            ValueError: the logits of a row are not numbers.
        """
        left = self.spec.max_seq_len if count is None else count
        while left > 0 and not self.done:
            burst = min(left, BURST)
            with uninterrupted():
                self.make_room(burst)
                self.state = self.programs.advance(
                    self.spec, self.plan, self.params, self.values, self.state, np.int32(burst), Context()
                )
            self.check()
            left -= burst
        return not self.done

    def make_room(self, count: int) -> None:
        """Double the cache if the next `count` tokens would not fit."""
        size = self.state.history.tokens_BS.shape[1]
        unfinished = np.where(np.asarray(self.state.done_B), 0, np.asarray(self.state.history.length_B))
        limit = np.asarray(self.state.limit_B)
        need = int(np.minimum(unfinished + count, limit).max())
        if need > size:
            self.widen(capacity(need, self.spec.max_seq_len))

    def widen(self, size: int) -> None:
        """Copy the state into a larger one."""
        old = self.state
        cache = self.empty_cache(self.batch, size)
        empty = np.zeros((self.batch, size), np.int32)
        history = replace(old.history, tokens_BS=jnp.asarray(empty))
        wider = replace(old, cache=cache, history=history, record=new_record(self.plan, self.batch, size))
        self.state = caches.widen(old, wider)

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return all(self.done_rows())

    def done_rows(self) -> list[bool]:
        """Which rows have ended."""
        return np.asarray(self.state.done_B).tolist()

    def check(self) -> None:
        """Raise ValueError if a row's logits were not numbers."""
        bad = np.flatnonzero(np.asarray(self.state.nan_B))
        if bad.size:
            raise ValueError(
                f"generation: rows {bad.tolist()} gave NaN or infinite logits, or every token is banned: the weights "
                "or the dtype are at fault (try float32), or the sampling leaves no token"
            )

    # -------------------------------------------------------------------------------------------- results
    def ids(self) -> list[list[int]]:
        """The new ids of every row so far."""
        tokens, lengths = np.asarray(self.state.history.tokens_BS), np.asarray(self.state.history.length_B)
        return [tokens[i, s:e].tolist() for i, (s, e) in enumerate(zip(self.start_lengths, lengths, strict=True))]

    def outputs(self) -> list[Output]:
        """Every row's new ids, reason to end, and log-probabilities if they were asked for."""
        done = np.asarray(self.state.done_B)
        record = self.state.record and jax.tree.map(np.asarray, self.state.record)
        out = []
        for i, ids in enumerate(self.ids()):
            stopped = bool(ids) and ids[-1] in self.stop_ids
            reason: FinishReason | None = None if not done[i] else "stop" if stopped else "length"
            if record is None:
                out.append(Output(tuple(ids), reason))
                continue
            at = slice(self.start_lengths[i], self.start_lengths[i] + len(ids))
            tops = zip(record.top_ids_BSN[i, at].tolist(), record.top_logprobs_BSN[i, at].tolist(), strict=True)
            best = tuple(dict(zip(t, p, strict=True)) for t, p in tops)
            out.append(Output(tuple(ids), reason, tuple(record.logprob_BS[i, at].tolist()), best))
        return out

    def steps(self) -> Iterator[list[int | None]]:
        """Yield the new id of every row step by step until all have ended, None for a row that ended before."""
        given = 0
        while True:
            rows = self.ids()
            for at in range(given, max(map(len, rows))):
                yield [row[at] if at < len(row) else None for row in rows]
            given = max(map(len, rows))
            if self.done:
                return
            self.advance(1)

    # -------------------------------------------------------------------------------------------- editing
    def finish(self, row: int, count: int) -> None:
        """End a row after its first `count` new tokens; what came later is forgotten, in the cache too."""
        length = np.asarray(self.state.history.length_B).copy()
        length[row] = min(length[row], self.start_lengths[row] + count)
        done = np.asarray(self.state.done_B).copy()
        done[row] = True
        self.stale |= caches.recurrent(self.spec) and length[row] < int(self.state.history.length_B[row])
        with uninterrupted():
            history = replace(self.state.history, length_B=jnp.asarray(length))
            cache = caches.rewind(self.state.cache, jnp.asarray(length - 1))
            self.state = replace(self.state, cache=cache, history=history, done_B=jnp.asarray(done))

    def extend(self, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int] | None = None) -> None:
        """Append more prompt tokens to every row and make it unfinished again; the cache is kept.

        Raises:
            ValueError: as for a new session.
        """
        rows = [list(map(int, prompt)) for prompt in prompts]
        if len(rows) != self.batch:
            raise ValueError(f"generation: {len(rows)} prompts for a session of {self.batch} rows")
        check_prompts(rows, self.spec.vocab_size, 1)
        tokens, lengths = np.asarray(self.state.history.tokens_BS), np.asarray(self.state.history.length_B)
        whole = [tokens[i, : lengths[i]].tolist() + row for i, row in enumerate(rows)]
        size, new_tokens = self.room(whole, max_new_tokens)
        with uninterrupted():
            if size > tokens.shape[1]:
                self.widen(size)
            size = max(size, tokens.shape[1])
            # the last token was pending: it is read together with what follows
            starts = np.zeros_like(lengths) if self.stale else lengths - 1
            cache = self.state.cache
            if self.stale:
                cache = self.empty_cache(self.batch, size)
            pending = [text[start:] for text, start in zip(whole, starts, strict=True)]
            logits, cache = self.read(cache, size, pending, starts.tolist(), fresh=self.stale)
            self.stale = False
            self.begin(cache, size, whole, new_tokens, logits)


# ------------------------------------------------------------------------------------------------ helpers
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


def new_record(plan: SamplerPlan, batch: int, size: int) -> Record | None:
    """An empty record, if the plan reports log-probabilities."""
    if plan.logprobs is None:
        return None
    shape = (batch, size, plan.logprobs)
    return Record(jnp.zeros((batch, size)), jnp.zeros(shape, jnp.int32), jnp.zeros(shape))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done. None arrives outside the main thread, or where it is ignored."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    caught: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *args: caught.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def generate(spec: ModelSpec, params: Tree, prompts: Sequence[Sequence[int]], **options: Any) -> list[Output]:
    """Complete every prompt. Options are those of `Session`."""
    session = Session(spec, params, prompts, **options)
    session.advance()
    return session.outputs()


def stream(
    spec: ModelSpec, params: Tree, prompts: Sequence[Sequence[int]], **options: Any
) -> Iterator[list[int | None]]:
    """Yield each step's new id of every row, None for rows that have ended. The same tokens as `generate`."""
    return Session(spec, params, prompts, **options).steps()
