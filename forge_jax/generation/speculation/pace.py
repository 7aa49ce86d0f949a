"""Whether drafting pays, measured: how many tokens a second with drafts and without. Lives on the host.

The text does not depend on it (see the package), so it may look at the clock.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from forge_jax.generation.loop import Drafting, State

FIRST = 8  # passes of the first bursts; half as many plain ones are made to have something to compare with
MEMORY = 8  # bursts whose times are remembered
FADE = 0.7  # what an older burst's accepted drafts count for beside the next one's
MARGIN = 0.97  # drafting goes on as long as it is this fast beside plain steps: a clock is not exact


@dataclass(frozen=True)
class Report:
    """What drafts did for a session so far, over all rows.

    passes: of the model. rounds: passes that verified drafts. on: whether drafting goes on; False: it did not pay.
    """

    passes: int
    rounds: int
    proposed: int
    accepted: int
    on: bool

    @classmethod
    def of(cls, drafting: Drafting, on: bool) -> "Report":
        """What was counted so far."""
        passes, rounds = int(drafting.passes), int(drafting.rounds)
        return cls(passes, rounds, int(drafting.proposed), int(drafting.accepted), on)

    @property
    def acceptance(self) -> float:
        """The share of drafts that were accepted; 0 without any."""
        return self.accepted / max(self.proposed, 1)

    @property
    def per_round(self) -> float:
        """Drafts accepted a round, over all rows together."""
        return self.accepted / max(self.rounds, 1)

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.accepted} of {self.proposed} drafts accepted ({self.acceptance:.0%}), "
            f"{self.per_round:.1f} a round, {self.passes} passes of the model{'' if self.on else ', switched off'}"
        )


class Pace:
    """Measures bursts of passes and says how each next one is to be run.

    The time of a plain step and that of a round are the least of the last bursts: what else a machine does can only
    add to them. Drafting stops when a round gives fewer tokens than plain steps of the same time, and is tried again
    after a pause that doubles each time: what it may cost in a long text is bounded.
    """

    def __init__(self, burst: int, always: bool = False) -> None:
        """`always`: draft whether it pays or not."""
        self.burst, self.always, self.on = burst, always, True
        self.steps: deque[float] = deque(maxlen=MEMORY)  # seconds of a plain step, by burst
        self.rounds: deque[float] = deque(maxlen=MEMORY)  # and of a round
        self.gain = np.zeros(2)  # faded sums of accepted drafts a row, and of rounds
        self.pause, self.left = 4, 0  # bursts without drafts: of the next pause, and of this one

    def next(self) -> tuple[int, bool]:
        """Passes of the next burst, and whether it drafts."""
        if not self.on or self.always:
            return self.burst, self.on
        if self.gain[1] and not self.steps:
            return FIRST // 2, False
        return (FIRST if len(self.rounds) < 2 else self.burst), True

    def run(self, burst: Callable[[int, bool], State], before: State) -> State:
        """Run a burst, measure it and draw the conclusions."""
        passes, drafts = self.next()
        counts = before.drafting and counted(before.drafting)  # read first: the burst takes over the arrays
        rows = int((~np.asarray(before.done_B)).sum())
        start = time.perf_counter()
        after = jax.block_until_ready(burst(passes, drafts))
        seconds = time.perf_counter() - start
        if counts is not None and after.drafting is not None:
            passes, rounds, accepted = counted(after.drafting) - counts
            self.learn(int(passes - rounds), int(rounds), accepted / max(rows, 1), seconds)
        return after

    def learn(self, steps: int, rounds: int, accepted: float, seconds: float) -> None:
        """Take in a burst; `accepted` drafts a row."""
        if steps and not rounds:
            self.steps.append(seconds / steps)
        elif rounds and (self.steps or not steps):
            self.rounds.append((seconds - (steps * min(self.steps) if steps else 0.0)) / rounds)
        self.gain = FADE * self.gain + (accepted, rounds)
        if not self.on:
            self.left -= 1
            self.on = self.left <= 0
            if self.on:  # as if there had been no drafts before
                self.rounds.clear()
                self.gain[:] = 0
        elif not self.always and len(self.rounds) > 1 and self.steps and self.pays() < MARGIN:
            self.on, self.left, self.pause = False, self.pause, 2 * self.pause

    def pays(self) -> float:
        """How many times as fast rounds are as plain steps."""
        return (1 + self.gain[0] / self.gain[1]) * min(self.steps) / max(min(self.rounds), 1e-9)


def counted(drafting: Drafting) -> np.ndarray:
    """Passes, rounds and accepted drafts so far."""
    return np.array([int(drafting.passes), int(drafting.rounds), int(drafting.accepted)])
