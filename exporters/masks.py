"""Which rows a call brings, and what each sees: masks by depth or slot, with sliding windows where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rrt_edge.exporters.builder import INT64, Builder, choose_one
from rrt_edge.exporters.linears import RowDepths
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.runtime.bundle.contract import past_length, past_name

WITHOUT_END = 1 << 40  # the window of a layer that has none, where another depth of it has one


@dataclass(frozen=True)
class Seen:
    """By name: what a call's rows, or a slot's, see of one past and of each other."""

    mask: str  # float [B, 1, group * S, P + N]: the past, and the new rows causally
    past_split: str  # int64 [2]: P, N


@dataclass(frozen=True)
class Slots:
    """The values that the step form's attention reads, by name; the lists have an entry for each slot of n rows."""

    rows: str  # int64 [slots]: n
    key_rows: str  # the same; where rows propagate [2 * slots]: f of each, n of each
    seen: Sequence[Sequence[Seen]]  # by KV group and slot; their N is f + n


class Rows:
    """The rows of a call, [B, N]: S of them, and before them, where the graph propagates, F that have left."""

    def __init__(self, spec: BlockSpec, top: Builder) -> None:
        self.spec, self.top = spec, top
        self.shape = top.op("Shape", "position_ids")  # [2]: B, N
        self.keys = self.count = top.op("Gather", self.shape, top.constant(1))  # N, S
        if spec.propagates:
            self.exited = top.op("Squeeze", top.op("Shape", "left_hidden", start=1, end=2))  # F
            self.count = top.op("Sub", self.keys, self.exited)

    def behind_exited(self, graph: Builder, tensor: str) -> str:
        """Without the rows that have left: [B, N, ..] -> [B, S, ..]."""
        if not self.spec.propagates:
            return tensor
        exited, end = graph.op("Shape", "left_hidden", start=1, end=2), graph.constant([np.iinfo(np.int64).max])
        return graph.op("Slice", tensor, exited, end, graph.constant([1]))

    def last(self) -> str:
        """Index of each sequence's last valid row, [B, 1]: rows of depth 0 are padding on the right."""
        top = self.top
        depths = self.behind_exited(top, "row_depth")
        valid = top.op("Cast", top.op("Greater", depths, top.constant(0)), to=INT64)
        return top.op("Sub", top.op("ReduceSum", valid, top.constant([1]), keepdims=1), top.constant(1))


class Masks:
    """Emits the masks of the loop body; layers of one KV group share theirs."""

    def __init__(self, spec: BlockSpec, rows: Rows) -> None:
        self.spec, self.rows = spec, rows
        self.patterns = [tuple(row[layers[0]] for row in spec.windows) for layers in spec.kv_groups]  # by depth
        self.causal = self._causal() if any(not any(pattern) for pattern in self.patterns) else ""

    def past(self, body: Builder, choices: Sequence[str], depth: str, depths: RowDepths) -> list[Seen]:
        """Emit what the rows of one call see at this depth, by KV group."""
        layers = [group[0] for group in self.spec.kv_groups]

        def bound(branch: Builder, chosen: int) -> list[str]:
            if chosen > self.spec.loops:  # a step has a past for each slot
                return [branch.op("Identity", branch.constant([0])) for _ in layers]
            return [branch.op("Shape", past_name("key", chosen, layer), start=2, end=3) for layer in layers]

        sizes = choose_one(body, choices, len(layers), bound)
        index = body.op("Sub", depth, body.constant(1))
        seen = []
        for group, size in enumerate(sizes):
            length = body.op("Gather", past_length(group).name, index, axis=1)  # [B]
            split = body.op("Concat", size, body.reshape(self.rows.keys, 1), axis=0)
            if not any(self.patterns[group]):
                mask = self._mask(body, size, body.reshape(length, -1, 1, 1, 1), self.causal)
            else:
                first = self.rows.exited if self.spec.propagates else body.constant(0)
                row = body.op("Range", first, self.rows.keys, body.constant(1))
                limit = self._limit(body, group, depths)
                mask = self._windowed(body, size, body.reshape(length, -1, 1, 1), row, self.rows.keys, limit)
            seen.append(Seen(mask, split))
        return seen

    def slots(self, body: Builder, stepping: str, depths: RowDepths) -> Slots:
        """Emit what the rows of each slot see in the step form; nothing is computed in the other form."""
        spec, count, groups = self.spec, self.spec.pasts, len(self.patterns)
        step, idle = Builder(body), Builder(body)
        limits = [self._slot_limits(body, step, group, depths) for group in range(groups)]
        key_rows = "slot_rows"
        if spec.propagates:
            key_rows = step.op("Concat", "slot_left_rows", "slot_rows", axis=0)
        names: list[str] = []
        for slot in range(count):
            rows = self._entry(step, "slot_rows", slot)  # [1]
            exited = self._entry(step, "slot_left_rows", slot) if spec.propagates else ""
            seen = step.op("Add", exited, rows) if exited else rows
            causal = self._slot_causal(step, rows, exited, seen) if self.causal else ""
            for group, pattern in enumerate(self.patterns):
                layer = spec.kv_groups[group][0]
                size = step.op("Shape", past_name("key", slot + 1, layer), start=2, end=3)
                length = self._entry(step, past_length(group).name, slot, axis=1)
                if any(pattern):
                    first = step.op("Squeeze", exited) if exited else step.constant(0)
                    end = step.op("Squeeze", seen)
                    row = step.op("Range", first, end, step.constant(1))
                    bound = step.reshape(length, 1, 1, 1)
                    mask = self._windowed(step, size, bound, row, end, limits[group][slot])
                else:
                    mask = self._mask(step, size, step.reshape(length, 1, 1, 1, 1), causal)
                names += [mask, step.op("Concat", size, seen, axis=0)]
        nothing, no_mask = idle.constant([0]), idle.constant(np.zeros((1, 1, 0, 0)), np.float32)
        nothings = [nothing, *[no_mask, nothing] * (count * groups)]
        branches = {
            "then_branch": step.branch([step.op("Identity", key_rows), *names], "slots"),
            "else_branch": idle.branch([idle.op("Identity", name) for name in nothings], "no_slots"),
        }
        key_rows, *masks = body.ops("If", 1 + len(names), stepping, **branches)
        pairs = [Seen(*masks[index : index + 2]) for index in range(0, len(masks), 2)]
        return Slots("slot_rows", key_rows, [pairs[group::groups] for group in range(groups)])

    @staticmethod
    def _entry(graph: Builder, tensor: str, index: int, axis: int = 0) -> str:
        """One entry along an axis, which stays."""
        return graph.op("Slice", tensor, graph.constant([index]), graph.constant([index + 1]), graph.constant([axis]))

    def _causal(self) -> str:
        """Mask among the new rows, [S, N]."""
        top = self.rows.top
        row = top.reshape(top.op("Range", top.constant(0), self.rows.count, top.constant(1)), -1, 1)
        if self.spec.propagates:
            row = top.op("Add", row, self.rows.exited)
        column = top.op("Range", top.constant(0), self.rows.keys, top.constant(1))
        return self._hide(top, top.op("Greater", column, row))

    def _slot_causal(self, step: Builder, rows: str, exited: str, seen: str) -> str:
        """The corner of the causal mask that is a slot's, [n, f + n]: of whichever rows."""
        starts, columns = step.constant([0, 0]), rows
        if exited:
            all_left = step.op("Shape", "left_hidden", start=1, end=2)
            starts = step.op("Concat", step.constant([0]), step.op("Sub", all_left, exited), axis=0)
            columns = step.op("Add", all_left, rows)
        return step.op("Slice", self.causal, starts, step.op("Concat", rows, columns, axis=0))

    @staticmethod
    def _hide(graph: Builder, hidden: str) -> str:
        """Minus infinity where `hidden` is true, 0 elsewhere."""
        return graph.op("Where", hidden, graph.constant(-np.inf, np.float32), graph.constant(0.0, np.float32))

    def _mask(self, graph: Builder, size: str, length: str, new_mask: str) -> str:
        """Mask over a past of `size` [1] rows, of which `length` [B, 1, 1, 1] are valid, and the new rows behind.

        The query heads of a group stand below each other.
        """
        new_mask = graph.op("Tile", new_mask, graph.constant([self.spec.group, 1]))  # [group * S, N]
        column = graph.op("Range", graph.constant(0), graph.op("Squeeze", size), graph.constant(1))
        past = self._hide(graph, graph.op("GreaterOrEqual", column, length))  # [B, 1, 1, P]
        batch = graph.op("Shape", length, start=0, end=1)
        queries, single = graph.op("Shape", new_mask, start=0, end=1), graph.constant([1])
        past = graph.op("Expand", past, graph.op("Concat", single, single, queries, single, axis=0))
        new = graph.op("Expand", new_mask, graph.op("Concat", batch, single, single, single, axis=0))
        return graph.op("Concat", past, new, axis=-1)

    def _limit(self, graph: Builder, group: int, depths: RowDepths) -> str:
        """Emit how many rows each row sees, itself included: int64 [B, S, 1], or [1, 1, 1] where that is one number."""
        pattern = [WITHOUT_END if window is None else window for window in self.patterns[group]]
        if len(set(pattern)) == 1:
            return graph.constant([[[pattern[0]]]])
        return graph.op("Unsqueeze", depths.pick(graph.constant(pattern)), graph.constant([2]))

    def _slot_limits(self, body: Builder, step: Builder, group: int, depths: RowDepths) -> list[str]:
        if not any(self.patterns[group]):
            return []
        limit = self._limit(body, group, depths)
        if len(set(self.patterns[group])) == 1:
            return [limit] * self.spec.pasts
        return step.ops("Split", self.spec.pasts, limit, "slot_rows", axis=1)

    def _windowed(self, graph: Builder, size: str, length: str, row: str, columns: str, limit: str) -> str:
        """Emit what `_mask` does, with a window: for the rows numbered `row` [n] among `columns` [] new ones.

        The past, of which `length` [B, 1, 1] rows are valid, ends right before them; a row sees the last `limit`
        [B, n, 1] rows up to itself.
        """
        zero, single = graph.constant(0), graph.constant(1)
        row = graph.reshape(row, 1, -1, 1)
        behind = graph.op("Sub", row, limit)  # number of the last new row that is out of sight
        column = graph.op("Range", zero, graph.op("Squeeze", size), single)
        behind_past = graph.op("Add", behind, length)  # the same as a column of the past: [B, n, 1]
        unseen = graph.op("LessOrEqual", column, behind_past)
        past = graph.op("Or", graph.op("GreaterOrEqual", column, length), unseen)  # [B, n, P]
        column = graph.op("Range", zero, columns, single)
        unseen = graph.op("LessOrEqual", column, graph.op("Sub", behind_past, length))
        new = graph.op("Or", graph.op("Greater", column, row), unseen)  # [B, n, N]
        mask = self._hide(graph, graph.op("Concat", past, new, axis=-1))
        if self.spec.group > 1:
            mask = graph.op("Tile", mask, graph.constant([1, self.spec.group, 1]))
        return graph.op("Unsqueeze", mask, graph.constant([1]))
