"""Training by several processes, as torchrun or `accelerate launch` start them: the model sharded by FSDP2.

Each layer of the block is a unit that is gathered when it runs, once for each loop, and let go of again; embedding,
head, norm and gate are one more. Checkpoints hold whole tensors by name, so that any number of processes goes on from
them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rrt_edge.model.modeling import RecursiveForCausalLM

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
OPTIMIZER = "optimizer.pt"


def processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Until every process is here."""
    if processes() > 1:
        distributed.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Let the first process go alone, and the others after it."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def shard(model: RecursiveForCausalLM, device: torch.device) -> None:
    """Spread the parameters over the processes, in place."""
    mesh = init_device_mesh(device.type, (processes(),))
    model.to(device)
    for layer in model.model.block:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def share_of_mean(loss: Tensor, count: int) -> Tensor:
    """A mean over `count` rows, weighted so that the mean over processes is that over the rows of all."""
    if processes() == 1:
        return loss
    total = torch.tensor(float(count), device=loss.device)
    distributed.all_reduce(total)
    return loss * (count * processes() / total.clamp(min=1))


def summed(numbers: Tensor) -> Tensor:
    """The sum over processes."""
    if processes() > 1:
        distributed.all_reduce(numbers)
    return numbers


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Whole tensors by name, in the first process."""
    state: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    return state


def load_model(model: nn.Module, weights: Path) -> None:
    """Load a safetensors file; names that share a tensor with another need not be in it."""
    state = load_file(weights)
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: dict[str, Any], folder: Path) -> None:
    state = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    if is_main():
        torch.save({"optimizer": state, "schedule": schedule}, folder / OPTIMIZER)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> dict[str, Any]:
    """Load what `save_optimizer` wrote; returns the schedule's state."""
    state = torch.load(folder / OPTIMIZER, weights_only=True)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=StateDictOptions(full_state_dict=True))
    schedule: dict[str, Any] = state["schedule"]
    return schedule
