"""Chats that a small model learns in seconds, and how."""

from __future__ import annotations

from rrt_edge.training.options import TrainOptions

CHATS = [
    [{"role": "user", "content": f"What does {name} eat?"}, {"role": "assistant", "content": f"The {name} eats hay."}]
    for name in ("cow", "ox", "hen", "cat")
]


def quick(**changes: object) -> TrainOptions:
    return TrainOptions(**{"epochs": 6, "batch": 8, "lr": 3e-3, "warmup": 1, "save_steps": 4, **changes})  # type: ignore[arg-type]
