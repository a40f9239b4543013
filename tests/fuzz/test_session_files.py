"""Saved conversations, changed: they are refused, or what loads is what the file says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save

from rrt_edge.runtime import BadInputError, ExitPolicy, Model, Sampling
from rrt_edge.runtime.session_file import _digest
from tests.conftest import PREBUILT
from tests.fuzz.budget import cases
from tests.fuzz.documents import Draw, changed, changed_bytes, contents, encoded, texts, to_text
from tests.fuzz.refusals import check_message

Arrays = dict[str, np.ndarray[Any, Any]]
KINDS = [np.int64, np.int32, np.uint64, np.float32, np.float64, np.float16, np.int8, np.bool_]
ODD = [0, 1, -1, 299, 300, 2**31, 2**63 - 1, -(2**63), float("nan"), float("inf"), 1e30, -0.0]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model.load(PREBUILT, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversation in which rows wait."""
    path = tmp_path_factory.mktemp("session") / "talk.safetensors"
    session = model.session()
    session.generate([20, 30, 40], Sampling(max_tokens=12), ExitPolicy(trace=(3,) * 6 + (2,) * 3 + (1,) * 3))
    session.save(path)
    arrays = load_file(path)
    assert len(arrays["waiting.1"]) and len(arrays["waiting.2"])
    return path


def read(path: Path) -> tuple[Arrays, str]:
    with safe_open(path, "numpy") as file:
        return load_file(path), file.metadata()["about"]


@st.composite
def changed_array(draw: Draw, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array with another number, type, shape or length."""
    with np.errstate(all="ignore"):
        match draw(st.sampled_from(["number", "number", "type", "less", "more", "shape", "order"])):
            case "number" if array.size:
                array = array.copy()
                value = draw(st.sampled_from(ODD) | st.integers(-1, 20))
                array.reshape(-1)[draw(st.integers(0, array.size - 1))] = np.array(value).astype(array.dtype)
            case "type":
                array = array.astype(draw(st.sampled_from(KINDS)))
            case "less" if array.ndim:
                array = array[draw(st.integers(-2, 2)) :]
            case "more" if array.ndim:
                array = np.concatenate([array, array[: draw(st.integers(1, 3))]])
            case "shape":
                array = array.reshape(draw(st.sampled_from([(-1,), (1, *array.shape), (*array.shape, 1)])))
            case "order" if array.ndim:
                array = array[::-1]
    return np.ascontiguousarray(array)


@st.composite
def forged(draw: Draw, saved: Path) -> bytes:
    """A file whose arrays, or what is said about them, are others; half of them with the hash of what it says."""
    arrays, about = read(saved)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(arrays)))
        match draw(st.sampled_from(["change", "change", "change", "gone", "name", "other"])):
            case "change":
                arrays[name] = draw(changed_array(arrays[name]))
            case "gone":
                del arrays[name]
            case "name":
                arrays[draw(texts).encode("utf-8", "replace").decode()] = arrays.pop(name)
            case "other":
                arrays[name] = arrays[draw(st.sampled_from(sorted(arrays)))]
    if draw(st.booleans()):
        about = encoded(to_text(draw(changed(json.loads(about), 2)))).decode("utf-8", "replace")
    sha256 = _digest(about, arrays) if draw(st.booleans()) else _digest(*reversed(read(saved)))
    return save(arrays, {"format": "rrt-edge session", "version": "2", "about": about, "sha256": sha256})


@st.composite
def other_header(draw: Draw, content: bytes) -> bytes:
    """A file whose names, types, shapes and places are others."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = draw(contents(json.loads(content[8:end])))
    size = draw(st.sampled_from([len(header)] * 6 + [0, 2**63, len(header) + 8]))
    return size.to_bytes(8, "little") + header + content[end:]


@cases(100)
@given(data=st.data())
def test_a_changed_conversation_is_refused_or_is_what_it_says(model: Model, saved: Path, data: st.DataObject) -> None:
    content = saved.read_bytes()
    path, again = saved.with_name("changed.safetensors"), saved.with_name("again.safetensors")
    in_header = changed_bytes(content[:2000]).map(lambda start: start + content[2000:])
    changes = [forged(saved), forged(saved), other_header(content), changed_bytes(content), in_header]
    path.write_bytes(data.draw(st.one_of(changes)))
    try:
        session = model.load_session(path)
    except BadInputError as error:
        check_message(str(error), path)
        return
    session.save(again)
    (arrays, about), (arrays_again, about_again) = read(path), read(again)
    assert json.loads(about) == json.loads(about_again)
    assert arrays.keys() == arrays_again.keys()
    assert all(np.array_equal(array, arrays_again[name]) for name, array in arrays.items())
    if safe_open(path, "numpy").metadata()["sha256"] == safe_open(saved, "numpy").metadata()["sha256"]:
        assert session.ids == model.load_session(saved).ids
    assert len(session.generate([50], Sampling(max_tokens=2)).tokens)
