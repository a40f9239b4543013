"""When drafting pays: how often drafts stood, and how long steps of one row and more took, and tokens either way."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from rrt_edge.runtime.running.runner import NEVER

EDGES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # drafts are counted together whose certainty lies between two
PRIOR = 4.0  # drafts that a certainty counts for, as if so large a share of them had stood
MEMORY = 0.95  # of the counts, at each draft of the same certainty
FADED = 0.25  # of the counts, when the way with drafts is tried again
PROBE = 32  # drafts after which one is made however uncertain it is
RELATIVE = (1.0, 1.3, 1.8, 2.1, 2.65, 3.0, 3.5, 4.0)  # time of a step by its rows, until it is measured
STEPS, TOKENS = 5, 20  # times of which the running means are about the mean
OUTLIER = 2.0  # a time counts for no more than so many times the mean: the machine did something else
LEAST_RUN, MOST_RUN = 64, 1024  # tokens after which the way that lost is tried again; twice as many each time it loses
TRIAL = 16  # tokens of such a trial; one is enough to time full depth without drafts


@dataclass
class _Mean:
    """A running mean of times, the last of which count most."""

    most: int
    value: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        self.count = min(self.count + 1, self.most)
        seconds = min(seconds, OUTLIER * self.value) if self.value else seconds
        self.value += (seconds - self.value) / self.count


@dataclass
class _Ways:
    """Seconds that tokens took without drafts and with them, and the way that is being gone."""

    seconds: list[_Mean] = field(default_factory=lambda: [_Mean(TOKENS), _Mean(TOKENS)])
    leaves: bool = False  # whether tokens may leave early
    drafts: bool = False
    is_trial: bool = False
    tokens: int = 0  # of the run under way
    most: int = 1
    run: int = LEAST_RUN

    @property
    def ended(self) -> bool:
        """Whether the run under way has had its tokens."""
        return self.tokens >= self.most

    def next(self) -> None:
        """Begin another run: a trial of the other way behind a run, and behind a trial the way that was faster."""
        if self.is_trial:
            plain, piped = self.seconds
            if (piped.value < plain.value) == self.drafts:
                self.run = LEAST_RUN
            else:
                self.drafts = not self.drafts
            self.most, self.run = self.run, min(2 * self.run, MOST_RUN)
        else:
            self.drafts = not self.drafts
            self.seconds[self.drafts] = _Mean(TOKENS)
            self.most = TRIAL if self.drafts or self.leaves else 1
        self.is_trial, self.tokens = not self.is_trial, 0

    def observe(self, drafts: bool, seconds: float) -> None:
        self.seconds[drafts].add(seconds)
        self.tokens += drafts == self.drafts


class Drafting:
    """Decides which drafts are made; shared by the replies of a model, so that none has to learn anew.

    A draft is a row more in each step until it is judged. If it stands, so many steps are saved.
    """

    def __init__(self) -> None:
        self._stood, self._judged = [0.0] * len(EDGES), [0.0] * len(EDGES)
        self._steps: dict[tuple[int, int], _Mean] = {}  # seconds by sequences and rows
        self._ways: dict[tuple[int, bool], _Ways] = {}  # by the depth of reading, and whether tokens may leave
        self._cutoffs = 0

    def pays(self, last: int, leaves: bool = False) -> bool:
        """Whether the next token, read at depth `last` or where it may leave, comes sooner in a pipeline, drafts and
        all."""
        ways = self._of(last, leaves)
        if ways.ended:
            ways.next()
            if ways.is_trial and ways.drafts:
                self._fade()
        return ways.drafts

    def took(self, last: int, drafts: bool, seconds: float, leaves: bool = False) -> None:
        """A token read at depth `last`, or where it may leave, took so long."""
        self._of(last, leaves).observe(drafts, seconds)

    def _of(self, last: int, leaves: bool) -> _Ways:
        return self._ways.setdefault((last, leaves), _Ways(leaves=leaves))

    def stepped(self, rows: int, seconds: float, sequences: int = 1) -> None:
        """A step of so many rows, of so many sequences, took so long."""
        self._steps.setdefault((sequences, rows), _Mean(STEPS)).add(seconds)

    def judged(self, certainty: float, stood: bool) -> None:
        """A draft of so much certainty stood or not."""
        index = max(bisect_right(EDGES, certainty) - 1, 0)
        self._stood[index] = MEMORY * self._stood[index] + stood
        self._judged[index] = MEMORY * self._judged[index] + 1

    def cutoff(self, rows: int, sequences: int = 1) -> float:
        """The least certainty that pays for a draft in steps of so many rows without it, of so many sequences; `NEVER`
        where none does.

        The draft costs what a step of one row more takes longer, and saves its share of a step.
        """
        self._cutoffs += 1
        if self._cutoffs % PROBE == 0:
            return 0.0
        rows = max(rows, 1)
        here, more = self._seconds(rows, sequences), self._seconds(rows + 1, sequences)
        cost = (more - here) / (here / rows)
        least = len(EDGES)
        while least and self._chance(least - 1) > cost:
            least -= 1
        return EDGES[least] if least < len(EDGES) else NEVER

    def verdict(self, token: int, draft: int) -> int:
        """The token that follows where full depth says `token` and `draft` is on its way: full depth's, always.

        What simulates an acceptance says otherwise.
        """
        return token

    def _fade(self) -> None:
        """Believe less of what was measured long ago, perhaps on a busy machine or in another text."""
        self._stood, self._judged = ([FADED * count for count in counts] for counts in (self._stood, self._judged))
        self._steps = {}

    def _chance(self, index: int) -> float:
        """How likely a draft between two edges stands."""
        middle = (EDGES[index] + (*EDGES, 1.0)[index + 1]) / 2
        return (PRIOR * middle + self._stood[index]) / (PRIOR + self._judged[index])

    def _seconds(self, rows: int, sequences: int) -> float:
        """Seconds of a step of so many rows: as measured, or from the nearest number that was."""
        known = dict(self._steps)  # to which other threads may add meanwhile
        steps = {count: mean.value for (several, count), mean in known.items() if several == sequences}
        if not steps:
            return _relative(rows)
        nearest = min(steps, key=lambda count: (abs(count - rows), count))
        return steps[nearest] * _relative(rows) / _relative(nearest)


def _relative(rows: int) -> float:
    known = len(RELATIVE)
    return RELATIVE[rows - 1] if rows <= known else RELATIVE[-1] * rows / known
