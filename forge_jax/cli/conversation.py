"""A conversation with a model: messages, and a session whose cache is kept from turn to turn. Prints nothing.

An answer is what would come out if the whole conversation were read anew: the cache is kept only as long as the ids it
holds are the beginning of the conversation's, as the chat template writes it.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from forge_jax import text
from forge_jax.cli import options
from forge_jax.cli.streaming import Watch
from forge_jax.generation import Session
from forge_jax.loading import Model
from forge_jax.text import TextStream

Message = dict[str, str]


class Conversation:
    """Messages so far, and how the next one is answered.

    messages: complete turns only; a question without an answer is as if it had not been asked.
    """

    def __init__(
        self, model: Model, settings: dict[str, int | float | None], stop: Sequence[str], system: str | None
    ) -> None:
        options.sampling(settings)  # raises while nothing has been asked yet
        self.model, self.settings, self.stop = model, settings, stop
        self.messages: list[Message] = []
        self.session: Session | None = None
        self.kept = 0
        self.watch = Watch()
        self.figures = "no answer yet"
        self.set_system(system or "")

    # -------------------------------------------------------------------------------------------- turns
    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer piece by piece. If it is left early, what was yielded is the answer.

        Raises:
            ValueError: the conversation does not fit the context, or the template refuses it.
        """
        return self._answer([*self.messages, {"role": "user", "content": question}])

    def regenerate(self) -> Iterator[str]:
        """Yield another answer to the last question, drawn with the next seed. Else as `ask`.

        Raises:
            ValueError: there is no answer, or it would be the same one.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ValueError("no answer to make anew")
        if not self.settings["temperature"]:
            raise ValueError("at temperature 0 the answer stays the same; /set temperature 0.7")
        self.change("seed", str(int(self.settings["seed"] or 0) + 1))
        return self._answer(self.messages[:-1])

    def _answer(self, messages: list[Message]) -> Iterator[str]:
        pieces: list[str] = []
        complete, stream = False, None
        try:
            with self.watch as watch:
                stream = watch.begin(lambda: self._begin(messages))
                for piece in stream:
                    pieces.append(piece)
                    yield piece
            complete = True
        finally:
            if stream is not None:
                self._note_figures(stream)
            if complete or pieces:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _begin(self, messages: list[Message]) -> TextStream:
        """Read what is new of the conversation, or all of it."""
        start = time.perf_counter()
        ids, limit = text.encode(self.model, messages), self.model.spec.max_seq_len
        new = min(int(self.settings["max-new-tokens"] or 0), limit - len(ids))
        if new < 1:
            raise ValueError(
                f"the conversation has {len(ids)} tokens, the model's context {limit}; /clear starts a new one"
            )
        held = self.held()
        self.kept = len(held) if len(held) < len(ids) and ids[: len(held)] == held else 0
        session, self.session = self.session, None  # a failure below leaves no half-read session behind
        if session is None or not self.kept:
            stream = text.stream(
                self.model,
                ids,
                max_new_tokens=new,
                sampling=options.sampling(self.settings),
                stop=self.stop,
                seed=int(self.settings["seed"] or 0),
            )
            self.session = stream.session
            return stream
        try:
            session.extend([ids[self.kept :]], new)
        except KeyboardInterrupt:
            self.session = session  # an interrupt comes after the work, see `generation.session`
            raise
        self.session = session
        return TextStream(self.model, ids, session, self.stop, start)

    def held(self) -> list[int]:
        """The ids that the session has read or made."""
        if self.session is None:
            return []
        history = self.session.state.history
        return np.asarray(history.tokens_BS)[0, : int(np.asarray(history.length_B)[0])].tolist()

    def _note_figures(self, stream: TextStream) -> None:
        stats = replace(stream.stats, prompt_tokens=stream.prompt_tokens - self.kept)
        self.figures = (
            f"{self.watch.line(stats)}\n{len(self.held())} of {self.model.spec.max_seq_len} tokens of context in use; "
            f"{self.kept} of them were kept from the turn before"
        )

    # -------------------------------------------------------------------------------------------- settings
    def change(self, name: str, value: str) -> None:
        """Change a setting from its text.

        Raises:
            ValueError: no such setting, or a value that is none.
        """
        if name not in options.SETTINGS:
            raise ValueError(f"no setting {name!r}; there are {', '.join(options.SETTINGS)}")
        try:
            read = None if value == "none" else options.SETTINGS[name].read(value)
        except ValueError:
            raise ValueError(f"{name}: {value!r} is not a number") from None
        changed = self.settings | {name: read}
        options.sampling(changed)
        self.settings, self.session = changed, None  # a session keeps the sampling that it began with

    def set_system(self, content: str) -> None:
        """Put a system message first, or take it away if it is empty."""
        rest = self.messages[1:] if self.system() is not None else self.messages
        self.messages = [{"role": "system", "content": content}, *rest] if content else rest

    def system(self) -> str | None:
        """The system message, if there is one."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages = self.messages[:1] if self.system() is not None else []
        self.session = None

    # -------------------------------------------------------------------------------------------- files
    def save(self, path: Path) -> None:
        """Write the messages as JSON. OSError if that cannot be done."""
        path.write_text(json.dumps({"messages": self.messages}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Go on with the messages of a file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is not what `save` writes.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        messages = content.get("messages") if isinstance(content, dict) else None
        good = isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
        if not good or messages is None:
            raise ValueError(f'{path}: expected {{"messages": [{{"role": ..., "content": ...}}, ...]}}')
        self.messages = [{"role": m["role"], "content": m["content"]} for m in messages]
        self.session = None
