"""The block driven from outside: GroupQueryAttention writes keys and values where they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rrt_edge.exporters.block import BlockEmitter, LayerWeights
from rrt_edge.exporters.builder import FLOAT16, MICROSOFT, Builder
from rrt_edge.exporters.linears import RowDepths
from rrt_edge.exporters.rotary import Turns
from rrt_edge.exporters.spec import BlockSpec


@dataclass(frozen=True)
class DeviceSurroundings:
    """Values that the layers read, by name, and how many sequences the rows are of."""

    depths: RowDepths
    cos: str  # [R * N, rotated / 2], of R rotary embeddings
    sin: str
    turns: Sequence[str]  # by rotary pattern: the rows' indices into cos and sin, int64 [B, N]
    slots: int
    ends: Sequence[str] = ()  # by layer, what follows `last_row.1` and `length.1` in its inputs' names


class TabledDepths(RowDepths):
    """By an index that comes from outside, out of small tables: one operator where the loop graph compares."""

    def __init__(self, graph: Builder, index: str, loops: int, kind: int) -> None:
        super().__init__(graph, "", loops)
        self._index, self.kind = index, kind

    def equal(self, depths: Sequence[int], kind: int) -> str:
        """1 where a row's depth is the one given, 0 elsewhere: [B, S, len(depths)] of a float type."""
        table = [[int(depth == number) for depth in depths] for number in range(1, self.loops + 1)]
        return self.pick(self.graph.constant(table, np.float16 if kind == FLOAT16 else np.float32))


class DeviceBlock(BlockEmitter[DeviceSurroundings]):
    """Emits the layers of the block into a graph of its own, for rows of one or more sequences side by side."""

    rms_norm = "SimplifiedLayerNormalization"  # RMSNormalization as every provider has it

    def attention(
        self, graph: Builder, index: int, weights: LayerWeights, x: str, around: DeviceSurroundings
    ) -> tuple[str, list[str]]:
        """(what attention adds [B, N, hidden], nothing: the planes are outputs of the graph).

        B is 1 where there are several slots; else each text of a batch has a past of its own.
        """
        spec, name = self.spec, f"{self.prefix}.{index}"
        heads, kv_heads, size = spec.heads, spec.kv_heads, spec.head_dim
        qkv = self.linear(graph, f"{name}.qkv", [weights.q, weights.k, weights.v], x, around.depths)
        qkv = self.queries_keys_normed(graph, name, weights, qkv, ("q", "k", "v"), around.depths)
        sizes = graph.constant([(heads + kv_heads) * size, kv_heads * size])
        qk, v = graph.ops("Split", 2, qkv, sizes, axis=-1)
        rotated = 2 * len(spec.rotaries[0].frequencies)
        partial = {} if rotated == size else {"rotary_embedding_dim": rotated, "num_heads": heads + kv_heads}
        turn = around.turns[rotary_patterns(spec).index(rotary_pattern(spec, index))]
        qk = graph.op("RotaryEmbedding", qk, turn, around.cos, around.sin, domain=MICROSOFT, **partial)
        q, k = graph.ops("Split", 2, qk, graph.constant([heads * size, kv_heads * size]), axis=-1)
        slots = range(1, around.slots + 1)
        if around.slots == 1:
            mixed = self._attend(graph, index, 1, q, k, v, around.ends[index] if around.ends else "")
        else:
            pieces = [graph.ops("Split", around.slots, tensor, "slot_rows", axis=1) for tensor in (q, k, v)]
            parts = zip(slots, zip(*pieces, strict=True), strict=True)
            mixed = graph.op("Concat", *[self._attend(graph, index, slot, *rows) for slot, rows in parts], axis=1)
        return self.linear(graph, f"{name}.o", [weights.o], mixed, around.depths), []

    def _attend(self, graph: Builder, layer: int, slot: int, q: str, k: str, v: str, end: str = "") -> str:
        """A slot's rows over its past, which is the same memory before and after: [B, n, heads * D]."""
        where = f"{slot}.{layer}"
        inputs = [q, k, v, f"past_key.{where}", f"past_value.{where}", f"last_row.{slot}{end}", f"length.{slot}{end}"]
        outputs = [f"attended.{where}", f"present_key.{where}", f"present_value.{where}"]
        options = attention_options(self.spec, self.spec.windows[0][layer])
        graph.add("GroupQueryAttention", inputs, outputs, MICROSOFT, **options)
        return outputs[0]


def attention_options(spec: BlockSpec, window: int | None) -> dict[str, float]:
    """The attributes of GroupQueryAttention, for layers with a sliding window or without one."""
    options = {"num_heads": spec.heads, "kv_num_heads": spec.kv_heads, "scale": spec.attention_scale}
    if spec.attention_softcap is not None:
        options["softcap"] = spec.attention_softcap
    if window is not None:
        options["local_window_size"] = window
    return options


def rotary_pattern(spec: BlockSpec, layer: int) -> tuple[int, ...]:
    """Which rotary embedding a layer has, by depth."""
    return tuple(row[layer] for row in spec.rotary_of)


def rotary_patterns(spec: BlockSpec) -> list[tuple[int, ...]]:
    """Those there are; the number of a layer's own says which `turn` its rows are rotated by."""
    return sorted({rotary_pattern(spec, layer) for layer in range(spec.layers)})


def pattern_turns(spec: BlockSpec, turns: Turns) -> list[str]:
    """By rotary pattern, the rows' indices into cos and sin: int64 [B, N]."""
    patterns = [rotary_pattern(spec, layer) for layer in range(spec.layers)]
    return [turns(patterns.index(pattern))[1] for pattern in rotary_patterns(spec)]
