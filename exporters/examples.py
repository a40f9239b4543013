"""Questions to begin with, from a checkpoint's model card: its `widget`, as the Hugging Face hub knows it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from rrt_edge.model.card import CARD
from rrt_edge.runtime.bundle.manifest import MOST_EXAMPLES, is_example

log = logging.getLogger(__name__)


def examples_of(folder: Path) -> tuple[str, ...]:
    """The texts, or users' first messages, of the card's widget; none where there is no card or it says nothing of it.

    A card that cannot be read costs its examples, with a warning.
    """
    try:
        text = (folder / CARD).read_text("utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read (%s); the bundle has no examples", folder / CARD, error)
        return ()
    opening, _, rest = text.partition("\n")
    header, dashes, _ = rest.partition("\n---")
    if opening.strip() != "---" or not dashes:
        return ()
    try:
        fields = yaml.safe_load(header)
    except yaml.YAMLError as error:
        log.warning("%s: its header is no YAML (%s); the bundle has no examples", folder / CARD, error)
        return ()
    widget = fields.get("widget") if isinstance(fields, dict) else None
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
