"""What the bits of a new bundle cost: its logits beside the source's, on texts that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rrt_edge.conversion.block import EMBEDDING
from rrt_edge.exporters.checkpoint_weights import RecursiveTensors, final_norm, side_by_side
from rrt_edge.exporters.depth_layers import DepthLayers
from rrt_edge.model.families import family_of
from rrt_edge.runtime.bundle.cost import Cost, DepthCost
from rrt_edge.runtime.running.runner import AnyRunner, Call
from rrt_edge.runtime.scoring.metrics import log_softmax

APART = 9  # of so many texts one is set apart
WINDOW = 128  # tokens of a text that are measured in one
ROWS = 16  # positions whose logits are in memory at once
HEAD_ROWS = 8192  # of the head that are in memory as floats
Float = NDArray[np.float32]
Texts = list[list[int]]


def set_apart(texts: Sequence[Sequence[int]]) -> tuple[Texts, Texts]:
    """Texts to fit to, and windows of the others to measure on: none of a single text."""
    last = [len(texts) - 1] if 1 < len(texts) < APART else []
    chosen = set(last or range(APART - 1, len(texts), APART))
    fitted = [list(ids) for number, ids in enumerate(texts) if number not in chosen]
    others = [list(texts[number]) for number in sorted(chosen)]
    windows = [ids[start : start + WINDOW] for ids in others for start in range(0, len(ids), WINDOW)]
    return fitted, [ids for ids in windows if len(ids) > 1]


class Reference:
    """The source's logits on some windows of text at every depth; of its layers one at a time is in memory."""

    def __init__(self, weights: RecursiveTensors, windows: Texts, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: which keeps embedding and head as they are.
        """
        config = weights.config
        self._text, self._family = config.text_config, family_of(config.text_config)
        self._weights, self._dtype = weights, dtype
        self._norm = None if config.norm_inside else final_norm(weights)  # else the states are normed already
        layers, side = DepthLayers(weights), side_by_side(weights, windows, weights.tensor(EMBEDDING, dtype=dtype))
        self._states: list[list[Tensor]] = []  # by depth and window, [1, S, H]
        for slot in range(self._text.num_hidden_layers):
            depth, k = divmod(slot, config.layers_per_block)
            side.advance_source(slot, side.layer(slot, layers.at_depth(layers.read(k), depth)))
            if k + 1 == config.layers_per_block:
                self._states.append(side.source)

    @cached_property
    def _head(self) -> Tensor:
        return self._weights.tensor(
            EMBEDDING if self._text.tie_word_embeddings else "lm_head.weight", dtype=self._dtype
        )

    @torch.no_grad()
    def logits(self, depth: int, window: int, rows: slice) -> Float:
        """[R, V] of some rows of a window; depths count from 0."""
        states = self._states[depth][window][:, rows]
        normed = (states if self._norm is None else self._norm(states))[0] / self._family.logits_divisor(self._text)
        logits = torch.empty(len(normed), len(self._head))
        for start in range(0, len(self._head), HEAD_ROWS):
            logits[:, start : start + HEAD_ROWS] = normed @ self._head[start : start + HEAD_ROWS].float().T
        cap = self._family.logits_softcap(self._text)
        whole: Float = (logits if cap is None else torch.tanh(logits / cap) * cap).numpy()
        return whole


def cost(reference: Reference, windows: Texts, runner: AnyRunner) -> Cost:
    """Compare a bundle with its source."""
    loops = runner.architecture.loops
    kl, agreed, nll = np.zeros(loops), np.zeros(loops), np.zeros(2)
    for number, ids in enumerate(windows):
        for depth in range(loops):
            binding, cache = runner.bind(), runner.new_cache()
            for start in range(0, len(ids), ROWS):
                some = np.array(ids[start : start + ROWS], np.int64)
                call = Call(some, start, 1, depth + 1, logit_rows=tuple(range(len(some))))
                q = log_softmax(runner.run(binding, cache, call).logits)
                p = log_softmax(reference.logits(depth, number, slice(start, start + ROWS)))
                kl[depth] += float((np.exp(p) * (p - q)).sum())
                agreed[depth] += int((p.argmax(-1) == q.argmax(-1)).sum())
                if depth + 1 == loops:
                    following = ids[start + 1 : start + 1 + ROWS]
                    nll -= [float(side[np.arange(len(following)), following].sum()) for side in (q, p)]
    positions = sum(map(len, windows))
    depths = tuple(
        DepthCost(max(0.0, round(loss / positions, 6)), round(count / positions, 6))
        for loss, count in zip(kl, agreed, strict=True)
    )
    perplexity, of_source = np.exp(nll / (positions - len(windows))).tolist()
    return Cost(positions, depths, round(perplexity, 4), round(of_source, 4))
