"""Which parts of a bundle get 8 bits within a size: those whose 4 bits cost the most divergence for their bytes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rrt_edge.exporters.checkpoint_weights import RecursiveTensors, layer_weights
from rrt_edge.exporters.divergence import LORA, divergences
from rrt_edge.exporters.dry_run import SMALL_FILES, Shapes, emitted_bytes
from rrt_edge.exporters.options import ExportOptions
from rrt_edge.exporters.spec import spec_of
from rrt_edge.exporters.units import UNITS, inseparable
from rrt_edge.model.families import family_of
from rrt_edge.quantisation.blocks import SIZES
from rrt_edge.quantisation.plan import Bits, packs_embedding
from rrt_edge.quantisation.wide import Adapted, fused_shape, has_adapters, lora_columns
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.progress import Progress

EMBEDDING, HEAD = "embedding", "head"
OUTSIDE: tuple[str, ...] = (EMBEDDING, HEAD, LORA)  # what is no unit of the block
DATA_LEAVES = 0.15  # of the divergence that rounding the block to the nearest costs, what rounding with data costs
# (SmolLM2-135M, benchmarks/bits_cost.py: 0.046 of 0.296); embedding and head are rounded to the nearest anyhow
LINE_BYTES = 150  # of a layer at each depth in the manifest: windows, numbers of layers, and again in the graph


@dataclass(frozen=True)
class Spent:
    """Matrices of one kind, how many of them have 8 bits, and what that costs and saves.

    Attributes:
        kind: `qk`, `v`, `o`, `gate_up`, `down`, `embedding`, `head` or `lora`.
        raised, count: how many have 8 bits, of how many.
        bytes: what 8 bits take more than 4.
        saved, left: of the divergence (KL for a token, over all depths, as estimated) that 4 bits for all would cost.
    """

    kind: str
    raised: int
    count: int
    bytes: int
    saved: float
    left: float


@dataclass(frozen=True)
class _Group:
    """What gets 8 bits together."""

    names: tuple[str, ...]
    bytes: int
    divergence: float


class Budget:
    """The bytes that a bundle may take, and what all at 4 bits takes of them."""

    def __init__(self, weights: RecursiveTensors, plan: Bits, folder: Path, options: ExportOptions) -> None:
        """
        Args:
            plan: the smallest form.
            folder: the new bundle's, with the tokenizer in it already.

        Raises:
            BadInputError: not even the smallest form fits.
        """
        self._weights, self._plan, config = weights, plan, copy.deepcopy(weights.config)
        config.rank = options.repair_rank or config.rank
        self._spec = spec = replace(spec_of(config), kv_bits=options.kv_bits)
        self._shapes, most = Shapes(config), options.max_size
        assert most is not None
        beside = sum(path.stat().st_size for path in folder.iterdir())
        beside += SMALL_FILES + LINE_BYTES * spec.layers * spec.loops
        self._most = most - beside
        smallest = emitted_bytes(spec, plan, self._shapes)
        if smallest > self._most:
            needed = f"{math.ceil((smallest + beside) / 1e4) / 100:.2f}MB"
            larger = f" in blocks of {plan.block_size}" if plan.block_size < SIZES[-1] else ""
            raise BadInputError(
                f"max-size {most / 1e6:.2f}MB: too little for this model; all at 4 bits{larger} it takes {needed}"
            )
        self._smallest = smallest

    def spend(
        self, texts: Sequence[Sequence[int]], dtype: torch.dtype, progress: Progress | None
    ) -> tuple[Bits, list[Spent]]:
        """The plan that has 8 bits where the divergence on some texts falls most for the bytes, within the size."""
        costs = divergences(self._weights, texts, self._plan, dtype, progress)
        groups = sorted(self._groups(costs), key=lambda group: (-group.divergence / group.bytes, group.names))
        room = self._most - self._smallest
        while True:
            chosen, left = [], room
            for group in groups:
                if group.bytes <= left:
                    chosen.append(group)
                    left -= group.bytes
            plan = self._raised(chosen)
            beyond = emitted_bytes(self._spec, plan, self._shapes) - self._most  # nodes and padding of its own
            if beyond <= 0:
                return plan, _summary(groups, chosen)
            room -= beyond

    def _raised(self, chosen: Sequence[_Group]) -> Bits:
        names = {name for group in chosen for name in group.names}
        plan = replace(self._plan, eight_bit=frozenset(names - set(OUTSIDE)))
        if EMBEDDING in names:
            plan = replace(plan, embedding=8)
        if HEAD in names or (EMBEDDING in names and self._spec.tied_head):
            plan = replace(plan, head=8)
        return replace(plan, lora=8) if LORA in names else plan

    def _groups(self, costs: Mapping[str, float]) -> list[_Group]:
        spec, loops, bytes_of, lora = self._spec, self._spec.loops, dict[str, int](), 0
        unscaled = replace(spec, residual_scale=1.0)  # to scale a matrix would take its memory
        layers = layer_weights(self._shapes, unscaled, lambda name: self._shapes.tensor(name).numpy())
        for index, layer in enumerate(layers):
            for name, parts in UNITS.items():
                linears: list[Adapted] = [own for own in (getattr(layer, part) for part in parts) if own is not None]
                apart = [[linear] for linear in linears] if name == "gate_up" and has_adapters(linears) else [linears]
                shapes = [(fused_shape(run, loops), run[0].weight.shape[1]) for run in apart]
                bytes_of[f"{index}.{name}"] = sum(self._more(shape, columns) for shape, columns in shapes)
                for linear in linears:
                    if linear.a is not None:
                        columns = linear.weight.shape[1]
                        lora += self._more((lora_columns(linear.a.shape[1], loops), columns), columns)
        whole = self._more((spec.vocabulary, spec.hidden), spec.hidden)
        bytes_of |= {HEAD: whole, LORA: lora}
        if packs_embedding(spec.hidden, 8) or spec.tied_head:
            bytes_of[EMBEDDING] = whole
        together = inseparable(family_of(self._weights.config.text_config))
        groups = [tuple(f"{index}.{name}" for name in names) for index in range(spec.layers) for names in together]
        groups += [(name,) for name in OUTSIDE if name in costs and name in bytes_of]
        left = {name: cost if name in (EMBEDDING, HEAD) else DATA_LEAVES * cost for name, cost in costs.items()}
        return [
            _Group(names, sum(bytes_of[name] for name in names), sum(left.get(name, 0.0) for name in names))
            for names in groups
        ]

    def _more(self, shape: tuple[int, int], columns: int) -> int:
        """What a matrix [out, in] takes more at 8 bits than at 4; `columns` of its rows are no adapters'."""
        few, many = (self._plan.format(bits, columns).bytes(shape) for bits in (4, 8))
        return many - few


def _summary(groups: Sequence[_Group], chosen: Sequence[_Group]) -> list[Spent]:
    """By kind, in the order of the model."""
    kinds: dict[str, list[_Group]] = {}
    for group in groups:
        kind = "".join(name.rpartition(".")[2] for name in group.names)
        kinds.setdefault(kind, []).append(group)
    spent, names = [], set(chosen)
    for kind in sorted(kinds, key=lambda kind: [*UNITS, *OUTSIDE].index(kind.removesuffix("v") or kind)):
        own = kinds[kind]
        raised = [group for group in own if group in names]
        saved = sum(group.divergence for group in raised)
        left = sum(group.divergence for group in own) - saved
        spent.append(Spent(kind, len(raised), len(own), sum(group.bytes for group in raised), saved, left))
    return spent
