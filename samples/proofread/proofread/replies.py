"""The model's replies to pieces, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import exp, prod
from typing import NamedTuple

from proofread.checks import problem
from proofread.comparing import Change, compare
from rrt_edge.runtime import Engine, ExitPolicy, Model, Request, RRTEdgeError, Sampling

LONGER, SPARE = 1.3, 8  # a reply may have so many times the tokens of its prompt, and as many more
QUEUED = 16  # pieces that the engine is given at a time


def most_tokens(prompt: int) -> int:
    """How many tokens a reply may have whose prompt has so many."""
    return round(LONGER * prompt) + SPARE


class Stopped(Exception):
    """A correction was stopped before its end."""


class Written(NamedTuple):
    """A token of a reply: where it stands in the text, its depth, and the probability that the model gave it."""

    start: int
    end: int
    depth: int
    probability: float


@dataclass(frozen=True)
class Reply:
    """The model's reply to a piece.

    Attributes:
        text: without white space at its ends.
        tokens: all, in order.
        changes: from the piece to `text`.
        problem: why it is no correction, if it is none; empty where that goes without saying.
    """

    text: str
    tokens: tuple[Written, ...]
    changes: tuple[Change, ...]
    problem: str | None

    @property
    def is_usable(self) -> bool:
        return self.problem is None

    def probability(self, change: Change) -> float:
        """How likely the model held a change: that of all its tokens together and of the one behind them, which says
        that it ends there ("sofa" becomes "so" by the token that follows "so").
        """
        behind = next((at for at, token in enumerate(self.tokens) if token.start >= change.last), len(self.tokens))
        return prod(token.probability for token in self.tokens[: behind + 1] if token.end > change.first)


def generate(
    model: Model, policy: ExitPolicy, texts: Iterable[str], is_stopped: Callable[[], bool]
) -> Iterator[tuple[str, Reply]]:
    """Each text with its reply, as they come.

    Raises:
        Stopped: `is_stopped`, which is asked before each step, said so.
    """
    engine, waiting = Engine(model), iter(texts)
    running: dict[Request, str] = {}
    while True:
        while len(running) < QUEUED and (text := next(waiting, None)) is not None:
            try:
                ids = model.encode_chat([{"role": "user", "content": text}])
                sampling = Sampling(max_tokens=most_tokens(len(ids)), logprobs=0)
                running[engine.submit(ids, sampling, policy)] = text
            except RRTEdgeError as error:
                yield text, Reply("", (), (), f"the model cannot take it ({error})")
        if not running:
            return
        if is_stopped():
            raise Stopped
        engine.step()
        for request in [request for request in running if request.finish_reason]:
            text = running.pop(request)
            yield text, _reply(text, request)


def _reply(text: str, request: Request) -> Reply:
    whole = request.text
    answer, lead = whole.strip(), len(whole) - len(whole.lstrip())
    tokens, at = [], -lead
    for token in request.tokens:
        end = at + len(token.text)
        tokens.append(Written(max(at, 0), min(end, len(answer)), token.depth, exp(token.logprob or 0)))
        at = end
    changes = compare(text, answer)
    if request.error is not None:
        reason: str | None = f"the model failed ({request.error})"
    elif request.finish_reason != "stop":
        reason = f"the model's reply had no end within {len(request.tokens)} tokens"
    else:
        reason = problem(text, answer, changes)
    return Reply(answer, tuple(tokens), tuple(changes), reason)
