"""How good the exits of a model are: scores of every depth and threshold from what it says to a known text.

Under the KV rule `exact` a token's logits at a depth do not depend on where the tokens before it left, so that one pass
through all depths tells what every threshold would have given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.errors import BadInputError

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]
GRID = 400  # thresholds tried


@dataclass(frozen=True)
class Score:
    """Of some exits: perplexity of the scored tokens, share that are the likeliest and share equal to full depth's
    likeliest, share of texts of which all tokens are the likeliest, mean depth."""

    perplexity: float
    accuracy: float
    agreement: float
    exact: float
    mean_depth: float


@dataclass(frozen=True)
class Reliability:
    """How far the gate's probability is from the share of tokens that do agree with full depth.

    `expected_error` is the expected calibration error over equal bins; of each bin that holds tokens: the mean
    probability, the share that agrees, the tokens.
    """

    BINS: ClassVar = 15

    expected_error: float
    bins: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Scores:
    """Scores of N tokens in order, at each of K depths; `text` [N] says which text a token belongs to."""

    right: Bool  # [K, N]: the likeliest token is the text's
    agrees: Bool  # [K, N]: it is full depth's likeliest
    nll: Float  # [K, N]: negative log probability of the text's token
    gate: Float  # [K, N]: 1 at the last depth
    text: NDArray[np.int64]

    @property
    def depths(self) -> int:
        return len(self.right)

    @property
    def tokens(self) -> int:
        return len(self.text)

    def at_depth(self, depth: int) -> Score:
        """Return the score of all tokens leaving after so many loops."""
        return self._of(np.full(self.tokens, depth - 1))

    def at_threshold(self, threshold: float) -> Score:
        """Return the score of each token leaving at the first depth whose gate reaches the threshold."""
        return self._of(self.exits(threshold))

    def exits(self, threshold: float) -> NDArray[np.int64]:
        """The depth each token leaves at, counted from 0."""
        return np.asarray((self.gate >= np.float32(threshold)).argmax(axis=0))

    def exact(self, depth: int) -> Bool:
        """Return for each text with scored tokens whether all of them are the likeliest after so many loops."""
        return self._exact(self.right[depth - 1])

    def _exact(self, right: Bool) -> Bool:
        firsts = np.flatnonzero(np.diff(self.text, prepend=-1))
        return np.asarray(np.logical_and.reduceat(right, firsts))

    def _of(self, exits: NDArray[np.int64]) -> Score:
        at = exits, np.arange(self.tokens)
        return Score(
            perplexity=math.exp(min(float(self.nll[at].mean()), 700)),
            accuracy=float(self.right[at].mean()),
            agreement=float(self.agrees[at].mean()),
            exact=float(self._exact(self.right[at]).mean()),
            mean_depth=float(exits.mean()) + 1,
        )

    def reliability(self) -> Reliability:
        """Return the reliability of the gates of all depths but the last."""
        gates, true = self.gate[:-1].ravel(), self.agrees[:-1].ravel()
        index = np.minimum((gates * Reliability.BINS).astype(int), Reliability.BINS - 1)
        bins = [
            (float(gates[index == number].mean()), float(true[index == number].mean()), int((index == number).sum()))
            for number in range(Reliability.BINS)
            if (index == number).any()
        ]
        error = sum(abs(mean - share) * count for mean, share, count in bins) / max(1, len(gates))
        return Reliability(error, tuple(bins))


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of several texts together, numbered in order.

    Raises:
        BadInputError: there is nothing to score.
    """
    if not sum(part.tokens for part in parts):
        raise BadInputError("the data holds nothing to score: no text of two tokens, no answer in any chat")
    right, agrees, nll, gate = (
        np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("right", "agrees", "nll", "gate")
    )
    return Scores(right, agrees, nll, gate, np.concatenate([part.text for part in parts]))


def scores_of(logits: Sequence[Float], gate: Float, targets: NDArray[np.int64], text: int) -> Scores:
    """From each depth's logits [N, V], gates [K, N] and the tokens [N] of one text."""
    top = np.stack([depth_logits.argmax(axis=-1) for depth_logits in logits])
    rows = np.arange(len(targets))
    nll = np.stack([-log_softmax(depth_logits)[rows, targets] for depth_logits in logits]).astype(np.float32)
    return Scores(top == targets, top == top[-1], nll, gate.astype(np.float32), np.full(len(targets), text))


@dataclass(frozen=True)
class Point:
    """A threshold and what it gave on the calibration text: agreement with full depth, mean depth."""

    threshold: float
    agreement: float
    mean_depth: float


def curve(scores: Scores) -> list[Point]:
    """Agreement and mean depth by threshold, from the highest on: at the quantiles of the gate's values."""
    values = np.unique(np.quantile(scores.gate[:-1], np.linspace(0, 1, GRID))) if scores.depths > 1 else np.ones(1)
    thresholds = [1.0, *sorted({float(np.float32(value)) for value in values} - {1.0}, reverse=True)]
    points = []
    for threshold in thresholds:
        score = scores.at_threshold(threshold)
        points.append(Point(threshold, score.agreement, score.mean_depth))
    return points


def log_softmax(logits: Float) -> NDArray[np.float64]:
    """Log probabilities of logits [N, V]."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
