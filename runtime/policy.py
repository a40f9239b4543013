"""Exit policies: how deep each token may think."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rrt_edge.runtime.errors import BadInputError

POINTS = {"fast": 0.95, "balanced": 0.99, "faithful": 0.999}  # operating points: the agreement with full depth promised
NEVER = 2.0  # a threshold no probability reaches
FORMS = "full, depth=N, threshold=T, threshold for the bundle's calibrated one, an operating point's name, or lossless"


@dataclass(frozen=True)
class ExitPolicy:
    """Leave after `depth` loops at the latest (None: all), or at the first whose gate reaches `threshold`.

    `lossless`: loop 1 drafts, full depth verifies; the tokens are full depth's. `trace`: depths at which the tokens of
    a reply leave, in turn and over again, whatever the gate says: to replay what was recorded elsewhere.
    """

    depth: int | None = None
    threshold: float = NEVER
    lossless: bool = False
    trace: tuple[int, ...] = ()

    @property
    def may_leave(self) -> bool:
        """Whether tokens may leave at depths of their own."""
        return self.threshold < NEVER or bool(self.trace)

    def at(self, index: int) -> ExitPolicy:
        """The policy of a reply's token `index`."""
        return ExitPolicy(depth=self.trace[index % len(self.trace)]) if self.trace else self

    @classmethod
    def parse(
        cls, text: str, loops: int, calibrated: float | None = None, points: Mapping[str, float] | None = None
    ) -> ExitPolicy:
        """Read `full`, `depth=N`, `threshold=T`, `threshold`, `lossless` or the name of an operating point.

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
                depth = int(number)
                if not 1 <= depth <= loops:
                    raise BadInputError(f"exit policy {text!r}: the depth must be from 1 to {loops}")
                return cls(depth=depth)
            if name == "threshold":
                threshold = float(number)
                if not (math.isfinite(threshold) and 0 <= threshold <= 1):
                    raise BadInputError(f"exit policy {text!r}: the threshold must be from 0 to 1")
                return cls(threshold=threshold)
        except ValueError:
            pass
        named = f" ({', '.join(points)})" if points else ""
        raise BadInputError(f"exit policy {text!r}: must be {FORMS}{named}")
