"""What an installed bundle was exported from, written beside its files; `pull` does not copy it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rrt_edge.runtime.system.json_text import parse_json

FILE = "exported.json"


@dataclass(frozen=True)
class Origin:
    """What a bundle was exported from, and how.

    Attributes:
        source: the folder, the file or the hub's name.
        content: the hash of what it held.
        options: those that change the bundle, as JSON has them.
    """

    source: str
    content: str
    options: dict[str, Any]

    def is_remade_by(self, newer: Origin) -> bool:
        """Whether another origin is the same source in the same way, which may hold something else by now."""
        return (self.source, self.options) == (newer.source, newer.options)

    def makes_the_same_as(self, other: Origin) -> bool:
        """Whether both make the same bundle, wherever their sources lie."""
        return (self.content, self.options) == (other.content, other.options)

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2), "utf-8")


def origin_of(folder: Path) -> Origin | None:
    """What a bundle was exported from, where it is known."""
    try:
        fields = parse_json((folder / FILE).read_text("utf-8"))
        source, content, options = fields["source"], fields["content"], fields["options"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = isinstance(source, str) and isinstance(content, str) and isinstance(options, dict)
    return Origin(source, content, options) if whole else None
