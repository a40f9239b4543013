"""Thresholds that keep a promise: a share of tokens equal to full depth's, at a stated confidence."""

from __future__ import annotations

import bisect
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import truediv

import numpy as np

from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.runner import AnyRunner
from rrt_edge.runtime.scoring.metrics import Point, Scores, curve

MOST_TOKENS = 1 << 20  # of a text that anybody has


@dataclass(frozen=True)
class Calibrated:
    """The lowest threshold that promises the agreement asked for; None where none does, the rest being full depth's.

    `tokens_needed`: where none does, about how many tokens would be enough for the promise, as far as these tell; None
    where more would not help.
    """

    threshold: float | None
    promised: float
    confidence: float
    agreement: float
    mean_depth: float
    tokens: int
    tokens_needed: int | None = None


def calibrate(
    scores: Scores, agreement: float, confidence: float = 0.95, points: Sequence[Point] | None = None
) -> Calibrated:
    """The lowest threshold at which at least `agreement` of the tokens are full depth's, with so much confidence.

    Learn-then-Test (arXiv 2110.01052) with fixed sequence testing: thresholds from 1 downwards, each tested against the
    hypothesis that fewer agree, by the exact binomial tail; the last one before the first that is not rejected. Tokens
    count as independent draws of what the model will be asked. `points`: the `curve`, where it is there already.

    Raises:
        BadInputError: agreement or confidence is not between 0 and 1.
    """
    check_promise(agreement, confidence)
    chosen: float | None = None
    points = curve(scores) if points is None else points
    for point in points:
        failures = scores.tokens - round(point.agreement * scores.tokens)
        if binomial_tail(failures, scores.tokens, 1 - agreement) > 1 - confidence:
            break
        chosen = point.threshold
    score = scores.at_depth(scores.depths) if chosen is None else scores.at_threshold(chosen)
    needed = None if chosen is not None else tokens_needed(agreement, confidence, 1 - points[0].agreement)
    return Calibrated(chosen, agreement, confidence, score.agreement, score.mean_depth, scores.tokens, needed)


def check_promise(agreement: float, confidence: float) -> None:
    """
    Raises:
        BadInputError: agreement or confidence is not between 0 and 1.
    """
    for name, value in (("agreement", agreement), ("confidence", confidence)):
        if not 0 < value < 1:
            raise BadInputError(f"{name} {value}: must be between 0 and 1")


def binomial_tail(successes: int, trials: int, share: float) -> float:
    """P(X <= successes) of a binomial variable."""
    log_p, log_q = math.log(share), math.log1p(-share)
    whole = math.lgamma(trials + 1)
    terms = [
        whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q
        for k in range(successes + 1)
    ]
    highest = max(terms)
    return min(1.0, math.exp(highest) * math.fsum(math.exp(term - highest) for term in terms))


def tokens_needed(agreement: float, confidence: float, failing: float) -> int | None:
    """The fewest tokens that keep a promise where such a share of them is not full depth's; None where no text can."""
    allowed, most = 1 - agreement, 1
    while binomial_tail(math.ceil(failing * most), most, allowed) > 1 - confidence:
        most *= 2
        if failing >= allowed or most > MOST_TOKENS:
            return None
    return bisect.bisect_left(
        range(most),
        True,
        key=lambda tokens: binomial_tail(math.ceil(failing * tokens), tokens, allowed) <= 1 - confidence,
    )


def depth_costs(runner: AnyRunner, prompt: Sequence[int], tokens: int = 24) -> list[float]:
    """What a token that leaves at each depth costs, as a share of full depth's, measured here behind a prompt.

    Each share is the median of those of single tokens, for which the depths follow each other closely, so that other
    work on the machine slows them alike. It is not below the share of the loops that are run, nor above 1: what is
    around the loops costs every token the same.
    """
    depths = range(1, runner.architecture.loops + 1)
    decoders = [Decoder(runner) for _ in depths]
    for decoder in decoders:
        decoder.prefill(prompt, ExitPolicy())
    times: list[list[float]] = [[] for _ in depths]
    for _ in range(tokens):
        for depth, decoder in zip(depths, decoders, strict=True):
            started = time.perf_counter()
            decoder.step(prompt[-1], ExitPolicy(depth=depth))
            times[depth - 1].append(time.perf_counter() - started)
    shares = [statistics.median(map(truediv, seconds, times[-1])) for seconds in times]
    return [min(max(share, depth / len(depths)), 1.0) for depth, share in zip(depths, shares, strict=True)]


def speed_up(scores: Scores, threshold: float | None, costs: Sequence[float]) -> float:
    """Return the speed in relation to full depth's, by `depth_costs`, where tokens that left are never caught up."""
    if threshold is None:
        return 1.0
    counts = np.bincount(scores.exits(threshold), minlength=scores.depths)
    return float(scores.tokens / (counts * costs).sum())
