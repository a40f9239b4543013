"""Choose the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.errors import BadInputError, RRTEdgeError

Float = NDArray[np.float32]
LARGEST = np.finfo(np.float32).max


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
            "temperature": (_is_number(self.temperature) and 0 <= self.temperature < math.inf, "a number, 0 or more"),
            "top_k": (_is_whole(self.top_k) and self.top_k >= 0, "a whole number, 0 or more"),
            "top_p": (_is_number(self.top_p) and 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            "min_p": (_is_number(self.min_p) and 0 <= self.min_p <= 1, "a number from 0 to 1"),
            "repetition_penalty": (
                _is_number(self.repetition_penalty) and 0 < self.repetition_penalty < math.inf,
                "a number above 0",
            ),
            "seed": (
                self.seed is None or (_is_whole(self.seed) and self.seed >= 0),
                "a whole number, 0 or more, or none",
            ),
            "max_tokens": (_is_whole(self.max_tokens) and self.max_tokens >= 1, "a whole number, 1 or more"),
            "stop": (_is_texts(self.stop), "a tuple of texts that are not empty"),
        }
        for field, (right, wanted) in checks.items():
            if not right:
                raise BadInputError(f"{field.replace('_', '-')} {getattr(self, field)!r}: must be {wanted}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


@dataclass(frozen=True)
class Draft:
    """A token proposed from a shallow depth, and the probabilities [V] it was drawn from (None where greedy)."""

    token: int
    probabilities: NDArray[np.float64] | None


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
            RRTEdgeError: a logit is not a number, or none is finite.
        """
        logits = self._checked(logits, history)
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        tokens, probabilities = candidates(logits, self.sampling)
        return int(self._random.choice(tokens, p=probabilities))

    def propose(self, logits: Float, history: Sequence[int]) -> Draft:
        """Draft a token that `judge` may let stand."""
        if self.sampling.temperature == 0:
            return Draft(self.pick(logits, history), None)
        probabilities = distribution(self._checked(logits, history), self.sampling)
        return Draft(int(self._random.choice(len(probabilities), p=probabilities)), probabilities)

    def judge(self, draft: Draft, logits: Float, history: Sequence[int]) -> int:
        """The next token, distributed as `pick` would from these logits: the draft, or another where it cannot stand.

        Speculative sampling (arXiv 2302.01318): the draft x stands with probability min(1, p(x) / q(x)), else a token
        is drawn from max(0, p - q).
        """
        if draft.probabilities is None:
            return self.pick(logits, history)
        wanted = distribution(self._checked(logits, history), self.sampling)
        if self._random.random() * draft.probabilities[draft.token] < wanted[draft.token]:
            return draft.token
        rest = np.maximum(wanted - draft.probabilities, 0)
        return int(self._random.choice(len(rest), p=rest / rest.sum()))

    def _checked(self, logits: Float, history: Sequence[int]) -> Float:
        """The logits with the repetition penalty."""
        if not np.isfinite(logits.max()):  # one NaN makes the maximum NaN
            raise RRTEdgeError(
                "the model returned not-a-number or infinite logits; its weights may be damaged: verify the bundle"
            )
        return penalised(logits, history, self.sampling.repetition_penalty)


def penalised(logits: Float, history: Sequence[int], penalty: float) -> Float:
    """Logits [V] with those of the tokens in `history` divided by the penalty, or multiplied where negative."""
    if penalty == 1.0:
        return logits
    seen = np.asarray(history, np.int64)  # a token seen twice is penalised once: both write the same value
    scores = logits[seen]
    with np.errstate(over="ignore"):
        scores = np.where(scores < 0, scores * penalty, scores / penalty)
    changed = logits.copy()
    changed[seen] = np.clip(scores, -LARGEST, LARGEST)
    return changed


def distribution(logits: Float, sampling: Sampling) -> NDArray[np.float64]:
    """The probabilities [V] that `candidates` leaves; 0 for the tokens that it drops."""
    tokens, kept = candidates(logits, sampling)
    probabilities = np.zeros(len(logits))
    probabilities[tokens] = kept
    return probabilities


def candidates(logits: Float, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens to choose from and their probabilities: temperature, top-k, top-p and min-p in transformers' order.

    Args:
        logits: [V], the largest of them finite.
        sampling: its temperature is above 0.

    Returns:
        Token ids [N], ascending, and their probabilities [N], which sum to 1.
    """
    tokens = np.arange(len(logits))
    if 0 < sampling.top_k < len(logits):
        # Tokens equal to the k-th stay, so there may be more than k.
        tokens = np.flatnonzero(logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k])
    scores = logits[tokens].astype(np.float64)
    with np.errstate(over="ignore"):  # at a tiny temperature all but the likeliest become -inf, as they should
        probabilities = np.exp((scores - scores.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        kept = _nucleus(probabilities, sampling.top_p)
        tokens, probabilities = tokens[kept], probabilities[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(probabilities >= sampling.min_p * probabilities.max())
        tokens, probabilities = tokens[kept], probabilities[kept]
    return tokens, probabilities / probabilities.sum()


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the likeliest of probabilities [N] that reach `top_p` together; at least one.

    From the least likely up, a token is dropped while it and those below it hold no more than 1 - top_p. All N tokens
    under (1 - top_p) / N together hold less than that and are dropped unsorted: in a large vocabulary, nearly all.
    """
    spare = 1 - top_p
    likely = np.flatnonzero(probabilities >= spare / len(probabilities))
    order = likely[np.argsort(probabilities[likely], kind="stable")]
    below = 1 - probabilities[order].sum()
    kept = below + np.cumsum(probabilities[order]) > spare
    kept[-1] = True
    return np.sort(order[kept])
