"""From logits to the tokens to choose from and their probabilities, as transformers' logits processors do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rrt_edge.runtime.decoding.sampling import Sampling

Float = NDArray[np.float32]
LARGEST = np.finfo(np.float32).max


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


def candidates(logits: Float, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens to choose from and their probabilities: temperature, top-k, top-p, min-p and typical-p in
    transformers' order.

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
    if sampling.typical_p < 1:
        kept = _typical(probabilities / probabilities.sum(), sampling.typical_p)
        tokens, probabilities = tokens[kept], probabilities[kept]
    return tokens, probabilities / probabilities.sum()


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the likeliest of probabilities [N] that reach `top_p` together; at least one.

    From the least likely up, a token is dropped while it and those below it hold no more than 1 - top_p. All N tokens
    under (1 - top_p) / N together hold less than that and are dropped unsorted: in a large vocabulary, nearly all.
    """
    spare = 1 - top_p
    likely = np.flatnonzero(probabilities >= min(spare / len(probabilities), probabilities.max()))
    order = likely[np.argsort(probabilities[likely], kind="stable")]
    below = 1 - probabilities[order].sum()
    kept = below + np.cumsum(probabilities[order]) > spare
    kept[-1] = True
    return np.sort(order[kept])


def _typical(probabilities: NDArray[np.float64], mass: float) -> NDArray[np.int64]:
    """Indices, ascending, of the tokens whose surprise is nearest to what is expected and that reach `mass` together;
    at least one (locally typical sampling, arXiv 2202.00666)."""
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities)
    possible = probabilities > 0
    entropy = float((probabilities[possible] * surprise[possible]).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    reached = int((np.cumsum(probabilities[order]) < mass).sum())
    return np.sort(order[: reached + 1])


def less_repetition(logits: Float, reply: Sequence[int], presence: float, frequency: float) -> Float:
    """Logits [V] less `presence` for each token in the reply and less `frequency` for each time it is there.

    As OpenAI's API has it; the prompt does not count.
    """
    if not (presence or frequency) or not len(reply):
        return logits
    tokens, times = np.unique(np.asarray(reply, np.int64), return_counts=True)
    changed = logits.copy()
    changed[tokens] -= (presence + frequency * times).astype(np.float32)
    return changed
