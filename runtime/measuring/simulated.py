"""A stated share of drafts that stand, on weights that never had the chance to learn: all else is really done."""

from __future__ import annotations

import numpy as np

from rrt_edge.runtime.decoding.drafting import Drafting


class SimulatedDrafting(Drafting):
    """Drafts always; that a draft stands is drawn, and where it does not, another token follows."""

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self._share, self._random = share, np.random.default_rng(seed)

    def pays(self, last: int) -> bool:
        return True

    def cutoff(self, rows: int) -> float:
        return 0.0

    def verdict(self, token: int, draft: int) -> int:
        if self._random.random() < self._share:
            return draft
        return token if token != draft else draft - 1 if draft else 1
