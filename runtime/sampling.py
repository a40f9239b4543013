"""Choose the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.errors import BadInputError, RRTEdgeError

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_k: only the k likeliest; 0: all.
        top_p: only the likeliest that together reach this probability.
        min_p: only those with at least this share of the likeliest's probability.
        repetition_penalty: above 1, tokens already in the text become less likely (CTRL, arXiv 1909.05858).
        seed: makes sampling repeatable.
        max_tokens: tokens generated at most.
        stop: texts that end the generation; they are not part of it.

    Raises:
        BadInputError: a value is out of range; names the field.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
            "seed": (self.seed is None or self.seed >= 0, "0 or more"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "stop": (all(self.stop), "texts that are not empty"),
        }
        for field, (right, wanted) in checks.items():
            if not right:
                raise BadInputError(f"{field.replace('_', '-')} {getattr(self, field)!r}: must be {wanted}")


class Sampler:
    """Picks tokens one after another; the same seed picks the same ones."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def pick(self, logits: Float, history: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: [V].
            history: the tokens of prompt and reply so far, which the repetition penalty looks at.

        Raises:
            RRTEdgeError: the logits are not numbers.
        """
        if np.isnan(logits).any():
            raise RRTEdgeError("the model returned not-a-number logits; its weights are damaged: verify the bundle")
        logits = penalised(logits, history, self.sampling.repetition_penalty)
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = distribution(logits, self.sampling)
        return int(self._random.choice(len(probabilities), p=probabilities))


def penalised(logits: Float, history: Sequence[int], penalty: float) -> Float:
    """Logits [V] with those of the tokens in `history` divided by the penalty, or multiplied where negative."""
    if penalty == 1.0:
        return logits
    seen = np.unique(np.asarray(history, np.int64))
    changed = logits.copy()
    changed[seen] = np.where(changed[seen] < 0, changed[seen] * penalty, changed[seen] / penalty)
    return changed


def distribution(logits: Float, sampling: Sampling) -> NDArray[np.float64]:
    """The probabilities [V] to sample from: temperature, then top-k, top-p and min-p in transformers' order."""
    scores = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        smallest_kept = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores[scores < smallest_kept] = -np.inf
    if sampling.top_p < 1:
        # From the least likely up: drop while those below and the token itself hold no more than 1 - p.
        order = np.argsort(scores, kind="stable")
        below = np.cumsum(_softmax(scores)[order]) <= 1 - sampling.top_p
        below[-1] = False
        scores[order[below]] = -np.inf
    if sampling.min_p > 0:
        probabilities = _softmax(scores)
        scores[probabilities < sampling.min_p * probabilities.max()] = -np.inf
    return _softmax(scores)


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max())
    shares: NDArray[np.float64] = exponentials / exponentials.sum()
    return shares
