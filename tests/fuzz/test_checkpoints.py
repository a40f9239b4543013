"""config.json and the index of checkpoints, changed: each is refused, or a checkpoint can be opened with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.folder import INDEX, SINGLE, weight_files
from rrt_edge.runtime import BadInputError
from tests.fuzz.budget import cases
from tests.fuzz.documents import contents
from tests.fuzz.refusals import check_message

WEIGHTS = {
    "metadata": {"total_size": 100},
    "weight_map": {"a.weight": "one.safetensors", "b.weight": "two.safetensors"},
}


@pytest.fixture(scope="module", params=["source", "recursive"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint that may be changed, and what its config says."""
    folder = tmp_path_factory.mktemp("fuzz") / "checkpoint"
    shutil.copytree(request.getfixturevalue(request.param), folder)
    return folder, json.loads((folder / "config.json").read_text("utf-8"))


@cases(50)
@given(data=st.data())
def test_a_changed_config_is_refused_or_that_of_a_checkpoint(
    config: tuple[Path, dict[str, Any]], data: st.DataObject
) -> None:
    folder, fields = config
    (folder / "config.json").write_bytes(data.draw(contents(fields)))
    try:
        checkpoint = Checkpoint(folder)
    except BadInputError as error:
        check_message(str(error), folder)
    else:
        assert checkpoint.config.model_type == json.loads((folder / "config.json").read_bytes())["model_type"]


@cases(100)
@given(content=contents(WEIGHTS))
def test_a_changed_index_is_refused_or_names_files_that_are_there(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "indexed"
    folder.mkdir(exist_ok=True)
    for name in ("one.safetensors", "two.safetensors"):
        (folder / name).touch()
    (folder / INDEX).write_bytes(content)
    try:
        files, beside = weight_files(folder, {})
    except BadInputError as error:
        check_message(str(error), folder)
    else:
        assert set(files) == set(json.loads(content)["weight_map"].values()) and not (folder / SINGLE).exists()
        assert all((folder / name).is_file() for name in files) and beside is None
