"""One batch of texts in the making, on the host: which program to call next, and what came out.

A session holds the only reference to its state, which every call donates, so there is never a second cache. An
interrupt never falls between a call and the storing of its result: a session that was interrupted can go on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, device_put

from forge_jax import cache as caches
from forge_jax.garbage import uncollected
from forge_jax.generation.asked import check_held, check_invariant, check_prompts, check_room, wanted
from forge_jax.generation.held import Held, begun, left
from forge_jax.generation.interrupts import uninterrupted
from forge_jax.generation.layouts import Layout, laid_out
from forge_jax.generation.loop import Drafting, State, new_record
from forge_jax.generation.programs import FRUGAL, LOCAL, Programs
from forge_jax.generation.results import FinishReason, Output, outputs
from forge_jax.generation.sizes import BURST, capacity, chunks, compute_dtype, equal_chunks, with_adapters
from forge_jax.generation.speculation import Drafter, Report, rounds
from forge_jax.generation.speculation.pace import Pace
from forge_jax.ops import Context
from forge_jax.params import Tree
from forge_jax.sampling import SamplingParams, Vocabulary, VocabularyLimit, build, matchers_of, start_history
from forge_jax.spec import ModelSpec
from forge_jax.tensor import has_packed

FIRST = 128  # new tokens that a cache has room for before it must grow


class Session:
    """Prompts in, tokens out, more prompts in, ...

    >>> session = Session(spec, params, [[1, 2, 3]], max_new_tokens=20)   # doctest: +SKIP
    >>> session.advance()                                                 # doctest: +SKIP
    >>> session.outputs()[0].ids                                          # doctest: +SKIP
    """

    @uncollected()
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
        cache_dtype: Any = None,
        layout: Layout = "dense",
        held: Held | None = None,
        known_ids: int | None = None,
        vocabulary: Vocabulary | None = None,
        adapters: Sequence[int] | None = None,
        programs: Programs = LOCAL,
        draft: Drafter | None = None,
        draft_always: bool = False,
        invariant: int | None = None,
    ) -> None:
        """Read the prompts and choose the first token of each row.

        Args:
            prompts: ids of each row; lengths may differ.
            max_new_tokens: for all rows, or one a row; None: until the context is full.
            sampling: for all rows, or one a row (of `n` times the prompts).
            stop_ids: ids that end a row.
            n: continuations of each prompt, in neighbouring rows; the prompt is read once.
            seed: for rows whose sampling has none.
            cache_dtype: how keys and values are kept: a dtype, the name of a codec ("int8"), or rules by layer (see
                `forge_jax.cache.policy`); None: in the dtype of the parameters.
            layout: "paged" for rows that share what they begin with (see `forge_jax.generation.layouts`).
            held: what another session has read and left: the beginning of each prompt, which is not read again.
            known_ids: ids from here on are never chosen: rows of the embedding that the tokenizer does not have.
            draft: drafts tokens (`generation.speculation`): faster where it guesses well, the same text always.
            draft_always: go on drafting where the clock says that it does not pay.
            invariant: compute rows one after another (`forge_jax.rowwise`), with room for so many tokens whatever is
                asked: in sessions with the same number, a row has the same bits alone and in any batch.
            vocabulary: the bytes of the tokens; constraints need it.
            adapters: which of several adapters each prompt has, -1 for none; see `forge_jax.lora.attach`.

        Raises:
            ValueError: an empty prompt, an id outside the vocabulary, more tokens than the context holds, or a
                constraint that is not valid.
        """
        self.spec, self.programs = spec, FRUGAL if has_packed(params) and programs is LOCAL else programs
        rows = [list(map(int, prompt)) for prompt in prompts]
        self.params = with_adapters(params, adapters, len(rows), 1)
        check_prompts(rows, spec.vocab_size, n)
        self.batch = len(rows) * n
        self.adapters = np.repeat([-1] * len(rows) if adapters is None else adapters, n).tolist()
        self.matchers = matchers_of(sampling, self.batch, vocabulary, stop_ids)
        self.plan, self.values = build(sampling, self.batch, spec.logits, stop_ids, seed, self.matchers)
        if known_ids is not None and known_ids < spec.logits:
            self.plan = replace(self.plan, processors=(VocabularyLimit(known_ids), *self.plan.processors))
        self.drafter, self.pace, self.compiled = draft, Pace(BURST, draft_always), 0
        if draft is not None:
            draft.check(spec, params, spec.logits if known_ids is None else known_ids)
        self.stale = False  # whether a running state holds tokens that were taken back: the text is then read again
        self.stop_ids = frozenset(int(i) for i in stop_ids)
        kept = caches.policy(cache_dtype, compute_dtype(params))
        slack = BURST + (draft.tokens if draft else 0)
        check_invariant(invariant, layout, draft, adapters, held)
        self.invariant, self.ctx = invariant, Context(apart=invariant is not None)
        self.layout = laid_out(layout, spec, params, self.programs, {"slack": slack, "dtype": kept})
        size, new_tokens = self.room([row for row in rows for _ in range(n)], max_new_tokens)
        drafting = self.no_drafts(len(rows), size)
        if held is None:
            cache, starts = self.layout.planned(len(rows), size), [0] * len(rows)
        else:
            check_held(self.adapters)
            cache, size, starts = begun(spec, held, self.layout, rows, size)
        pending = [row[start:] for row, start in zip(rows, starts, strict=True)]
        logits, cache, drafting = self.read(cache, drafting, size, pending, starts, fresh=held is None)
        if n > 1:
            logits, cache = jnp.repeat(logits, n, axis=0), self.layout.repeat(cache, n)
            drafting = drafting and rounds.repeat(drafting, n)
            self.params = with_adapters(params, adapters, len(rows), n)
        self.begin(cache, drafting, size, [row for row in rows for _ in range(n)], new_tokens, logits)

    def no_drafts(self, rows: int, size: int) -> Drafting | None:
        """What drafting carries before the first token; None without a drafter."""
        drafter = self.drafter
        return None if drafter is None else rounds.start(drafter, self.spec, rows, size, compute_dtype(self.params))

    def room(self, rows: list[list[int]], max_new_tokens: int | Sequence[int] | None) -> tuple[int, list[int]]:
        """The cache size to begin with, and the new tokens of each row. More room is made when it is needed."""
        new_tokens = wanted(max_new_tokens, list(map(len, rows)), self.spec.max_seq_len)
        for row, new in zip(rows, new_tokens, strict=True):
            capacity(len(row) + new, self.spec.max_seq_len)  # all of it must fit the context in the end
            check_room(len(row) + new, self.invariant)
        if self.invariant is not None:
            return capacity(self.invariant, self.spec.max_seq_len), new_tokens
        first = min(max(map(len, rows)) + FIRST, self.spec.max_seq_len)  # whatever is asked: one program for all
        return capacity(first, self.spec.max_seq_len), new_tokens

    def begin(
        self,
        cache: caches.Cache,
        drafting: Drafting | None,
        size: int,
        rows: list[list[int]],
        new_tokens: list[int],
        logits: Array,
    ) -> None:
        """Start the history after the prompts `rows`, with room for `size` tokens; choose the first token of each."""
        tokens = np.zeros((self.batch, size), np.int32)
        for buffer, row in zip(tokens, rows, strict=True):
            buffer[: len(row)] = row
        self.start_lengths = np.array(list(map(len, rows)), np.int32)
        limit = self.start_lengths + np.array(new_tokens, np.int32)  # put, not computed: that is a program to compile
        done, never = device_put((limit <= self.start_lengths, np.zeros(self.batch, bool)))
        tokens_BS, length_B, limit_B = device_put((tokens, self.start_lengths.copy(), limit))
        history = start_history(self.plan, tokens_BS, length_B, self.spec.logits)
        record = new_record(self.plan, self.batch, size)
        state = State(cache, history, limit_B, done, never, record, drafting)
        self.state = self.programs.choose(self.plan, self.values, logits, state)
        self.check()

    # -------------------------------------------------------------------------------------------- reading
    def read(
        self,
        cache: Any,
        drafting: Drafting | None,
        size: int,
        rows: list[list[int]],
        starts: Sequence[int],
        *,
        fresh: bool,
    ) -> tuple[Array, caches.Cache, Drafting | None]:
        """Put tokens of every row through the model, from the order `starts` on. Returns the last logits, the cache.

        No piece is longer than `size`, the tokens that the cache is for.
        """
        logits = device_put(np.zeros((len(rows), self.spec.logits), np.float32))
        stops = [start + len(row) for start, row in zip(starts, rows, strict=True)]
        if fresh:
            cache = self.layout.admit(cache, rows, self.adapters[:: self.batch // len(rows)])
        else:
            cache = self.layout.room(cache, starts, stops)
        at = 0
        for width in (chunks if self.invariant is None else equal_chunks)(max(map(len, rows)), size):
            tokens, order = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
            for i, row in enumerate(rows):
                piece = row[at : at + width]
                tokens[i, : len(piece)] = piece
                order[i, : len(piece)] = np.arange(len(piece)) + starts[i] + at
            ctx = replace(self.ctx, fresh=fresh and at == 0)
            piece = (cache, tokens, order, logits, ctx)
            if self.drafter is None or drafting is None:
                logits, cache = self.programs.prefill(self.spec, self.params, *piece)
            else:
                held = (self.drafter, drafting)
                logits, cache, drafting = self.programs.learn(self.spec, self.params, *held, *piece)
            at += width
        return logits, cache, drafting

    # -------------------------------------------------------------------------------------------- decoding
    def advance(self, count: int | None = None) -> bool:
        """Make up to `count` more tokens a row (None: to the end). Returns whether a row is still unfinished.

        Raises:
            ValueError: the logits of a row are not numbers.
        """
        left = self.spec.max_seq_len if count is None else count
        if self.drafter is not None:
            return self.speculate(self.drafter, left)
        while left > 0 and not self.done:
            burst = min(left, BURST)
            with uninterrupted():
                self.make_room(burst)
                self.state = self.programs.advance(
                    self.spec, self.plan, self.params, self.values, self.state, np.int32(burst), self.ctx
                )
            self.check()
            left -= burst
        return not self.done

    def speculate(self, drafter: Drafter, count: int) -> bool:
        """`advance` with drafts."""
        ends = np.minimum(self.lengths() + count, self.spec.max_seq_len).astype(np.int32)

        def burst(passes: int, drafts: bool) -> State:
            near = np.minimum(ends, self.lengths() + BURST).astype(np.int32)  # what `make_room` has made room for
            given = (self.spec, self.plan, self.params, drafter, self.values, self.state, np.int32(passes), near)
            return self.programs.speculate(*given, np.bool_(drafts), self.ctx)

        while ((self.lengths() < ends) & ~np.asarray(self.state.done_B)).any():
            with uninterrupted():
                self.make_room(BURST)
                if (size := self.state.history.tokens_BS.shape[1]) != self.compiled:
                    self.state, self.compiled = burst(0, False), size  # no pass: what is timed is compiled before
                self.state = self.pace.run(burst, self.state)
            self.check()
        return not self.done

    def lengths(self) -> np.ndarray:
        """The tokens of every row."""
        return np.asarray(self.state.history.length_B)

    @property
    def stride(self) -> int:
        """How many tokens a row one pass of the model may give."""
        return 1 if self.drafter is None else 1 + self.drafter.tokens

    @property
    def speculation(self) -> Report | None:
        """What drafts did so far; None without a drafter."""
        counted = self.state.drafting
        return None if counted is None else Report.of(counted, self.pace.on)

    def make_room(self, count: int) -> None:
        """Double the cache if the next `count` tokens would not fit."""
        size = self.state.history.tokens_BS.shape[1]
        unfinished = np.where(np.asarray(self.state.done_B), 0, np.asarray(self.state.history.length_B))
        limit = np.asarray(self.state.limit_B)
        need = int(np.minimum(unfinished + count, limit).max())
        if need > size:
            self.widen(capacity(need, self.spec.max_seq_len))
        starts = np.maximum(unfinished - 1, 0)  # the last token is pending
        stops = np.maximum(np.minimum(unfinished + count, limit) - 1, starts)
        cache = self.layout.room(self.state.cache, starts.tolist(), np.where(unfinished, stops, 0).tolist())
        self.state = replace(self.state, cache=cache)

    def widen(self, size: int) -> None:
        """Copy the state into a larger one."""
        old = self.state
        cache = self.layout.widen(old.cache, self.batch, size)
        empty = np.zeros((self.batch, size), np.int32)
        history = replace(old.history, tokens_BS=jnp.asarray(empty))
        record, drafting = new_record(self.plan, self.batch, size), self.no_drafts(self.batch, size)
        wider = replace(old, cache=cache, history=history, record=record, drafting=drafting)
        self.state = caches.widen(replace(old, cache=cache), wider)

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return all(self.done_rows())

    def done_rows(self) -> list[bool]:
        """Which rows have ended."""
        return np.asarray(self.state.done_B).tolist()

    def check(self) -> None:
        """End rows that had no token to choose since their constrained text is complete, and no id to say so.

        Raises:
            ValueError: a row's logits were not numbers, or no token could be chosen.
        """
        bad = np.flatnonzero(np.asarray(self.state.nan_B)).tolist()
        rows = self.ids() if bad else []
        for row in bad:
            made, matcher = np.array(rows[row][:-1], np.int32), self.matchers[row]  # the last one has no meaning
            if matcher is not None and (fault := matcher.fault(made)):
                raise ValueError(f"generation: row {row}: {fault}")
            if matcher is None or self.stop_ids or not matcher.complete(made):
                raise ValueError(
                    f"generation: rows {bad} gave NaN or infinite logits, or every token is banned: the weights or "
                    "the dtype are at fault (try float32), or the sampling leaves no token"
                )
            self.finish(row, len(made))
        if bad:
            self.state = replace(self.state, nan_B=jnp.zeros_like(self.state.nan_B))

    # -------------------------------------------------------------------------------------------- results
    def ids(self) -> list[list[int]]:
        """The new ids of every row so far."""
        tokens, lengths = np.asarray(self.state.history.tokens_BS), np.asarray(self.state.history.length_B)
        return [tokens[i, s:e].tolist() for i, (s, e) in enumerate(zip(self.start_lengths, lengths, strict=True))]

    def outputs(self) -> list[Output]:
        """Every row's new ids, reason to end, and log-probabilities if they were asked for."""
        reasons: list[FinishReason | None] = [self.finish_reason(row) for row in range(self.batch)]
        return outputs(self.ids(), reasons, self.start_lengths.tolist(), self.state.record)

    def finish_reason(self, row: int) -> FinishReason | None:
        """Why a row ended: at a stop id or with a constrained text that is complete, or for its length."""
        if not self.done_rows()[row]:
            return None
        length, matcher = int(np.asarray(self.state.history.length_B)[row]), self.matchers[row]
        made = np.asarray(self.state.history.tokens_BS)[row, self.start_lengths[row] : length]
        stopped = bool(made.size) and int(made[-1]) in self.stop_ids
        return "stop" if stopped or (matcher and matcher.complete(made)) else "length"

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
            self.advance(self.stride)

    def held(self) -> Held:
        """What has been read so far, to begin other sessions with: everything but the pending token of each row."""
        if self.stale:
            raise ValueError("generation: tokens were taken back from a running state; extend the session first")
        check_held(self.adapters)
        tokens, lengths = np.asarray(self.state.history.tokens_BS), self.lengths()
        texts = [row[: n - 1].tolist() for row, n in zip(tokens, lengths, strict=True)]
        return left(self.layout, self.state.cache, texts, tokens.shape[1])

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
            cache, drafting = caches.rewind(self.state.cache, jnp.asarray(length - 1)), self.state.drafting
            if self.drafter is not None and drafting is not None:
                drafting = replace(drafting, memory=self.drafter.rewind(drafting.memory, jnp.asarray(length - 1)))
            done_B = jnp.asarray(done)
            self.state = replace(self.state, cache=cache, history=history, done_B=done_B, drafting=drafting)

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
            cache, drafting = self.state.cache, self.state.drafting
            if self.stale:
                cache = self.layout.planned(self.batch, size)
                drafting = drafting and rounds.forget(drafting, self.no_drafts(self.batch, size))
            pending = [text[start:] for text, start in zip(whole, starts, strict=True)]
            logits, cache, drafting = self.read(cache, drafting, size, pending, starts.tolist(), fresh=self.stale)
            self.stale = False
            self.begin(cache, drafting, size, whole, new_tokens, logits)
