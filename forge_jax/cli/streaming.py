"""Watches text in the making for the command line: a notice while nothing is to be seen, and the figures afterwards.

The first text of a process waits for programs to be compiled. That time is told apart, or the figures would be of the
compiler and not of the model.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any

import jax

from forge_jax.text import Stats, TextStream

COMPILING = "/jax/core/compile/"
NOTICE = "reading the prompt; the first time takes longer, programs are compiled ..."


class Watch:
    """Adds up the seconds that jax spends on compiling while the block is open."""

    def __init__(self) -> None:
        self.compiling = 0.0
        self.before_text = 0.0

    def __enter__(self) -> "Watch":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILING):
            self.compiling += duration_secs

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Show a notice on a terminal until the block ends."""
        show = sys.stderr.isatty()
        if show:
            print(NOTICE, end="", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            if show:
                print("\r\033[K", end="", file=sys.stderr, flush=True)

    def begin(self, make: Callable[[], TextStream]) -> TextStream:
        """Start a text, and make its second token too: so no program is compiled in the middle of what is shown."""
        self.compiling = 0.0
        with self.waiting():
            stream = make()
            self.before_text = self.compiling
            stream.session.advance(1)
        return stream

    def line(self, stats: Stats) -> str:
        """The figures of a text that `begin` started, without the time of compiling, which is told at the end."""
        plain = replace(
            stats,
            prompt_seconds=max(stats.prompt_seconds - self.before_text, 0.0),
            seconds=max(stats.seconds - self.compiling, 0.0),
        )
        return f"{plain} | and {self.compiling:.1f} s of compiling" if self.compiling >= 0.05 else str(plain)

    def whole_line(self, stats: Stats) -> str:
        """The figures of texts made in one go, the time of compiling within."""
        return f"{stats} | {self.compiling:.1f} s of it compiling" if self.compiling >= 0.05 else str(stats)
