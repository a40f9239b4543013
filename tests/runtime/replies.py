"""Prompts, and the ids of a model's replies, for tests of sessions and streams."""

from __future__ import annotations

from rrt_edge.runtime import Model, Sampling

PROMPT = [20, 30, 40, 50, 60]
LONG = [20 + at % 200 for at in range(300)]


def ids_of(model: Model, prompt: list[int], **given: object) -> list[int]:
    return [token.id for token in model.generate(prompt, Sampling(**given), "threshold=0.5").tokens]  # type: ignore[arg-type]
