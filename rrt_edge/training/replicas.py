"""A batch divided over threads of a CPU, each with a copy of the model that shares the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rrt_edge.model.threads import torch_threads

Batch = dict[str, Tensor]


def divided(batch: Batch, count: int) -> list[Batch]:
    """At most `count` parts of a batch, of about as many tokens each, without columns that are padding in all rows."""
    mask = batch.get("attention_mask")
    rows = len(batch["input_ids"])
    lengths = torch.full((rows,), batch["input_ids"].shape[1]) if mask is None else mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    parts = []
    for chosen in (order[first::count] for first in range(min(count, rows))):
        some, longest = {name: tensor[chosen] for name, tensor in batch.items()}, int(lengths[chosen].max())
        parts.append({name: tensor[:, :longest] if tensor.dim() > 1 else tensor for name, tensor in some.items()})
    return parts


class Replicas:
    """The model, and copies of it with the same weights and gradients of their own."""

    def __init__(self, model: nn.Module, count: int) -> None:
        self.models = [model, *(_sharing(model) for _ in range(count - 1))]
        self._threads = torch_threads(count)

    def learn(self, losses: list[Callable[[nn.Module], Tensor]]) -> Tensor:
        """Add the gradients of the losses' sum to the model's, and return the sum; one loss for each copy at most."""

        def backward(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
            value = loss(model)
            value.backward()  # type: ignore[no-untyped-call]
            return value.detach()

        used = self.models[: len(losses)]
        for model in used[1:]:
            model.train(self.models[0].training)
        values = list(self._threads.map(backward, used, losses))
        for model in used[1:]:
            for own, other in zip(self.models[0].parameters(), model.parameters(), strict=True):
                if other.grad is not None:
                    own.grad = other.grad if own.grad is None else own.grad.add_(other.grad)
                    other.grad = None
        return torch.stack(values).sum()

    def close(self) -> None:
        self._threads.shutdown()


def _sharing(model: nn.Module) -> nn.Module:
    """Return a copy whose parameters are others, with the same memory."""
    shared = {id(own): nn.Parameter(own.data, own.requires_grad) for own in model.parameters()}
    return copy.deepcopy(model, dict(shared))
