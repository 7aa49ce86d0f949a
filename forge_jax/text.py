"""Text in, text out, over a session: encoding, streaming, stop strings, figures of speed. Part of the front."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

from converters.tokenizer import StopStrings, StreamDecoder, Tokenizer
from forge_jax.generation import Session
from forge_jax.generation.asked import Choices
from forge_jax.generation.results import FinishReason, Output
from forge_jax.generation.speculation import Drafter, DraftModel, Report
from forge_jax.loading import Model
from forge_jax.sampling import Constraint, SamplingParams

Message = Mapping[str, Any]
GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True)
class Stats:
    """Figures of one generation; seconds of wall time, tokens over all rows, bytes of the process's peak memory."""

    prompt_tokens: int
    new_tokens: int
    prompt_seconds: float
    seconds: float
    peak_bytes: int
    speculation: Report | None = None

    def __str__(self) -> str:
        """One line: prompt tok/s, generation tok/s, time to first token, peak memory, and what drafts did."""
        decoding = max(self.seconds - self.prompt_seconds, 1e-9)
        return (
            f"prompt {self.prompt_tokens} tokens, {self.prompt_tokens / max(self.prompt_seconds, 1e-9):.1f} tok/s | "
            f"generation {self.new_tokens} tokens, {max(self.new_tokens - 1, 0) / decoding:.1f} tok/s | "
            f"time to first token {self.prompt_seconds:.3f} s | peak memory {self.peak_bytes / 1e9:.2f} GB"
            + ("" if self.speculation is None else f" | {self.speculation}")
        )


@dataclass(frozen=True)
class Reply:
    """One completed text. `ids` are all new ids, a stop id included; `text` has no stop string and no special token."""

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[dict[int, float], ...] | None = None


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def need_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        ValueError: it has none.
    """
    if model.tokenizer is None:
        raise ValueError(
            f"{model.path}: the checkpoint has no tokenizer; put tokenizer.json or tokenizer.model beside it, "
            "or work with token ids"
        )
    return model.tokenizer


def encode(model: Model, prompt: str | Sequence[Message], *, tools: Sequence[Any] | None = None) -> list[int]:
    """The ids of a text, or of a chat through the model's template."""
    tokenizer = need_tokenizer(model)
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    text = tokenizer.apply_chat_template(list(prompt), tools=list(tools) if tools else None)
    return tokenizer.encode(text, add_special=False)


def stop_ids(model: Model) -> tuple[int, ...]:
    """The ids that end a text: the tokenizer's, and those of the checkpoint's generation config."""
    given = model.generation.get("eos_token_id", model.config.get("eos_token_id"))
    listed = given if isinstance(given, list) else [] if given is None else [given]
    known = model.tokenizer.eos_ids if model.tokenizer is not None else ()
    return tuple(sorted({i for i in (*known, *listed) if isinstance(i, int) and 0 <= i < model.spec.logits}))


def drafter(model: Model, draft: Drafter | Model | None) -> Drafter | None:
    """What drafts for a model; a loaded model drafts if its tokenizer knows the same tokens.

    Raises:
        ValueError: it knows others.
    """
    return draft_model(model, draft) if isinstance(draft, Model) else draft


def draft_model(model: Model, draft: Model) -> DraftModel:
    """A loaded model as a drafter. Errors as in `drafter`."""
    if model.tokenizer and draft.tokenizer and not model.tokenizer.agrees(draft.tokenizer):
        raise ValueError(
            f"{draft.path}: its tokenizer knows other tokens than that of {model.path}; "
            "a draft model must have the same vocabulary as the model that it drafts for"
        )
    return DraftModel(draft.spec, draft.params)


def known_ids(model: Model) -> int:
    """How many ids the tokenizer knows; all that have logits where there is none."""
    return model.spec.logits if model.tokenizer is None else model.tokenizer.vocab_size


class Texts:
    """The rows of a session as texts in the making."""

    def __init__(self, model: Model, session: Session, prompts: list[list[int]], stop: Sequence[str]) -> None:
        self.session = session
        tokenizer = need_tokenizer(model)
        self.decoders = [StreamDecoder(tokenizer, context=prompt) for prompt in prompts]
        self.stops = [StopStrings(stop) for _ in prompts]
        self.ended: list[FinishReason | None] = [None for _ in prompts]
        self.read = [0 for _ in prompts]
        self.texts = ["" for _ in prompts]

    def take(self) -> list[str]:
        """The new text of every row since the last call. A row that meets a stop string is ended there."""
        out = []
        done = self.session.done_rows()
        for row, ids in enumerate(self.session.ids()):
            piece = ""
            while self.ended[row] is None and self.read[row] < len(ids):
                token = ids[self.read[row]]
                self.read[row] += 1
                if token in self.session.stop_ids:
                    self.ended[row] = "stop"
                    break
                text, met = self.stops[row].push(self.decoders[row].push(token))
                piece += text
                if met:
                    self.ended[row] = "stop"
                    self.session.finish(row, self.read[row])
            else:
                if self.ended[row] is None and done[row]:
                    self.ended[row] = self.session.finish_reason(row)
            if self.ended[row] is not None:
                piece += self.rest(row)
            self.texts[row] += piece
            out.append(piece)
        return out

    def rest(self, row: int) -> str:
        """What was held back, once a row has ended; nothing twice."""
        decoder, stops = self.decoders[row], self.stops[row]
        text, met = stops.push(decoder.flush())
        return text if met else text + stops.flush()

    def replies(self) -> list[Reply]:
        """Every row, complete."""
        return [self.reply(row, output) for row, output in enumerate(self.session.outputs())]

    def reply(self, row: int, output: Output) -> Reply:
        """One row, complete."""
        reason = self.ended[row] or "length"
        return Reply(self.texts[row], output.ids, reason, output.logprobs, output.top_logprobs)


class TextStream:
    """Iterates over pieces of text as they are made; `stats` tells the speed so far, `reply` the result.

    Stop iterating (or interrupt) at any time: `session` stays usable, its cache holds what was made.
    """

    def __init__(self, model: Model, prompt: list[int], session: Session, stop: Sequence[str], start: float) -> None:
        self.session = session
        self.texts = Texts(model, session, [prompt], stop)
        self.prompt_tokens = len(prompt)
        self.start, self.first, self.last = start, time.perf_counter(), time.perf_counter()

    def __iter__(self) -> Iterator[str]:
        while True:
            piece = self.texts.take()[0]
            self.last = time.perf_counter()
            if piece:
                yield piece
            if self.session.done:
                return
            self.session.advance(self.session.stride)

    @property
    def stats(self) -> Stats:
        """The figures so far."""
        made = len(self.session.ids()[0])
        return Stats(
            self.prompt_tokens,
            made,
            self.first - self.start,
            self.last - self.start,
            peak_bytes(),
            self.session.speculation,
        )

    @property
    def reply(self) -> Reply:
        """The text so far as a reply."""
        return self.texts.replies()[0]


def begin(
    model: Model,
    rows: list[list[int]],
    max_new_tokens: int | None,
    sampling: SamplingParams | Sequence[SamplingParams],
    draft: Drafter | Model | None,
    adapters: Sequence[int] | None,
    choices: Choices,
) -> Session:
    """A session of a model, whose tokenizer, if there is one, says what ends a text and which ids there are."""
    return Session(
        model.spec,
        model.params,
        rows,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids(model),
        known_ids=known_ids(model),
        vocabulary=model.vocabulary,
        programs=model.programs,
        draft=drafter(model, draft),
        adapters=adapters,
        **choices,
    )


def stream(
    model: Model,
    prompt: str | Sequence[Message] | Sequence[int],
    *,
    max_new_tokens: int | None = 256,
    sampling: SamplingParams = GREEDY,
    constraint: Constraint | None = None,
    stop: Sequence[str] = (),
    draft: Drafter | Model | None = None,
    adapters: Sequence[int] | None = None,
    **choices: Unpack[Choices],
) -> TextStream:
    """Complete one prompt (a text, a chat, or ids) piece by piece. Options as in `complete`, but for `n`, which is 1.

    Raises:
        ValueError: as `complete`, or another `n`.
    """
    if (n := choices.get("n", 1)) != 1:
        raise ValueError(f"stream: n={n} texts, but a stream is of one; use `complete`, or a stream for each")
    start = time.perf_counter()
    need_tokenizer(model)
    ids = ids_of(model, prompt)
    session = begin(model, [ids], max_new_tokens, constrained(sampling, constraint), draft, adapters, choices)
    return TextStream(model, ids, session, stop, start)


def complete(
    model: Model,
    prompts: Sequence[str | Sequence[Message] | Sequence[int]],
    *,
    max_new_tokens: int | None = 256,
    sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
    constraint: Constraint | None = None,
    stop: Sequence[str] = (),
    draft: Drafter | Model | None = None,
    adapters: Sequence[int] | None = None,
    **choices: Unpack[Choices],
) -> tuple[list[Reply], Stats]:
    """Complete a batch of prompts of any lengths: texts, chats or ids.

    Args:
        max_new_tokens: for each row; None: until the context is full.
        sampling: greedy unless told otherwise; for all rows, or one a row.
        constraint: what every reply must be; for rows that differ, each row's sampling has its own.
        stop: strings that end a row; they are not part of the text.
        draft: what drafts tokens, to be faster: `forge.Lookup()`, `forge.EarlyExit(layers=8)`, a smaller model of the
            same vocabulary (loaded, or as a `forge.DraftModel`). The text is the same.
        adapters: of a model with several (`forge_jax.attach`), which each prompt has; -1 for none.
        choices: further ones of `Session`: n (replies for each prompt, next to each other in the result), seed,
            cache_dtype, layout, held, draft_always, invariant.

    Raises:
        ValueError: an empty prompt, more tokens than the context holds, a draft model of another vocabulary, a
            constraint that is not valid, or choices that do not go together; the message names them.
    """
    start = time.perf_counter()
    need_tokenizer(model)
    rows = [ids_of(model, prompt) for prompt in prompts]
    session = begin(model, rows, max_new_tokens, constrained(sampling, constraint), draft, adapters, choices)
    first = time.perf_counter()
    texts = Texts(model, session, [row for row in rows for _ in range(choices.get("n", 1))], stop)
    while True:
        texts.take()
        if session.done:
            break
        session.advance(max(8, session.stride) if stop else None)
    made = sum(map(len, session.ids()))
    stats = Stats(
        sum(map(len, rows)), made, first - start, time.perf_counter() - start, peak_bytes(), session.speculation
    )
    return texts.replies(), stats


def constrained(
    sampling: SamplingParams | Sequence[SamplingParams], constraint: Constraint | None
) -> SamplingParams | Sequence[SamplingParams]:
    """The sampling of every row with one constraint. ValueError if a row has its own."""
    if constraint is None:
        return sampling
    rows = [sampling] if isinstance(sampling, SamplingParams) else list(sampling)
    if any(row.constraint for row in rows):
        raise ValueError("a constraint for all rows and one in a row's sampling; give one or the other")
    rows = [replace(row, constraint=constraint) for row in rows]
    return rows[0] if isinstance(sampling, SamplingParams) else rows


def ids_of(model: Model, prompt: str | Sequence[Message] | Sequence[int]) -> list[int]:
    """The ids of any kind of prompt."""
    if isinstance(prompt, str):
        return encode(model, prompt)
    if all(isinstance(item, Mapping) for item in prompt):
        return encode(model, [item for item in prompt if isinstance(item, Mapping)])
    return [int(item) for item in prompt if not isinstance(item, Mapping)]
