"""Rotary embeddings: cos and sin of the rows' positions, computed once, and where each layer finds its own in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rrt_edge.exporters.builder import FLOAT, Builder
from rrt_edge.exporters.linears import RowDepths
from rrt_edge.exporters.masks import Rows
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.runtime.bundle.contract import LONG_CONTEXT

Turns = Callable[[int], tuple[str, str]]


class Rotations:
    """`cos` and `sin`, [R * B * N, rotated / 2], of the rows' positions in all R rotary embeddings of the model."""

    def __init__(self, spec: BlockSpec, rows: Rows) -> None:
        self.spec, self.rows = spec, rows
        top = rows.top
        positions = top.reshape(top.op("Cast", "position_ids", to=FLOAT), -1, 1)
        parts = []
        for rotary in spec.rotaries:
            frequencies = top.constant([rotary.frequencies], np.float32)  # [1, rotated / 2]
            if rotary.long_frequencies is not None:
                long = top.constant([rotary.long_frequencies], np.float32)
                frequencies = top.op("Where", LONG_CONTEXT.name, long, frequencies)
            angles = top.op("Mul", positions, frequencies)
            cos, sin = top.op("Cos", angles), top.op("Sin", angles)
            if rotary.scale != 1.0:
                scale = top.constant(rotary.scale, np.float32)
                cos, sin = top.op("Mul", cos, scale), top.op("Mul", sin, scale)
            parts.append((cos, sin))
        self.cos, self.sin = (
            each[0] if len(each) == 1 else top.op("Concat", *each, axis=0) for each in zip(*parts, strict=True)
        )
        self._count = top.op("ReduceProd", rows.shape, keepdims=0)  # B * N
        index = top.op("Range", top.constant(0), self._count, top.constant(1))
        self._row_index = top.op("Reshape", index, rows.shape)

    def turns(self, body: Builder, depths: RowDepths) -> Turns:
        """A function of a layer: int64 [B, S] and [B, N], the rows' indices into cos and sin at their depths."""
        rotations: dict[tuple[int, ...], tuple[str, str]] = {}

        def of_layer(layer: int) -> tuple[str, str]:
            pattern = tuple(row[layer] for row in self.spec.rotary_of)
            if pattern not in rotations:
                index = self._row_index
                if any(pattern):
                    which = depths.pick(body.constant(pattern))  # [B, N]
                    index = body.op("Add", index, body.op("Mul", which, self._count))
                rotations[pattern] = (self.rows.behind_exited(body, index), index)
            return rotations[pattern]

        return of_layer
