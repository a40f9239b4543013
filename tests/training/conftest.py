"""What the tests of training share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.chats import CHATS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS * 4), "utf-8")
    return path
