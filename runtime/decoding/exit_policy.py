"""Exit policies: how deep each token may think."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.runner import NEVER

POINTS = {"fast": 0.95, "balanced": 0.99, "faithful": 0.999}  # operating points: the agreement with full depth promised
FORMS = (
    "full, depth=N, threshold=T, threshold for the bundle's calibrated one, an operating point's name, lossless, "
    "mean-depth=M or ms-per-token=T"
)
LOGITS = (-12.0, 20.0)  # between which a threshold is steered
GAIN = 3.0  # of a threshold's logit for a loop too few: gates of 1 - 1e-6 are met within a few tokens
SUREST = 16.6  # from here on a float32 gate is 1: above it, nothing leaves


@dataclass(frozen=True)
class ExitPolicy:
    """Leave after `depth` loops at the latest (None: all), or at the first whose gate reaches `threshold`.

    `lossless`: loop 1 drafts, full depth verifies; the tokens are full depth's. `trace`: depths at which the tokens of
    a reply leave, in turn and over again, whatever the gate says: to replay what was recorded elsewhere. A budget,
    `mean_depth` or `ms_per_token` (milliseconds), steers the threshold instead, from `threshold` on (`Steering`).
    """

    depth: int | None = None
    threshold: float = NEVER
    lossless: bool = False
    trace: tuple[int, ...] = ()
    mean_depth: float | None = None
    ms_per_token: float | None = None

    @property
    def has_budget(self) -> bool:
        return self.mean_depth is not None or self.ms_per_token is not None

    @property
    def may_leave(self) -> bool:
        """Whether tokens may leave at depths of their own."""
        return self.threshold < NEVER or bool(self.trace) or self.has_budget

    def at(self, index: int) -> ExitPolicy:
        """The policy of a reply's token `index`."""
        return ExitPolicy(depth=self.trace[index % len(self.trace)]) if self.trace else self

    @classmethod
    def parse(
        cls, text: str, loops: int, calibrated: float | None = None, points: Mapping[str, float] | None = None
    ) -> ExitPolicy:
        """Read `full`, `depth=N`, `threshold=T`, `threshold`, `lossless`, the name of an operating point, or a budget:
        `mean-depth=M` or `ms-per-token=T`.

        Raises:
            BadInputError: another form, a depth the model does not have, a threshold outside 0 to 1, or `threshold`
                alone where the bundle has no calibrated one.
        """
        if points and text in points:
            return cls(threshold=points[text])
        name, _, number = text.partition("=")
        if text == "full":
            return cls()
        if text == "lossless":
            return cls(lossless=True)
        if text == "threshold":
            if calibrated is None:
                raise BadInputError("exit policy threshold: this bundle has no calibrated threshold; give threshold=T")
            return cls(threshold=calibrated)
        try:
            if name == "depth":
                limit = int(number)
                if not 1 <= limit <= loops:
                    raise BadInputError(f"exit policy {text!r}: the depth must be from 1 to {loops}")
                return cls(depth=limit)
            if name == "threshold":
                threshold = float(number)
                if not (math.isfinite(threshold) and 0 <= threshold <= 1):
                    raise BadInputError(f"exit policy {text!r}: the threshold must be from 0 to 1")
                return cls(threshold=threshold)
            if name == "mean-depth":
                depth = float(number)
                if not 1 <= depth <= loops:
                    raise BadInputError(f"exit policy {text!r}: the mean depth must be from 1 to {loops}")
                return cls(threshold=0.5 if calibrated is None else calibrated, mean_depth=depth)
            if name == "ms-per-token":
                budget = float(number)
                if not 0 < budget < math.inf:
                    raise BadInputError(f"exit policy {text!r}: the milliseconds must be above 0")
                return cls(threshold=0.5 if calibrated is None else calibrated, ms_per_token=budget)
        except ValueError:
            pass
        named = f" ({', '.join(points)})" if points else ""
        raise BadInputError(f"exit policy {text!r}: must be {FORMS}{named}")


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
        """Of the reply's token `index`."""
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
