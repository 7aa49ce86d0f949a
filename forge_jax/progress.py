"""A progress bar for loading that tells its stages apart, and the seconds each stage took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm.auto import tqdm


class Progress:
    """Counts bytes and adds up the seconds of each stage ("reading", "decoding", "placing", "compiling").

    Stages nest: an inner stage's time is taken out of the outer one.
    """

    def __init__(self, total: int, title: str, *, show: bool) -> None:
        self.seconds: dict[str, float] = {}
        self.open: list[tuple[str, float]] = []
        self.bar = tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=not show, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def advance(self, nbytes: int) -> None:
        """Count bytes of the checkpoint as done."""
        self.bar.update(nbytes)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as part of a stage, and show the stage's name beside the bar."""
        start = time.perf_counter()
        self.seconds.setdefault(name, 0.0)
        if self.open:
            outer, since = self.open[-1]
            self.seconds[outer] += start - since
        self.open.append((name, start))
        self.bar.set_postfix_str(name, refresh=False)
        try:
            yield
        finally:
            end = time.perf_counter()
            name, since = self.open.pop()
            self.seconds[name] += end - since
            if self.open:
                self.open[-1] = (self.open[-1][0], end)
