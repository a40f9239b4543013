"""Saved conversations: a bit that changed is found, and so are numbers that do not go together, hash or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rrt_edge.runtime import BadInputError, ExitPolicy, Model, Sampling
from rrt_edge.runtime.session_file import _digest
from tests.runtime.replies import PROMPT

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversation in which rows wait."""
    path = tmp_path_factory.mktemp("session") / "talk.safetensors"
    session = model.session()
    session.generate(PROMPT, Sampling(max_tokens=20), ExitPolicy(trace=(3,) * 12 + (2,) * 4 + (1,) * 4))
    session.save(path)
    arrays = load_file(path)
    assert len(arrays["waiting.1"]) and len(arrays["waiting.2"])
    return path


def forged(saved: Path, out: Path, change: Callable[[Arrays, dict[str, Any]], object]) -> Path:
    """A copy in which arrays and what is said about them are changed, with the hash of what it says."""
    arrays = load_file(saved)
    with safe_open(saved, "numpy") as file:
        metadata = dict(file.metadata())
    about = json.loads(metadata["about"])
    change(arrays, about)
    metadata["about"] = json.dumps(about)
    save_file(arrays, out, {**metadata, "sha256": _digest(metadata["about"], arrays)})
    return out


def put(name: str, value: Any) -> Callable[[Arrays, dict[str, Any]], object]:
    return lambda arrays, about: arrays.update({name: value(arrays[name]) if callable(value) else value})


def say(**values: Any) -> Callable[[Arrays, dict[str, Any]], object]:
    return lambda arrays, about: about.update(values)


FORGED: dict[str, Callable[[Arrays, dict[str, Any]], object]] = {
    "an id beyond the vocabulary": put("ids", lambda ids: np.where(ids == ids[0], 300, ids)),
    "a negative id": put("ids", lambda ids: ids - 1000),
    "ids of another type": put("ids", lambda ids: ids.astype(np.int32)),
    "ids in two dimensions": put("ids", lambda ids: ids[None]),
    "one id less": put("ids", lambda ids: ids[:-1]),
    "one id more": put("ids", lambda ids: np.append(ids, 5)),
    "positions in another order": put("positions.1", lambda numbers: numbers[::-1].copy()),
    "positions that repeat": put("positions.2", lambda numbers: np.zeros_like(numbers)),
    "positions with a gap": put("positions.2", lambda numbers: numbers + 1),
    "positions that are negative": put("positions.3", lambda numbers: numbers - 1),
    "rows dropped without a window": put("first.1.0", np.array([1])),
    "a negative number of rows dropped": put("first.2.0", np.array([-1])),
    "two numbers of rows dropped": put("first.2.0", np.array([0, 0])),
    "keys of another type": put("key.1.0", lambda plane: plane.astype(np.float64)),
    "keys that are no numbers": put("key.1.0", lambda plane: np.full_like(plane, np.nan)),
    "values without bound": put("value.2.0", lambda plane: np.full_like(plane, np.inf)),
    "fewer waiting rows": put("waiting.1", lambda states: states[1:]),
    "more waiting rows": put("waiting.2", lambda states: np.concatenate([states, states[:1]])),
    "waiting rows that are no numbers": put("waiting.1", lambda states: np.full_like(states, np.nan)),
    "an array too many": put("more", np.zeros(1)),
    "a prompt that ends behind the text": say(prompt_end=10**6),
    "a prompt that ends before it": say(prompt_end=-1),
    "a prompt that ends in a fraction": say(prompt_end=1.5),
    "a prompt that ends in a truth": say(prompt_end=True),
    "another rule": say(kv_rule="latest"),
    "a rule of one slot": say(kv_rule="last"),
    "a rule that is none": say(kv_rule=["exact"]),
    "no rule": lambda arrays, about: about.pop("kv_rule"),
    "more than a conversation says": say(more=1),
    "a rule of very many parts": say(kv_rule=[0] * 3000),
    "another context": say(long_context=True),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_conversation_is_refused(model: Model, saved: Path, tmp_path: Path, kind: str) -> None:
    path = forged(saved, tmp_path / "forged.safetensors", FORGED[kind])
    with pytest.raises(BadInputError, match=r"forged\.safetensors: (damaged|was made with)"):
        model.load_session(path)


@pytest.mark.parametrize(
    ("array", "source"), [("key.2.0", "key.1.0"), ("first.2.0", "first.1.0"), ("positions.4", "positions.3")]
)
def test_a_second_slot_under_the_rule_of_one_is_refused(model: Model, tmp_path: Path, array: str, source: str) -> None:
    path = tmp_path / "talk.safetensors"
    session = model.session(kv_rule="last")
    session.generate(PROMPT, Sampling(max_tokens=20), "depth=2")
    session.save(path)
    assert model.load_session(path).ids == session.ids
    with pytest.raises(BadInputError, match=f"damaged, or not a conversation .*{array}: belongs to no conversation"):
        model.load_session(forged(path, tmp_path / "forged", lambda arrays, _: arrays.update({array: arrays[source]})))


def test_what_is_forged_back_is_the_conversation(model: Model, saved: Path, tmp_path: Path) -> None:
    """The copies above are refused for what was changed in them, not for how they were made."""
    path = forged(saved, tmp_path / "same.safetensors", lambda arrays, about: None)
    assert model.load_session(path).ids == model.load_session(saved).ids


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_bit_is_found_or_changes_nothing(model: Model, saved: Path, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    end = data.draw(st.sampled_from([header, len(content)]))  # half of them in names, shapes and hash
    bit = data.draw(st.integers(0, end * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    path = saved.with_name("changed.safetensors")
    path.write_bytes(content)
    try:
        session = model.load_session(path)
    except BadInputError:
        return
    assert session.ids == model.load_session(saved).ids  # a blank of the header became another
    assert bit // 8 < header


def test_a_file_too_large_for_any_conversation_is_not_read(model: Model, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(saved.read_bytes())
        file.truncate(1 << 33)
    with pytest.raises(BadInputError, match="larger than the"):
        model.load_session(path)
