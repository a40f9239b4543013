"""Ranks from a budget of parameters, spent where they bring back most of what sharing loses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from rrt_edge.model.sharing import COMPONENTS

STEP = 8  # between ranks


@dataclass
class Curve:
    """What each rank more of a component's adapters brings back, of all layers together, and the numbers it takes."""

    gains: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    costs: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def add(self, gains: Tensor, cost: int) -> None:
        """Add a projection at one depth; `gains` [full rank], the largest first."""
        size = max(len(self.gains), len(gains))
        costs = torch.full((len(gains),), cost)
        self.gains, self.costs = (
            pad(mine, (0, size - len(mine))) + pad(other, (0, size - len(other)))
            for mine, other in ((self.gains, gains), (self.costs, costs))
        )

    def steps(self) -> tuple[list[int], Tensor, Tensor]:
        """The ranks to choose from, from 0 to full rank; what each brings back in all, and takes."""
        ranks = [*range(0, len(self.gains), STEP), len(self.gains)]
        gains, costs = (pad(values.cumsum(0), (1, 0))[ranks] for values in (self.gains, self.costs))
        return ranks, gains, costs


def curves(spectra: Iterable[tuple[str, Tensor, int]]) -> dict[str, Curve]:
    """The curve of each component, from `Block.spectra`."""
    made: dict[str, Curve] = {component: Curve() for component in dict.fromkeys(COMPONENTS.values())}
    for part, gains, cost in spectra:
        made[COMPONENTS[part]].add(gains, cost)
    return made


def spend(curves: Mapping[str, Curve], allowed: int) -> dict[str, int]:
    """The rank of each component's adapters that bring back most and together take at most `allowed` numbers."""
    *others, last = (curve.steps() for curve in curves.values())
    best, chosen = -1.0, dict.fromkeys(curves, 0)
    ranks, gains, costs = last
    for indices in itertools.product(*(range(len(steps[0])) for steps in others)):
        rest = allowed - sum(int(steps[2][index]) for index, steps in zip(indices, others, strict=True))
        if rest < 0:
            continue
        at = int(torch.searchsorted(costs, rest, right=True)) - 1  # the most that is left for
        gain = float(gains[at]) + sum(float(steps[1][index]) for index, steps in zip(indices, others, strict=True))
        if gain > best:
            found = [steps[0][index] for index, steps in zip(indices, others, strict=True)]
            best, chosen = gain, dict(zip(curves, [*found, ranks[at]], strict=True))
    return chosen
