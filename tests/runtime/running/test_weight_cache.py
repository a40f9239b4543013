"""The weight cache: the same tokens, made once, made anew where it is damaged, never a damaged bundle's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rrt_edge.runtime import BadInputError, BundleError, Model, RRTEdgeError
from rrt_edge.runtime.running import weight_cache as module

FILES = [f"{graph}{end}" for graph in ("block.onnx", "model.onnx") for end in ("", ".data")]


def answer(bundle: Path, cache: Path | None) -> list[int]:
    with Model.load(bundle, weight_cache=cache) as model:
        return [token.id for token in model.generate(list(range(5, 30)), exit_policy="threshold=0.6").tokens]


@pytest.fixture(scope="module")
def packed(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(bits=4)


def test_the_tokens_are_the_same_and_the_weights_come_from_the_cache(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(packed, None)
    assert answer(packed, tmp_path) == expected
    (folder,) = tmp_path.iterdir()
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(made) == {*FILES, "weight_cache.json"}
    assert answer(packed, tmp_path) == expected
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == made
    if Path("/proc/self/maps").is_file():
        with Model.load(packed, weight_cache=tmp_path):
            assert str(folder / "block.onnx.data") in Path("/proc/self/maps").read_text()

    monkeypatch.setattr(module, "_processor", lambda: "another")
    answer(packed, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["block.onnx.data", "model.onnx.data"])
def test_a_damaged_cache_is_made_anew(packed: Path, tmp_path: Path, name: str) -> None:
    expected = answer(packed, tmp_path)
    (folder,) = tmp_path.iterdir()
    data = folder / name
    whole = data.read_bytes()
    for damaged in (whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        data.write_bytes(damaged)
        assert answer(packed, tmp_path) == expected and data.read_bytes() != damaged
    (folder / "weight_cache.json").unlink()
    assert answer(packed, tmp_path) == expected and (folder / "weight_cache.json").is_file()


def test_a_damaged_bundle_is_not_packed(packed: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(packed, bundle)
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[500] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx\.data: its SHA-256"):
        Model.load(bundle, weight_cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_place_that_cannot_hold_it_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInputError, match="cannot be written"):
        Model.load(packed, weight_cache=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a file size limit")
def test_a_full_disk_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(RRTEdgeError, match="packed weights"):
            Model.load(packed, weight_cache=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "cache").iterdir()) == []
