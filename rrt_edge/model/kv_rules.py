"""The KV rules in torch, for training and as what the runtime is compared with: how tokens that left early are seen.

`exact`: as if they had not left. `propagate`: the depths they skip compute keys and values from the state they left
with (CALM, arXiv 2207.07061). `latest`: the depths they skip read their deepest keys and values (Huginn, arXiv
2502.05171). `skip`: the depths they skip do not see them (Mixture-of-Recursions, arXiv 2507.10524).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LeftKeyValues:
    """Stands where a cache would, for a whole text: of tokens that have left, a run of the block uses the keys and
    values of the run before, which under `latest` is that of the depth before and under `propagate` one of the states
    they left with."""

    def __init__(self) -> None:
        self.left: Tensor | None = None  # bool [B, S]: have left before the depth that runs
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [B, KV, S, D] for a layer's attention."""
        if self.left is not None:
            left = self.left[:, None, :, None]
            old_keys, old_values = self._held[layer]
            keys, values = torch.where(left, old_keys, keys), torch.where(left, old_values, values)
        self._held[layer] = (keys, values)
        return keys, values


def sees_those_inside(left: Tensor) -> Callable[[Any, Any, Any, Any], Any]:
    """A mask function for transformers: tokens that have left ([B, S]) are seen by themselves alone."""

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return ~left[batch, key] | (query == key)

    return seen
