"""The `Sampler`, which chooses one token after another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.decoding.constraint import Allows
from rrt_edge.runtime.decoding.logits import candidates, distribution, less_repetition, penalised
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import RRTEdgeError

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Picked:
    """A token that was chosen, the depth it left at, the gate's value there, and log probabilities if asked for."""

    token: int
    depth: int
    gate: float
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Draft:
    """A token proposed from a shallow depth, and the probabilities [V] it was drawn from (None where greedy)."""

    token: int
    probabilities: NDArray[np.float64] | None


class Sampler:
    """Picks the tokens of one reply one after another; the same seed picks the same ones."""

    def __init__(
        self,
        sampling: Sampling,
        prompt_tokens: int = 0,
        ends: Collection[int] = (),
        constraint: Allows | None = None,
    ) -> None:
        """
        Args:
            prompt_tokens: how many of a history's first tokens are the prompt's.
            ends: the tokens that end a reply.
            constraint: where not every token may follow, as with a grammar.
        """
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._prompt_tokens, self._ends, self._constraint = prompt_tokens, sorted(ends), constraint
        self._bias = (
            np.array(sorted(sampling.logit_bias), np.int64),
            np.array([sampling.logit_bias[token] for token in sorted(sampling.logit_bias)], np.float32),
        )

    def pick(self, logits: Float, history: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: [V].
            history: the tokens of prompt and reply so far, which penalties and grammar look at.

        Raises:
            RRTEdgeError: a logit is not a number, or none is finite.
        """
        logits = self._changed(logits, history)
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        tokens, probabilities = candidates(logits, self.sampling)
        return int(self._random.choice(tokens, p=probabilities))

    def propose(self, logits: Float, history: Sequence[int]) -> Draft:
        """Draft a token that `judge` may let stand."""
        if self.sampling.temperature == 0:
            return Draft(self.pick(logits, history), None)
        probabilities = distribution(self._changed(logits, history), self.sampling)
        return Draft(int(self._random.choice(len(probabilities), p=probabilities)), probabilities)

    def judge(self, draft: Draft, logits: Float, history: Sequence[int]) -> int:
        """The next token, distributed as `pick` would from these logits: the draft, or another where it cannot stand.

        Speculative sampling (arXiv 2302.01318): the draft x stands with probability min(1, p(x) / q(x)), else a token
        is drawn from max(0, p - q).
        """
        if draft.probabilities is None:
            return self.pick(logits, history)
        target = distribution(self._changed(logits, history), self.sampling)
        if self._random.random() * draft.probabilities[draft.token] < target[draft.token]:
            return draft.token
        rest = np.maximum(target - draft.probabilities, 0)
        return int(self._random.choice(len(rest), p=rest / rest.sum()))

    def picked(self, token: int, depth: int, gate: float, logits: Float) -> Picked:
        """A chosen token, with the log probabilities asked for."""
        count = self.sampling.logprobs
        if count is None:
            return Picked(token, depth, gate)
        shifted = logits.astype(np.float64) - float(logits.max())
        logprobs = shifted - np.log(np.exp(shifted).sum())
        top = np.argsort(-logprobs, kind="stable")[:count]
        return Picked(
            token, depth, gate, float(logprobs[token]), tuple((int(likely), float(logprobs[likely])) for likely in top)
        )

    def _changed(self, logits: Float, history: Sequence[int]) -> Float:
        """The logits after penalties, bias, the least length and the grammar."""
        if not np.isfinite(logits.max()):  # one NaN makes the maximum NaN
            raise RRTEdgeError(
                "the model returned not-a-number or infinite logits; its weights may be damaged: verify the bundle"
            )
        sampling, first = self.sampling, self._prompt_tokens
        logits = penalised(logits, history, sampling.repetition_penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            logits = less_repetition(logits, history[first:], sampling.presence_penalty, sampling.frequency_penalty)
        if len(self._bias[0]):
            logits = logits.copy()
            logits[self._bias[0]] += self._bias[1]
        early = self._ends if len(history) - first < sampling.min_tokens else []
        allowed = None if self._constraint is None else self._constraint.allowed(history[first:])
        if allowed is None:
            return _without(logits, early)
        logits = np.where(allowed, logits, np.float32(-np.inf))
        longer = _without(logits, early)
        return longer if np.isfinite(longer.max()) else logits  # where the grammar lets it only end, it ends


def _without(logits: Float, tokens: Sequence[int]) -> Float:
    if not tokens:
        return logits
    changed = logits.copy()
    changed[tokens] = -np.inf
    return changed
