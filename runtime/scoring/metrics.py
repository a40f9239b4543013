"""What a model says to a known text at every depth, token by token: from it follow the scores of any exit policy.

Under the KV rule `exact` a token's logits at a depth do not depend on where the tokens before it left, so that one pass
through all depths tells what every threshold would have given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.decoding.decoder import CHUNK
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.running.hidden import Hidden
from rrt_edge.runtime.running.runner import NEVER, Runner
from rrt_edge.runtime.scoring.corpus import NOT_A_RECORD, chat_ids, read_records

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]
BINS = 15  # of the reliability diagram


@dataclass(frozen=True)
class Example:
    """Token ids of a text, and which of them are scored: those after the first that the model should say."""

    ids: Sequence[int]
    scored: Sequence[bool]


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

    expected_error: float
    bins: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Scores:
    """Of N scored tokens in order, at each of K depths; `text` [N] says which text a token belongs to."""

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
        """Of all tokens leaving after so many loops."""
        return self._of(np.full(self.tokens, depth - 1))

    def at_threshold(self, threshold: float) -> Score:
        """Of each token leaving at the first depth whose gate reaches the threshold."""
        return self._of(self.exits(threshold))

    def exits(self, threshold: float) -> NDArray[np.int64]:
        """The depth each token leaves at, counted from 0."""
        return np.asarray((self.gate >= np.float32(threshold)).argmax(axis=0))

    def exact(self, depth: int) -> Bool:
        """Of each text with scored tokens, whether all of them are the likeliest after so many loops."""
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
        """Of the gates of all depths but the last."""
        given, true = self.gate[:-1].ravel(), self.agrees[:-1].ravel()
        index = np.minimum((given * BINS).astype(int), BINS - 1)
        bins = [
            (float(given[index == one].mean()), float(true[index == one].mean()), int((index == one).sum()))
            for one in range(BINS)
            if (index == one).any()
        ]
        error = sum(abs(mean - share) * count for mean, share, count in bins) / max(1, len(given))
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
    top = np.stack([one.argmax(axis=-1) for one in logits])
    rows = np.arange(len(targets))
    nll = np.stack([-log_softmax(one)[rows, targets] for one in logits]).astype(np.float32)
    return Scores(top == targets, top == top[-1], nll, gate.astype(np.float32), np.full(len(targets), text))


def read_examples(model: Model, path: Path, max_tokens: int) -> list[Example]:
    """The texts of a file as a bundle's tokenizer and chat template have them, each cut to `max_tokens`.

    Raises:
        BadInputError: the file cannot be read, or holds chats and the bundle has no chat template.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = model.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    examples = []
    for where, record in read_records(path):
        try:
            chat = record.get("messages")
            if chat is None:
                ids = model.encode(record["text"])
                said = [True] * len(ids)
            elif model.template is None:
                raise BadInputError(f"{where}: a chat, and this bundle has no chat template")
            else:
                ids, said = chat_ids(chat, model.template.render, encode)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"{where}: {NOT_A_RECORD}") from error
        examples.append(Example(ids[:max_tokens], said[:max_tokens]))
    return examples


def log_softmax(logits: Float) -> NDArray[np.float64]:
    """Log probabilities of logits [N, V]."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def score_bundle(runner: Runner, examples: Iterable[Example]) -> Scores:
    """Run every example through all depths of a bundle.

    Raises:
        BadInputError: there is nothing to score.
        RRTEdgeError: onnxruntime failed.
    """
    binding, loops = runner.bind(), runner.architecture.loops
    parts = []
    for number, example in enumerate(examples):
        cache, ids = runner.new_cache(), np.asarray(example.ids, np.int64)
        asked = np.flatnonzero(np.asarray(example.scored, np.bool_)[1:])  # rows that predict a scored token
        for start in range(0, len(ids) - 1, CHUNK):
            rows: NDArray[np.int64] | Hidden = ids[start : min(start + CHUNK, len(ids) - 1)]
            wanted = asked[(asked >= start) & (asked < start + len(rows))]
            logits, gates = [], []
            for depth in range(1, loops + 1):
                settings = {"position": start, "first": depth, "last": depth, "threshold": NEVER}
                done = runner.run(binding, cache, rows, **settings, logit_rows=(wanted - start).tolist())  # type: ignore[arg-type]
                rows = done.hidden
                logits.append(done.logits)
                gates.append(done.gate[wanted - start])
            if len(wanted):
                parts.append(scores_of(logits, np.stack(gates), ids[wanted + 1], number))
    return joined(parts)
