"""How to export: one set of defaults, and wrong options refused before anything is read."""

from __future__ import annotations

import dataclasses
import inspect
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
        ({"init": "best"}, "init 'best': choose from average, stepwise, lower, random"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(rrt_edge.BadInputError, match=message):
        rrt_edge.export(tmp_path / "nowhere", tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []
