"""Exit policies: how deep each token may think, and the forms in which people write them.

A new policy is a `Form` in `FORMS` and, where it needs more than a depth or a threshold, a field of `ExitPolicy` that
`Steering` follows. Help, errors, completion, the chat and the docs' table are made from the forms.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.runner import NEVER
from rrt_edge.runtime.system.names import changed_fields, init_says_meant
from rrt_edge.runtime.system.options import plain_number, shown

POINTS = {"fast": 0.95, "balanced": 0.99, "faithful": 0.999}  # operating points: the agreement with full depth promised
LOGITS = (-12.0, 20.0)  # between which a threshold is steered
GAIN = 3.0  # of a threshold's logit for a loop too few: gates of 1 - 1e-6 are met within a few tokens
MOST_LOOPS = 4096  # no bundle has as many
LEAST_MS, MOST_MS = 1e-6, 1e9  # milliseconds that a token's budget may be
SUREST = 16.6  # from here on a float32 gate is 1: above it, nothing leaves


@dataclass(frozen=True)
class Exits:
    """What a bundle offers to exit policies: its loops, its calibrated threshold, the thresholds of its points.

    `depths`: those that may be read; empty: all. `has_gate`: whether anything says when a token may leave.
    """

    loops: int
    calibrated: float | None = None
    points: Mapping[str, float] = field(default_factory=dict)
    depths: tuple[int, ...] = ()
    has_gate: bool = True

    @property
    def own_policy(self) -> str:
        """The bundle's own policy: its calibrated threshold where it has one, else `full`."""
        return "full" if self.calibrated is None else "threshold"

    @property
    def readable(self) -> tuple[int, ...]:
        """The depths whose logits mean something, in order."""
        return self.depths or tuple(range(1, self.loops + 1))

    def check_depth(self, depth: float) -> None:
        """
        Raises:
            BadInputError: no token can leave at this depth.
        """
        if self.loops == len(self.readable) and not 1 <= depth <= self.loops:
            raise BadInputError(f"the depth must be from 1 to {self.loops}")
        if depth not in self.readable:
            depths = ", ".join(map(str, self.readable))
            raise BadInputError(f"this model can be read after loop {depths} alone: the depth must be one of {depths}")

    def check_leaving(self) -> None:
        """
        Raises:
            BadInputError: the model has nothing that says when a token may leave, or nowhere to leave.
        """
        if not self.has_gate:
            raise BadInputError("this model has no exit gate, which this policy asks; use full")

    def check(self, policy: ExitPolicy) -> None:
        """
        Raises:
            BadInputError: a policy does not go with the bundle.
        """
        try:
            for depth in (*([] if policy.depth is None else [policy.depth]), *policy.trace):
                self.check_depth(depth)
            if policy.mean_depth is not None and policy.mean_depth > self.loops:
                raise BadInputError(f"the mean depth must be from 1 to {self.loops}")
            if policy.threshold < NEVER or policy.has_budget:
                self.check_leaving()
        except BadInputError as error:
            raise BadInputError(f"exit policy: {error}") from None


@init_says_meant
@dataclass(frozen=True, repr=False)
class ExitPolicy:
    """Leave after `depth` loops at the latest (None: all), or at the first whose gate reaches `threshold`.

    `trace`: depths at which the tokens of a reply leave, in turn and over again, whatever the gate says: to replay what
    was recorded elsewhere. A budget, `mean_depth` or `ms_per_token` (milliseconds), steers the threshold instead, from
    `threshold` on (`Steering`).
    """

    depth: int | None = None
    threshold: float = NEVER
    trace: tuple[int, ...] = ()
    mean_depth: float | None = None
    ms_per_token: float | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            BadInputError: a value is no finite number in its bounds; names the field.
        """
        if self.depth is not None:
            _bounded("depth", self.depth, int, 1, MOST_LOOPS)
        if not (type(self.threshold) is float and 0.0 <= self.threshold <= NEVER):
            _bounded("threshold", self.threshold, float, 0, NEVER)
        if type(self.trace) is not tuple:
            raise BadInputError(f"exit policy: trace {shown(self.trace)}: must be a tuple of depths")
        for depth in self.trace:
            _bounded("trace", depth, int, 1, MOST_LOOPS)
        if self.mean_depth is not None:
            _bounded("mean-depth", self.mean_depth, float, 1, MOST_LOOPS)
        if self.ms_per_token is not None:
            _bounded("ms-per-token", self.ms_per_token, float, LEAST_MS, MOST_MS)

    def __repr__(self) -> str:
        return changed_fields(self)

    @property
    def has_budget(self) -> bool:
        return self.mean_depth is not None or self.ms_per_token is not None

    @property
    def may_leave(self) -> bool:
        """Whether different tokens may leave at different depths."""
        return self.threshold < NEVER or bool(self.trace) or self.has_budget

    def at(self, index: int) -> ExitPolicy:
        """The policy of a reply's token `index`."""
        return ExitPolicy(depth=self.trace[index % len(self.trace)]) if self.trace else self

    @classmethod
    def parse(cls, text: str, exits: Exits) -> ExitPolicy:
        """Read one of the `FORMS`, or the name of an operating point.

        Raises:
            BadInputError: another form, a depth that cannot be read, a threshold outside 0 to 1, `threshold` alone
                where the bundle has no calibrated one, or a policy that needs a gate where there is none.
        """
        name, equals, number = text.partition("=")
        for form in FORMS:
            if form.name == name and bool(form.value) == bool(equals):
                try:
                    return form.read(number, exits)
                except ValueError:
                    break
                except BadInputError as error:
                    raise BadInputError(f"exit policy {shown(text)}: {error}") from None
        if text in exits.points:
            return cls(threshold=exits.points[text])
        if text in POINTS:
            exits.check_leaving()
            raise BadInputError(
                f"exit policy {shown(text)}: this bundle has no such operating point; rrt-edge calibrate BUNDLE --data "
                "FILE finds it"
            )
        names = f" ({', '.join(exits.points)})" if exits.points else ""
        raise BadInputError(f"exit policy {shown(text)}: must be {in_words()}{names}{_did_you_mean(text, exits)}")


def _did_you_mean(text: str, exits: Exits) -> str:
    """What follows an error about a policy that nothing reads: one that is spelled nearly so, if there is any."""
    match = re.fullmatch(r"\s*([a-z_ -]*?)[\s:=,]*([0-9.]*)\s*", text.lower())
    word, number = match.groups() if match is not None else ("", "")
    if not (word or number):
        return ""
    if not word:
        name = "threshold" if "." in number else "depth"
    else:
        names = {form.name for form in FORMS} | exits.points.keys() | POINTS.keys()
        name = next(iter(difflib.get_close_matches(word.replace("_", "-"), sorted(names), 1)), "")
    forms = [form for form in FORMS if form.name == name]
    valued = next((form for form in forms if form.value), None)
    if valued is not None and (number or len(forms) == 1):
        name = f"{name}={number or valued.value}"
    return f"; did you mean {name}?" if name and name != text else ""


def _bounded(name: str, value: object, kind: type, least: float, most: float) -> None:
    number = plain_number(value, kind)
    if number is None or not least <= number <= most:
        raise BadInputError(f"exit policy: {name} {shown(value)}: must be from {least} to {most:g}")


@dataclass(frozen=True)
class Form:
    """One way to write an exit policy: `name`, or `name=value`.

    Attributes:
        value: what stands for the number, a capital letter; empty where there is none.
        does: what a token does under it, as the end of a sentence that begins with "a token".
        read: the policy of a number's text for a bundle; raises ValueError where the text is no number, and
            BadInputError where the number is out of bounds.
        texts: policies of this form to offer for a bundle; those whose number is anything are not listed.
    """

    name: str
    value: str
    does: str
    read: Callable[[str, Exits], ExitPolicy]
    texts: Callable[[Exits], Iterable[str]] = lambda exits: ()

    @property
    def text(self) -> str:
        """The form as people write it: `depth=N`."""
        return f"{self.name}={self.value}" if self.value else self.name


def _depth(number: str, exits: Exits) -> ExitPolicy:
    depth = int(number)
    exits.check_depth(depth)
    return ExitPolicy(depth=depth)


def _threshold(number: str, exits: Exits) -> ExitPolicy:
    threshold = float(number)
    if not (math.isfinite(threshold) and 0 <= threshold <= 1):
        raise BadInputError("the threshold must be from 0 to 1")
    exits.check_leaving()
    return ExitPolicy(threshold=threshold)


def _calibrated(_: str, exits: Exits) -> ExitPolicy:
    exits.check_leaving()
    if exits.calibrated is None:
        raise BadInputError(
            "this bundle has no calibrated threshold; give threshold=T, or find one with rrt-edge calibrate"
        )
    return ExitPolicy(threshold=exits.calibrated)


def _mean_depth(number: str, exits: Exits) -> ExitPolicy:
    depth = float(number)
    exits.check_leaving()
    if not 1 <= depth <= exits.loops:
        raise BadInputError(f"the mean depth must be from 1 to {exits.loops}")
    return ExitPolicy(threshold=0.5 if exits.calibrated is None else exits.calibrated, mean_depth=depth)


def _ms_per_token(number: str, exits: Exits) -> ExitPolicy:
    budget = float(number)
    exits.check_leaving()
    if not LEAST_MS <= budget <= MOST_MS:
        raise BadInputError(f"the milliseconds must be above 0: from {LEAST_MS} to {MOST_MS:.0f}")
    return ExitPolicy(threshold=0.5 if exits.calibrated is None else exits.calibrated, ms_per_token=budget)


FORMS = (
    Form("full", "", "runs all loops", lambda _, exits: ExitPolicy(), lambda exits: ("full",)),
    Form(
        "depth", "N", "runs N loops", _depth, lambda exits: (f"depth={depth}" for depth in exits.readable)
    ),
    Form("threshold", "T", "leaves after the first loop whose gate is at least T", _threshold),
    Form(
        "threshold", "", "does the same with the threshold calibrated for the bundle", _calibrated,
        lambda exits: () if exits.calibrated is None else ("threshold",),
    ),
    Form("lossless", "", "runs all loops: another word for full", lambda _, exits: ExitPolicy()),
    Form("mean-depth", "M", "leaves at a threshold that is steered towards M loops on average", _mean_depth),
    Form(
        "ms-per-token", "T", "leaves at a threshold that is steered towards T milliseconds a token on average",
        _ms_per_token,
    ),
)  # fmt: skip
NAMES = frozenset(form.name for form in FORMS)  # no operating point can have one of them


def in_words() -> str:
    """The forms as the end of a sentence, operating points among them."""
    *texts, last = (form.text for form in FORMS)
    return f"{', '.join([*texts, last])} or the name of an operating point"


def offered(exits: Exits) -> list[str]:
    """The policies to offer for a bundle, its operating points among them."""
    return [*(text for form in FORMS for text in form.texts(exits)), *exits.points]


class Steering:
    """Gives each token of a reply its policy: steers the threshold so that a budget is met on the reply's mean.

    The threshold's logit moves with the sum of what was left of the budget at each token: while that sum stays bounded,
    the mean goes to the budget.
    """

    def __init__(self, policy: ExitPolicy) -> None:
        self._policy = policy
        start = min(max(policy.threshold, 1e-6), 1 - 1e-6)
        self._logit = math.log(start / (1 - start))

    def policy(self, index: int) -> ExitPolicy:
        """Return the policy of the reply's token `index`."""
        if not self._policy.has_budget:
            return self._policy.at(index)
        if self._logit > SUREST:
            return ExitPolicy()
        return ExitPolicy(threshold=1 / (1 + math.exp(-self._logit)))

    def observe(self, depth: int, seconds: float | None) -> None:
        """A token left at a depth, so many seconds after the one before it; None: it is the first."""
        policy = self._policy
        if policy.mean_depth is not None:
            left = policy.mean_depth - depth
        elif policy.ms_per_token is not None and seconds is not None:
            left = min(max(1 - 1000 * seconds / policy.ms_per_token, -1.0), 1.0)
        else:
            return
        self._logit = min(max(self._logit + GAIN * left, LOGITS[0]), LOGITS[1])
