"""generation_config.json: what a bundle's makers want, or one sentence about what they cannot have meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime import BundleError
from rrt_edge.runtime.decoding.default_sampling import default_sampling


@pytest.mark.parametrize("do_sample", ["false", "", 0, 1, [], {}])
def test_do_sample_is_true_or_false(tmp_path: Path, do_sample: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": do_sample, "temperature": 0.7}))
    with pytest.raises(
        BundleError, match=r"generation_config\.json: cannot be used \(do_sample .*must be true or false"
    ):
        default_sampling(tmp_path)


@pytest.mark.parametrize("do_sample", [True, False, None])
def test_greedy_where_nothing_is_to_be_drawn(tmp_path: Path, do_sample: bool | None) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": do_sample, "temperature": 0.7}))
    assert default_sampling(tmp_path).temperature == (0.7 if do_sample else 0.0)
