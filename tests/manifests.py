"""Manifests that say something else than they did, with the hash of what they say now."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rrt_edge.runtime.bundle.manifest import digest
from rrt_edge.runtime.system.files import sha256


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` work on the fields of a bundle's manifest."""
    path = bundle / "manifest.json"
    fields = json.loads(path.read_text("utf-8"))
    change(fields)
    fields["sha256"] = digest(fields)
    path.write_text(json.dumps(fields, indent=2), "utf-8")


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Write another file of a bundle, whose manifest tells of the new one."""
    (bundle / name).write_bytes(content)
    listed = {"bytes": len(content), "sha256": sha256(bundle / name)}
    edit_manifest(bundle, lambda fields: fields["files"].update({name: listed}))
