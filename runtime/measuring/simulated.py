"""A stated share of drafts that stand, on weights that never had the chance to learn: all else is really done."""

from __future__ import annotations

import numpy as np

from rrt_edge.runtime.decoding.drafting import Drafting

TOGETHER = 20  # verdicts of which the stated share stands, as nearly as can be: short replies have it too


class SimulatedDrafting(Drafting):
    """Drafts always; which drafts stand is drawn, and where one does not, another token follows."""

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self._share, self._random = share, np.random.default_rng(seed)
        self._verdicts: list[bool] = []  # still to be given
        self._drawn = self._stands = 0

    def pays(self, last: int, leaves: bool = False) -> bool:
        return True

    def cutoff(self, rows: int, sequences: int = 1) -> float:
        return 0.0

    def verdict(self, token: int, draft: int) -> int:
        if not self._verdicts:
            self._drawn += TOGETHER
            stands = round(self._share * self._drawn) - self._stands
            self._stands += stands
            self._verdicts = self._random.permutation(np.arange(TOGETHER) < stands).tolist()
        if self._verdicts.pop():
            return draft
        return token if token != draft else draft - 1 if draft else 1
