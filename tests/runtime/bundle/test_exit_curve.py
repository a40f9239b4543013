"""The curve that calibration leaves in a manifest: thinned, bounded, read back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_edge.runtime import Manifest
from rrt_edge.runtime.bundle.exit_curve import MOST_POINTS, CurvePoint, thinned
from rrt_edge.runtime.errors import BundleError
from tests.manifests import edit_manifest

POINTS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(1, 3)), min_size=1, max_size=200)
GOOD = {"threshold": 0.5, "agreement": 0.99, "mean_depth": 1.25}


@given(POINTS)
def test_what_is_left_spans_the_curve_and_is_of_it(points: list[tuple[float, float, float]]) -> None:
    curve = [CurvePoint(*point) for point in points]
    left = thinned(curve, 9)
    assert 1 <= len(left) <= 9 and set(left) <= set(curve)
    depths = [point.mean_depth for point in left]
    assert depths == sorted(set(depths))
    assert depths[0] == min(point.mean_depth for point in curve) and depths[-1] == max(p.mean_depth for p in curve)
    for point in left:
        assert point.agreement == max(other.agreement for other in curve if other.mean_depth == point.mean_depth)


def test_named_thresholds_keep_their_points() -> None:
    curve = [CurvePoint(step / 100, 1 - step / 1000, 2 - step / 100) for step in range(100)]
    left = thinned(curve, 5, {0.37, 0.38, 0.999})
    assert {0.37, 0.38} <= {point.threshold for point in left} and len(left) <= 7


def with_curve(bundle: Path, folder: Path, curve: Any) -> Manifest:
    shutil.copytree(bundle, folder / "copy")
    edit_manifest(folder / "copy", lambda fields: fields["gate"].update(curve=curve))
    return Manifest.read(folder / "copy")


def test_a_manifest_keeps_it(bundle: Path, tmp_path: Path) -> None:
    manifest = with_curve(bundle, tmp_path, [GOOD])
    assert manifest.gate.curve == (CurvePoint(0.5, 0.99, 1.25),)
    manifest.write(tmp_path / "copy")
    assert Manifest.read(tmp_path / "copy") == manifest


@pytest.mark.parametrize(
    "curve",
    [{}, None, [3], [GOOD] * (MOST_POINTS + 1), [{**GOOD, "threshold": 1.5}], [{**GOOD, "mean_depth": 4}],
     [{**GOOD, "agreement": True}], [{**GOOD, "more": 1}], [{"threshold": 0.5}]],
)  # fmt: skip
def test_another_one_is_refused(bundle: Path, tmp_path: Path, curve: Any) -> None:
    with pytest.raises(BundleError, match=r"gate\.curve must be up to 100 thresholds"):
        with_curve(bundle, tmp_path, curve)
