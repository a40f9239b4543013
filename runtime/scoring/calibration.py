"""Thresholds that keep a promise: a share of tokens equal to full depth's, at a stated confidence."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.runner import AnyRunner
from rrt_edge.runtime.scoring.metrics import Point, Scores, curve


@dataclass(frozen=True)
class Calibrated:
    """The lowest threshold that promises the agreement asked for; None where none does, the rest being full depth's."""

    threshold: float | None
    promised: float
    confidence: float
    agreement: float
    mean_depth: float
    tokens: int


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
    for point in curve(scores) if points is None else points:
        failures = scores.tokens - round(point.agreement * scores.tokens)
        if binomial_tail(failures, scores.tokens, 1 - agreement) > 1 - confidence:
            break
        chosen = point.threshold
    score = scores.at_depth(scores.depths) if chosen is None else scores.at_threshold(chosen)
    return Calibrated(chosen, agreement, confidence, score.agreement, score.mean_depth, scores.tokens)


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


def depth_seconds(runner: AnyRunner, prompt: Sequence[int], tokens: int = 24) -> list[float]:
    """Seconds of a token that leaves at each depth, measured here: medians behind a prompt, the depths in turn."""
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
    return [statistics.median(seconds) for seconds in times]


def speed_up(scores: Scores, threshold: float | None, seconds: Sequence[float]) -> float:
    """Return the speed in relation to full depth's, where tokens that left are never caught up."""
    if threshold is None:
        return 1.0
    counts = np.bincount(scores.exits(threshold), minlength=scores.depths)
    return float(seconds[-1] * scores.tokens / (counts * seconds).sum())
