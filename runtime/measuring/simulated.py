"""A stated share of drafts that stand, on weights that never had the chance to learn: all else is really done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.decoding.lookup import Guess, Lookup
from rrt_edge.runtime.running.runner import NEVER

TOGETHER = 20  # verdicts of which the stated share stands, as nearly as can be: short replies have it too


class SimulatedDrafting(Drafting):
    """Drafts always; which drafts stand is drawn, and where one does not, another token follows."""

    def __init__(self, share: float, seed: int, from_text: bool = False) -> None:
        """`from_text`: drafts come from the text alone, which always has some; as many run together as pay."""
        super().__init__()
        self.reads_text = from_text
        self._share, self._random = share, np.random.default_rng(seed)
        self._verdicts: list[bool] = []  # still to be given
        self._drawn = self._stands = 0

    def lookup(self) -> Lookup | None:
        return _Repeating(self._share) if self.reads_text else None

    def pays(self, last: int, leaves: bool = False) -> bool:
        return not self.reads_text

    def cutoff(self, rows: int, sequences: int = 1) -> float:
        return NEVER if self.reads_text else 0.0

    def cost(self, rows: int, sequences: int = 1) -> float:
        return self.cutoff(rows, sequences)

    def verdict(self, token: int, draft: int) -> int:
        if not self._verdicts:
            self._drawn += TOGETHER
            stands = round(self._share * self._drawn) - self._stands
            self._stands += stands
            self._verdicts = self._random.permutation(np.arange(TOGETHER) < stands).tolist()
        if self._verdicts.pop():
            return draft
        return token if token != draft else draft - 1 if draft else 1


class _Repeating(Lookup):
    """Says that a text goes on with its first token, with a stated chance to be right."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share, self._first = share, 0

    def follow(self, history: Sequence[int]) -> None:
        self._first = history[0]

    def guesses(self, behind: Sequence[int], most: int, least: float = 0.0) -> list[Guess]:
        return [Guess(self._first, self._share)] * most
