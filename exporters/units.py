"""Units of a block: the matrices of a layer that have the same bits, by the layer's number and a name, as `3.down`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rrt_edge.exporters.block import LayerWeights
from rrt_edge.model.families import Family
from rrt_edge.quantisation.plan import Bits

UNITS = {"qk": ("q", "k"), "v": ("v",), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
UNIT_OF = {part: unit for unit, parts in UNITS.items() for part in parts}


def unit(layer: int, part: str) -> str:
    """The unit of a projection."""
    return f"{layer}.{UNIT_OF[part]}"


def inseparable(family: Family) -> list[tuple[str, ...]]:
    """The names of units in groups: those that share a matrix of the checkpoint have the same bits."""
    groups: dict[str, set[str]] = {name: {name} for name in UNITS}
    for linear in family.linears:
        together = set().union(*(groups[UNIT_OF[part]] for part in linear.parts))
        groups |= dict.fromkeys(together, together)
    return list(dict.fromkeys(tuple(name for name in UNITS if name in group) for group in groups.values()))


def with_bits(layers: Iterable[LayerWeights], bits: Bits) -> Iterator[LayerWeights]:
    """The layers of a block, with the bits of the units that have their own."""
    for index, layer in enumerate(layers):
        changed = {}
        for part in UNIT_OF:
            linear = getattr(layer, part)
            if linear is not None and unit(index, part) in bits.eight_bit:
                changed[part] = replace(linear, bits=8)
        yield replace(layer, **changed)


def by_name(units: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of the layers by the unit's name, in order."""
    layers: dict[str, list[int]] = defaultdict(list)
    for number, name in sorted((int(number), name) for number, _, name in (each.partition(".") for each in units)):
        layers[name].append(number)
    return {name: layers[name] for name in UNITS if name in layers}
