"""Whether drafting pays, measured: how many tokens a second with drafts and without. Lives on the host.

The text does not depend on it (see the package), so it may look at the clock.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from forge_jax.generation.loop import Drafting, State

FIRST = 8  # passes of a burst as long as little is known, and of one that only measures
FADE = 0.7  # what an older burst counts for beside the next one
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

    Time is taken to be (plain steps) * step + (rounds) * round, both found by least squares over bursts that fade.
    Drafting stops when a round gives fewer tokens than plain steps of the same time, and is tried again after a pause
    that doubles each time: what it may cost in a long text is bounded.
    """

    def __init__(self, burst: int, always: bool = False) -> None:
        """`always`: draft whether it pays or not."""
        self.burst, self.always = burst, always
        self.products = np.zeros((2, 2))  # sums over bursts of (steps, rounds) x (steps, rounds)
        self.times = np.zeros(2)  # and of (steps, rounds) x seconds
        self.gain = np.zeros(2)  # faded sums of accepted drafts a row, and of rounds
        self.on = True
        self.pause, self.left = 4, 0  # bursts without drafts: of the next pause, and of this one

    def next(self) -> tuple[int, bool]:
        """Passes of the next burst, and whether it drafts."""
        if not self.on or self.always:
            return self.burst, self.on
        if self.products[0, 0] < FIRST and self.products[1, 1] > 0:  # nothing to compare with
            return FIRST // 2, False
        return (FIRST if self.products[1, 1] < FIRST**2 else self.burst), True

    def run(self, burst: Callable[[int, bool], State], before: State) -> State:
        """Run a burst, measure it and draw the conclusions."""
        passes, drafts = self.next()
        counts = before.drafting and counted(before.drafting)  # read first: the burst takes over the arrays
        rows = int((~np.asarray(before.done_B)).sum())
        start = time.perf_counter()
        after = jax.block_until_ready(burst(passes, drafts))
        seconds = time.perf_counter() - start
        if counts is not None and after.drafting is not None:
            made = counted(after.drafting) - counts
            self.learn(np.array([made[0] - made[1], made[1]], float), made[2] / max(rows, 1), seconds)
        return after

    def learn(self, passes: np.ndarray, accepted: float, seconds: float) -> None:
        """Take in a burst of (steps, rounds); `accepted` drafts a row."""
        self.products = FADE * self.products + np.outer(passes, passes)
        self.times = FADE * self.times + passes * seconds
        self.gain = FADE * self.gain + (accepted, passes[1])
        if not self.on:
            self.left -= 1
            self.on = self.left <= 0
            if self.on:  # as if drafts had not been seen before
                self.products[1], self.products[:, 1], self.times[1], self.gain[:] = 0, 0, 0, 0
            return
        step, turn = self.costs()
        if self.always or not step or not turn:
            return
        if (1 + self.gain[0] / self.gain[1]) * step < MARGIN * turn:
            self.on, self.left, self.pause = False, self.pause, 2 * self.pause

    def costs(self) -> tuple[float, float]:
        """Seconds of a step and of a round; 0 for what is not known yet."""
        if np.linalg.det(self.products) > 1e-6 * self.products[0, 0] * self.products[1, 1] > 0:
            step, turn = np.linalg.solve(self.products, self.times)
            return max(float(step), 0.0), max(float(turn), 0.0)
        return 0.0, 0.0


def counted(drafting: Drafting) -> np.ndarray:
    """Passes, rounds and accepted drafts so far."""
    return np.array([int(drafting.passes), int(drafting.rounds), int(drafting.accepted)])
