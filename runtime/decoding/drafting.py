"""When drafting pays: how often drafts stood, and how long steps of one row and more took, and tokens either way.

Drafts come from a lesser depth of the model, one by one, or from the text (`Lookup`), any number at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rrt_edge.runtime.decoding.lookup import Lookup
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
GAIN = 0.95  # of the time of a token: rows of a text run together where they promise no more than that
TIMED_AGAIN = 64  # tokens that ran together, after which it is timed again what a token takes without
PASSED_OVER = 64  # times that a text's drafts did not pay, after which their rows' times are measured anew


@dataclass
class Mean:
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

    seconds: list[Mean] = field(default_factory=lambda: [Mean(TOKENS), Mean(TOKENS)])
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
            self.seconds[self.drafts] = Mean(TOKENS)
            self.most = TRIAL if self.drafts or self.leaves else 1
        self.is_trial, self.tokens = not self.is_trial, 0

    def observe(self, drafts: bool, seconds: float) -> None:
        self.seconds[drafts].add(seconds)
        self.tokens += drafts == self.drafts


class ReplyTimes:
    """What the tokens of one reply take without drafts from the text that run together with them.

    Attributes:
        counts: whether the token that came last says so. The first behind others does not: the pipeline was empty.
    """

    def __init__(self) -> None:
        self.counts = False
        self._mean = Mean(TOKENS)
        self._spent = 0.0  # since the last token
        self._together = 0  # tokens that came so since one was timed
        self._is_first = True

    @property
    def seconds(self) -> float | None:
        """Of a token; None where that has to be measured, perhaps again."""
        return self._mean.value if self._mean.count and self._together < TIMED_AGAIN else None

    def add(self, seconds: float) -> None:
        """A step took so long, of which these rows have their share."""
        self._spent += seconds

    def token(self, together: bool) -> None:
        """A token came of these steps, together with others or not."""
        self.counts = not (together or self._is_first)
        if self.counts:
            self.alone(self._spent)
        self._together += together
        self._spent, self._is_first = 0.0, together

    def alone(self, seconds: float) -> None:
        """A token took so long by itself."""
        self._mean.add(seconds)
        self._together = 0


class Drafting:
    """Decides which drafts are made; shared by the replies of a model, so that none has to learn anew.

    A draft is a row more in each step until it is judged. If it stands, so many steps are saved.

    Attributes:
        reads_text: whether drafts come from the text too.
    """

    reads_text = True

    def __init__(self) -> None:
        self._stood, self._judged = [0.0] * len(EDGES), [0.0] * len(EDGES)
        self._steps: dict[tuple[int, int], Mean] = {}  # seconds by sequences and rows
        self._together: dict[tuple[int, int], Mean] = {}  # the same, with several rows of a sequence at a depth
        self._passed_over = 0
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
        self._steps.setdefault((sequences, rows), Mean(STEPS)).add(seconds)

    def stepped_together(self, rows: int, seconds: float, sequences: int = 1) -> None:
        """The same of a step, all rows counted, with several of one sequence at a depth, or one to compare them with:
        the mean of those that a token takes."""
        self._together.setdefault((sequences, rows), Mean(STEPS)).add(seconds)

    def lookup(self) -> Lookup | None:
        """Where a reply's drafts from the text come from; None: there are none."""
        return Lookup() if self.reads_text else None

    def together(self, chances: Sequence[float], last: int, seconds: float, others: int = 0, sequences: int = 1) -> int:
        """How many drafts run through all depths beside the token before them, so that tokens come soonest; 0 where
        they come as soon without.

        Args:
            chances: of each draft to stand, if those before it do.
            last: the depth at which tokens are read.
            seconds: what a token takes without, of a step its share by rows.
            others: rows of other sequences in the same steps.
            sequences: those in the step.
        """
        best, count, tokens, stands = GAIN * seconds, 0, 1.0, 1.0
        steps = _measured(self._together, sequences) or _measured(self._steps, sequences)
        for drafts, chance in enumerate(chances, 1):
            stands *= chance
            tokens += stands
            rows = others + drafts + 1
            each = last * _seconds(steps, rows) * (drafts + 1) / rows / tokens
            if each < best:
                best, count = each, drafts
        if chances and not count:
            self._passed_over += 1
            if self._passed_over % PASSED_OVER == 0:
                self._together = {}
        return count

    def together_once(self, chances: Sequence[float], others: int = 0, sequences: int = 1) -> int:
        """How many drafts run through the first depth beside the token before them, where most tokens leave; 0 also
        until a step without drafts has been timed. The arguments are `together`'s."""
        key = (sequences, others + 1)
        alone = self._together.get(key) or self._steps.get(key)
        return 0 if alone is None else self.together(chances, 1, alone.value / (others + 1), others, sequences)

    def judged(self, certainty: float, stood: bool) -> None:
        """A draft of so much certainty stood or not."""
        index = _index(certainty)
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
        cost, least = self.cost(rows, sequences), len(EDGES)
        while least and self._chance(least - 1) > cost:
            least -= 1
        return EDGES[least] if least < len(EDGES) else NEVER

    def cost(self, rows: int, sequences: int = 1) -> float:
        """The chance to stand that a draft must have to pay, in steps as for `cutoff`."""
        rows = max(rows, 1)
        steps = _measured(self._steps, sequences)
        here, more = _seconds(steps, rows), _seconds(steps, rows + 1)
        return (more - here) / (here / rows)

    def chance(self, certainty: float) -> float:
        """How likely a draft of so much certainty stands."""
        return self._chance(_index(certainty))

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


def _measured(steps: Mapping[tuple[int, int], Mean], sequences: int) -> dict[int, float]:
    """Seconds of steps of so many sequences, by their rows."""
    known = dict(steps)  # to which other threads may add meanwhile
    return {rows: mean.value for (several, rows), mean in known.items() if several == sequences}


def _seconds(steps: Mapping[int, float], rows: int) -> float:
    """Seconds of a step of so many rows: as measured, or from the nearest number that was."""
    if not steps:
        return _relative(rows)
    nearest = min(steps, key=lambda count: (abs(count - rows), count))
    return steps[nearest] * _relative(rows) / _relative(nearest)


def _index(certainty: float) -> int:
    return max(bisect_right(EDGES, certainty) - 1, 0)


def _relative(rows: int) -> float:
    known = len(RELATIVE)
    return RELATIVE[rows - 1] if rows <= known else RELATIVE[-1] * rows / known
