"""A host of the graph that knows nothing of ours but its contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Host:
    """A plain onnxruntime host of the one-call form for a batch of sequences of unequal lengths."""

    def __init__(self, bundle: Path, batch: int) -> None:
        self.session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
        shapes = {value.name: value.shape for value in self.session.get_inputs()}
        self.lengths_of = [name for name in shapes if name.startswith("past_length")]  # by KV group
        self.long = {"long_context": np.array(False)} if "long_context" in shapes else {}
        self.loops = json.loads((bundle / "manifest.json").read_text())["architecture"]["loops"]
        self.pasts, self.hidden, self.batch = shapes["past_length"][1], shapes["hidden"][2], batch
        self.layers = sum(name.startswith("past_key.1.") for name in shapes)
        _, self.heads, _, self.size = shapes["past_key.1.0"]
        self.past = np.zeros((2, self.pasts, self.layers, batch, self.heads, 0, self.size), np.float32)
        self.lengths = np.zeros(batch, np.int64)

    def run(self, ids: list[list[int]], threshold: float = 2.0, last: int | None = None) -> tuple[Any, ...]:
        """Feed so many new ids to each sequence; returns logits by sequence, hidden, gate, exit depths."""
        rows = max(map(len, ids))
        padded = np.array([row + [0] * (rows - len(row)) for row in ids])
        valid = np.array([[index < len(row) for index in range(rows)] for row in ids])
        feeds = {
            "input_ids": padded,
            "hidden": np.zeros((self.batch, 0, self.hidden), np.float32),
            "row_depth": valid.astype(np.int64),
            "position_ids": self.lengths[:, None] + np.arange(rows),
            "first": np.array(1),
            "last": np.array(last or self.loops),
            "threshold": np.array(threshold, np.float32),
            "logit_rows": np.flatnonzero(valid),
            "slot_rows": np.zeros(0, np.int64),
            "row_threshold": np.zeros(0, np.float32),
            **dict.fromkeys(self.lengths_of, np.repeat(self.lengths[:, None], self.pasts, axis=1)),
            **self.long,
        }
        for depth in range(self.pasts):
            for layer in range(self.layers):
                feeds[f"past_key.{depth + 1}.{layer}"] = self.past[0, depth, layer]
                feeds[f"past_value.{depth + 1}.{layer}"] = self.past[1, depth, layer]
        logits, hidden, gate, exit_depth, keys, values = self.session.run(None, feeds)
        if len(gate) == self.loops:
            self._keep(np.stack([keys, values]), valid)
        split = np.split(logits, np.cumsum(valid.sum(axis=1))[:-1])
        return split, hidden, gate, exit_depth

    def _keep(self, new: np.ndarray, valid: np.ndarray) -> None:
        counts = valid.sum(axis=1)
        room = int((self.lengths + counts).max())
        grown = np.full((*self.past.shape[:5], room, self.size), 7.0, np.float32)  # unused rows must not matter
        for index in range(self.batch):
            held, more = self.lengths[index], counts[index]
            grown[:, :, :, index, :, :held] = self.past[:, :, :, index, :, :held]
            # new: [2, n, B, layers, KV, S, D]
            grown[:, : self.loops, :, index, :, held : held + more] = new[:, :, index, :, :, :more]
        self.past, self.lengths = grown, self.lengths + counts
