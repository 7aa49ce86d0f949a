"""Whether drafting pays, measured: how many tokens a second with drafts and without. Lives on the host.

The text does not depend on it (see the package), so it may look at the clock.
"""

from dataclasses import dataclass


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
