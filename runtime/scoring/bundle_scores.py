"""What a bundle says to a known text at every depth, token by token."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.decoding.prompt_chunks import CHUNK
from rrt_edge.runtime.loaded import Holder, insides
from rrt_edge.runtime.running.hidden import Hidden
from rrt_edge.runtime.running.runner import AnyRunner, Call
from rrt_edge.runtime.scoring.examples import Example, tokenized_records
from rrt_edge.runtime.scoring.metrics import Scores, joined, scores_of


def read_examples(model: Holder, path: Path, max_tokens: int) -> list[Example]:
    """The texts of a file as a bundle's tokenizer and chat template have them, each cut to `max_tokens`.

    Raises:
        BadInputError: the file cannot be read, a record of it is neither a text nor a chat, or it is a chat and the
            bundle has no chat template or one that refuses it.
    """
    loaded = insides(model)
    examples = tokenized_records(path, loaded.tokenizer, loaded.template)
    return [Example(example.ids[:max_tokens], example.scored[:max_tokens]) for example in examples]


def score_bundle(runner: AnyRunner, examples: Iterable[Example]) -> Scores:
    """Run every example through all depths of a bundle.

    Raises:
        BadInputError: there is nothing to score.
        RRTEdgeError: onnxruntime failed.
    """
    binding, loops = runner.bind(), runner.architecture.loops
    parts = []
    for number, example in enumerate(examples):
        cache, ids = runner.new_cache(), np.asarray(example.ids, np.int64)
        predicting = np.flatnonzero(np.asarray(example.scored, np.bool_)[1:])  # rows that predict a scored token
        for start in range(0, len(ids) - 1, CHUNK):
            rows: NDArray[np.int64] | Hidden = ids[start : min(start + CHUNK, len(ids) - 1)]
            chosen = predicting[(predicting >= start) & (predicting < start + len(rows))]
            logits, gates, stayed = [], [], np.ones(len(rows), np.float32)
            for depth in range(1, loops + 1):
                call = Call(rows, start, depth, depth, logit_rows=(chosen - start).tolist(), stayed=stayed)
                done = runner.run(binding, cache, call)
                rows, stayed = done.hidden, 1 - done.gate
                logits.append(done.logits)
                gates.append(done.gate[chosen - start])
            if len(chosen):
                parts.append(scores_of(logits, np.stack(gates), ids[chosen + 1], number))
    return joined(parts)
