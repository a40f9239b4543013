"""Questions to begin with, from a checkpoint's model card: its `widget`, as the Hugging Face hub knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rrt_edge.model.card import read_metadata
from rrt_edge.runtime.bundle.manifest import MOST_EXAMPLES, is_example


def examples_of(folder: Path) -> tuple[str, ...]:
    """The texts, or users' first messages, of the card's widget; none where it says nothing of it."""
    widget = read_metadata(folder).get("widget")
    examples = [_question(entry) for entry in widget] if isinstance(widget, list) else []
    return tuple(dict.fromkeys(filter(is_example, examples)))[:MOST_EXAMPLES]


def _question(entry: Any) -> Any:
    """The text of a widget's entry, or what the user says first in its messages."""
    if not isinstance(entry, dict):
        return None
    messages = entry.get("messages")
    if isinstance(messages, list):
        said = [one.get("content") for one in messages if isinstance(one, dict) and one.get("role") == "user"]
        return said[0] if said else None
    return entry.get("text")
