"""The `Sampler`, which chooses one token after another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.decoding.constraint import Allows
from rrt_edge.runtime.decoding.logits import candidates, less_repetition, penalised
from rrt_edge.runtime.decoding.sampling import SEEDS, Sampling
from rrt_edge.runtime.errors import RRTEdgeError

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Picked:
    """A token that was chosen, and what `Token` tells of it."""

    token: int
    depth: int
    gate: float
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    gates: tuple[float, ...] = ()
    first_loop: int | None = None


class Sampler:
    """Picks the tokens of one reply; the same seed picks the same ones.

    Each place in the reply has a random number of its own. So a draft, which the same number picks from other logits,
    changes nothing about the token that is picked there in the end, and is often that token.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_tokens: int = 0,
        ends: Collection[int] = (),
        constraint: Allows | None = None,
        limit: int | None = None,
    ) -> None:
        """
        Args:
            prompt_tokens: how many of a history's first tokens are the prompt's.
            ends: the tokens that end a reply.
            constraint: where not every token may follow, as with a grammar.
            limit: tokens of the reply at most, where that is another number than the sampling's.
        """
        self.sampling = sampling
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed % SEEDS)
        self._numbers: list[float] = []  # from 0 to 1, one for each place in the reply so far
        self._prompt_tokens, self._ends, self._constraint = prompt_tokens, sorted(ends), constraint
        self._limit = sampling.max_tokens if limit is None else limit
        self._bias = (
            np.array(sorted(sampling.logit_bias), np.int64),
            np.array([sampling.logit_bias[token] for token in sorted(sampling.logit_bias)], np.float32),
        )

    @property
    def cut(self) -> bool:
        """Whether the reply is as it is because it had to end."""
        return self._constraint is not None and self._constraint.cut

    def pick(self, logits: Float, history: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: [V].
            history: the tokens of prompt and reply so far, which penalties and grammar look at, and drafts behind them.

        Raises:
            RRTEdgeError: a logit is not a number, or none is finite.
        """
        if self.sampling.temperature == 0:
            return int(self._changed(logits, history).argmax())
        tokens, probabilities = self.candidates(logits, history)
        shares = probabilities.cumsum()
        number = self._number(len(history) - self._prompt_tokens) * shares[-1]
        return int(tokens[shares.searchsorted(number, side="right")])

    def candidates(self, logits: Float, history: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens [N] that `pick` chooses from, ascending, and their probabilities [N]; its errors.

        The temperature must be above 0.
        """
        return candidates(self._changed(logits, history), self.sampling)

    def _number(self, place: int) -> float:
        """The random number of a place in the reply."""
        while len(self._numbers) <= place:
            self._numbers.append(float(self._random.random()))
        return self._numbers[place]

    def picked(
        self,
        token: int,
        depth: int,
        gate: float,
        logits: Float,
        gates: tuple[float, ...] = (),
        first_loop: int | None = None,
    ) -> Picked:
        """A chosen token, with the log probabilities asked for.

        Args:
            first_loop: what the first loop would have said, where that is asked for and the token went deeper.
        """
        count = self.sampling.logprobs
        if self.sampling.first_loop and first_loop is None:
            first_loop = token
        if count is None:
            return Picked(token, depth, gate, gates=gates, first_loop=first_loop)
        shifted = logits.astype(np.float64) - float(logits.max())
        logprobs = shifted - np.log(np.exp(shifted).sum())
        top = np.argsort(-logprobs, kind="stable")[:count]
        likeliest = tuple((int(likely), float(logprobs[likely])) for likely in top)
        return Picked(token, depth, gate, float(logprobs[token]), likeliest, gates, first_loop)

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
        reply = history[first:]
        allowed = None if self._constraint is None else self._constraint.allowed(reply, self._limit - len(reply))
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
