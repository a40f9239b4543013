"""Lossless mode: loop 1 drafts tokens, the other depths verify them in one pass and keep what full depth would say.

Self-speculative decoding as in LayerSkip (arXiv 2404.16710): the drafts' hidden states, keys and values are the ones
that verification goes on from, so an accepted draft costs no row twice.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from rrt_edge.runtime.bundle.looping import Looping
from rrt_edge.runtime.decoding.decoder import Decoder, Step
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.reply import Drafts
from rrt_edge.runtime.decoding.sampler import Draft, Picked, Sampler

LEAST_SURE = 0.5  # below it a draft is more likely wrong than right: none is made
LONGEST = 8  # rows verified at once
PROBE = 32  # rounds after which another length is tried
MEMORY = 0.9  # of the running means


class DraftLength:
    """Chooses how many rows a round verifies, from the acceptance and the rounds' times; 1 drafts nothing.

    A round of n rows gives 1 + a + .. + a^(n-1) tokens where a draft stands with probability a.
    """

    def __init__(self, loops: int, depth: int = 1) -> None:
        """`depth`: that of the drafts."""
        self.acceptance = 0.8
        self._shallow = depth / loops
        self._seconds: dict[int, float] = {}
        self._rounds = 0

    def choose(self) -> int:
        """Rows of the next round."""
        self._rounds += 1
        if not self._seconds:
            return 1  # first, what a token costs without drafts
        best = max(range(1, LONGEST + 1), key=self._tokens_per_second)
        if self._rounds % PROBE == 0 or len(self._seconds) == 1:
            return best + 1 if best < LONGEST else best - 1
        return best

    def observe(self, rows: int, drafted: int, accepted: int, seconds: float) -> None:
        """A round of so many rows is over. What was not looked at behind a rejected draft does not count."""
        judged = min(drafted, accepted + 1)
        for index in range(judged):
            self.acceptance = MEMORY * self.acceptance + (1 - MEMORY) * (index < accepted)
        self._seconds[rows] = MEMORY * self._seconds.get(rows, seconds) + (1 - MEMORY) * seconds

    def _tokens_per_second(self, rows: int) -> float:
        return sum(self.acceptance**index for index in range(rows)) / self._estimate(rows)

    def _estimate(self, rows: int) -> float:
        """Seconds of a round: as measured, or from the nearest length measured, a further row at half its price."""
        if rows in self._seconds:
            return self._seconds[rows]
        nearest = min(self._seconds, key=lambda known: abs(known - rows))
        return self._seconds[nearest] * self._relative(rows) / self._relative(nearest)

    def _relative(self, rows: int) -> float:
        return rows * self._shallow + (1 - self._shallow) * (1 + 0.5 * (rows - 1))


class Lossless:
    """Picks full depth's tokens for one sequence, drafting with its first loops."""

    def __init__(
        self, decoder: Decoder[Any, Any], looping: Looping, length: DraftLength, ends: Collection[int], gated: bool
    ) -> None:
        """
        Args:
            looping: says at which depth is drafted.
            length: chooses the rows of a round; shared by the replies of a model, so that it need not learn anew.
            ends: tokens behind which nothing is drafted.
            gated: whether the gate was trained to tell.
        """
        self.decoder = decoder
        self.depth = looping.draft_depth
        self.ends = ends
        self.gated, self.is_hazard = gated, looping.gate == "hazard"
        self.length = length
        self._begun = False

    def round(self, history: Sequence[int], sampler: Sampler, counts: Drafts) -> Iterator[Picked]:
        """The next tokens behind `history`, at least one.

        The caller appends each token to `history` before it asks for the next. `history[-1]` is not fed yet.
        """
        started = time.perf_counter()
        rows = self.length.choose() if self._begun else 1  # the first token must not wait for a draft
        self._begun = True
        base = self.decoder.length
        drafts, gates, fed = self._draft(history, sampler, rows)
        if fed > len(drafts) or (drafts and drafts[-1].token in self.ends):
            logits = self.decoder.verify(self.depth, fed)
        else:
            fed += 1
            logits = self.decoder.verify(self.depth, fed, drafts[-1].token if drafts else history[-1])
        seconds = time.perf_counter() - started

        counts.drafted += len(drafts)
        accepted = 0
        loops = self.decoder.loops
        try:
            for index in range(fed):
                if index == len(drafts):
                    token = sampler.pick(logits[index], history)
                    yield sampler.picked(token, loops, 1.0, logits[index])
                    break
                token = sampler.judge(drafts[index], logits[index], history)
                if token != drafts[index].token:
                    self.decoder.rewind(base + index + 1)
                    yield sampler.picked(token, loops, 1.0, logits[index])
                    break
                accepted += 1
                counts.accepted += 1
                yield sampler.picked(token, self.depth, gates[index], logits[index])
        finally:
            self.length.observe(fed, len(drafts), accepted, seconds)

    def _draft(self, history: Sequence[int], sampler: Sampler, rows: int) -> tuple[list[Draft], list[float], int]:
        """Drafts, their gates, and the rows fed at their depth: those of all drafts, or one more where it ended."""
        drafts: list[Draft] = []
        gates: list[float] = []
        text, fed = list(history), 0
        while len(drafts) < rows - 1:
            step = self.decoder.step(text[-1], ExitPolicy(depth=self.depth))
            fed += 1
            if self.gated and self._certainty(step) < LEAST_SURE:
                break
            drafts.append(sampler.propose(step.logits, text))
            gates.append(step.gate)
            text.append(drafts[-1].token)
            if text[-1] in self.ends:
                break
        return drafts, gates, fed

    def _certainty(self, step: Step) -> float:
        """How likely a draft is full depth's token; a hazard says that the state is good enough, not that it is."""
        if not self.is_hazard:
            return step.gate
        shifted = step.logits - step.logits.max()
        return float(1 / np.exp(shifted).sum())
