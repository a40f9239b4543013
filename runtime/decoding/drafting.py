"""When drafting pays: how often drafts stood, and what steps of one row and of several took."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from rrt_edge.runtime.running.runner import NEVER

EDGES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # drafts are counted together whose certainty lies between two
PRIOR = 4.0  # drafts that a certainty counts for, as if so large a share of them had stood
MEMORY = 0.98  # of the counts, at each draft of the same certainty
PROBE = 32  # drafts after which one is made that is less certain than those that pay
RELATIVE = (1.0, 1.3, 1.8, 2.1, 2.65, 3.0, 3.5, 4.0)  # time of a step by its rows, until it is measured
SMOOTH = 0.9  # of the running means of times
LEAST_RUN, MOST_RUN = 64, 1024  # tokens after which the way that lost is tried again; twice as many each time it loses
PIPED_TRIAL = 8  # tokens of such a trial; one is enough to time full depth without drafts


@dataclass
class _Ways:
    """Seconds a token took without drafts and with them, and the way that is being gone."""

    seconds: list[float | None] = field(default_factory=lambda: [None, None])
    drafts: bool = False
    tokens: int = 0  # of the run under way
    most: int = 1
    run: int = LEAST_RUN

    def choose(self) -> bool:
        plain, piped = self.seconds
        if plain is None or piped is None:
            self.drafts, self.tokens, self.most = plain is not None, 0, PIPED_TRIAL
        elif self.tokens >= self.most:
            better = piped < plain
            if better != self.drafts:  # a trial has ended, or times have changed
                self.drafts, self.most = better, self.run
            else:
                self.run = min(2 * self.run, MOST_RUN)
                self.drafts, self.most = not better, 1 if better else PIPED_TRIAL
            self.tokens = 0
        return self.drafts

    def observe(self, drafts: bool, seconds: float) -> None:
        before = self.seconds[drafts]
        self.seconds[drafts] = seconds if before is None else SMOOTH * before + (1 - SMOOTH) * seconds
        self.tokens += drafts == self.drafts


class Drafting:
    """Decides which drafts are made; shared by the replies of a model, so that none has to learn anew.

    A draft takes one row more in the steps until it is judged, and saves the steps that bring the next token to the
    depth it was drafted at, if it stands.
    """

    def __init__(self) -> None:
        self._stood, self._judged = [0.0] * len(EDGES), [0.0] * len(EDGES)
        self._steps: dict[int, float] = {}  # seconds by rows
        self._ways: dict[int, _Ways] = {}  # by the depth that tokens are read at
        self._cutoffs = 0

    def pays(self, last: int) -> bool:
        """Whether the next token goes through the pipeline: drafts and all, that was faster of late."""
        return self._ways.setdefault(last, _Ways()).choose()

    def took(self, last: int, drafts: bool, seconds: float) -> None:
        """A token read at depth `last` took so long."""
        self._ways.setdefault(last, _Ways()).observe(drafts, seconds)

    def stepped(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        before = self._steps.get(rows, seconds)
        self._steps[rows] = SMOOTH * before + (1 - SMOOTH) * seconds

    def judged(self, certainty: float, stood: bool) -> None:
        """A draft of so much certainty stood or not."""
        index = _bin(certainty)
        self._stood[index] = MEMORY * self._stood[index] + stood
        self._judged[index] = MEMORY * self._judged[index] + 1

    def cutoff(self, depth: int, last: int, rows: int) -> float:
        """The least certainty that pays for a draft made at a depth, judged at depth `last`, in steps of so many rows
        without it; above 1 where none does."""
        here, more = self._seconds(rows), self._seconds(rows + 1)
        share = (last - depth) * max(more - here, 0.0) / (depth * here / rows)
        least = len(EDGES)
        while least and self._chance(least - 1) > share:
            least -= 1
        self._cutoffs += 1
        if self._cutoffs % PROBE == 0:
            least = max(least - 1, 0)
        return EDGES[least] if least < len(EDGES) else NEVER

    def _chance(self, index: int) -> float:
        """How likely a draft between two edges stands."""
        middle = (EDGES[index] + (*EDGES, 1.0)[index + 1]) / 2
        return (PRIOR * middle + self._stood[index]) / (PRIOR + self._judged[index])

    def _seconds(self, rows: int) -> float:
        """Seconds of a step of so many rows: as measured, or from the nearest number that was."""
        if rows in self._steps or not self._steps:
            return self._steps.get(rows, _relative(rows))
        nearest = min(self._steps, key=lambda known: (abs(known - rows), known))
        return self._steps[nearest] * _relative(rows) / _relative(nearest)


def _bin(certainty: float) -> int:
    return max(bisect_right(EDGES, certainty) - 1, 0)


def _relative(rows: int) -> float:
    known = len(RELATIVE)
    return RELATIVE[rows - 1] if rows <= known else RELATIVE[-1] * rows / known
