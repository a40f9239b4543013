"""How to export: one set of defaults, and wrong options refused before anything is read."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import rrt_edge
from rrt_edge.conversion.options import ConvertOptions
from rrt_edge.exporters.options import ExportOptions


@pytest.mark.parametrize(
    ("function", "options"), [(rrt_edge.export, ExportOptions), (rrt_edge.convert, ConvertOptions)]
)
def test_a_function_and_its_options_have_the_same_defaults(function: Any, options: Any) -> None:
    parameters = inspect.signature(function).parameters
    names = {field.name for field in dataclasses.fields(options)}
    assert names == set(parameters) - {"source", "bundle", "out", "progress"}
    assert {name: parameters[name].default or None for name in names} == {
        name: value or None for name, value in vars(options()).items()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits 5: choose from 4, 8, 16, 32"),
        ({"kv_bits": 16}, "kv-bits 16: choose from 8, 32"),
        ({"eight_bit": ["gate"]}, "eight-bit 'gate': choose from block, lora, embedding, head"),
        ({"eight_bit": ["head"], "bits": 8}, "eight-bit parts go with bits 4, not 8"),
        ({"block_size": 48}, "block-size 48: choose from 32, 64, 128"),
        ({"block_size": 64, "bits": 16}, "block-size is of 4 or 8 bits; leave it out with bits 16"),
        ({"block_size": 64, "bits": "source", "loops": 1}, "bits source keeps a GGUF file's own blocks of 32"),
        ({"merge_adapters": True, "data": "texts.jsonl"}, "leave it out with merge-adapters"),
        ({"merge_adapters": True, "kv_bits": 8}, "kv-bits 8 does not go with merge-adapters"),
        ({"init": "best"}, "init 'best': choose from average, stepwise, lower, random"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(rrt_edge.BadInputError, match=message):
        rrt_edge.export(tmp_path / "nowhere", tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        ({"loops": 3}, "has no adapters of several depths to merge"),
        ({"loops": 1, "rank": 4}, "has no adapters of several depths to merge"),
    ],
)
def test_adapters_that_there_are_not_are_not_merged(
    source: Path, tmp_path: Path, sharing: dict[str, Any], message: str
) -> None:
    with pytest.raises(rrt_edge.BadInputError, match=message):
        rrt_edge.export(source, tmp_path / "bundle", merge_adapters=True, **sharing)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "has no adapters"),
        ({"kv_rule": "propagate"}, "does not go with the KV rule propagate"),
        ({"norm_inside": True}, "does not go with looped models of others"),
    ],
)
def test_recursive_checkpoints_that_cannot_be_merged_are_refused(
    recursive: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    source = Path(shutil.copytree(recursive, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps({**config, **fields}), "utf-8")
    with pytest.raises(rrt_edge.BadInputError, match=message):
        rrt_edge.export(source, tmp_path / "bundle", merge_adapters=True)
