"""manifest.json, changed: it is refused, or it says what its text says, and what its hash was made of."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_edge.runtime import BundleError
from rrt_edge.runtime.bundle.declared import check_declared, check_tokenizer, declaration
from rrt_edge.runtime.bundle.manifest import Manifest, digest
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.library.store import look_at
from rrt_edge.runtime.system.json_text import parse_json
from tests.conftest import PREBUILT
from tests.fuzz.budget import cases
from tests.fuzz.documents import Draw, changed, contents, encoded, to_text
from tests.fuzz.refusals import check_message

PLAIN = (PREBUILT / "manifest.json").read_bytes()
FIELDS = json.loads(PLAIN)
WHOLE = Manifest.read(PREBUILT)
TOKENIZER = read_tokenizer(PREBUILT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(PREBUILT, tmp_path_factory.mktemp("fuzz") / "bundle"))


@st.composite
def signed(draw: Draw) -> bytes:
    """A changed manifest with the hash of what it says now, where it has any."""
    tree = draw(changed(FIELDS))
    try:
        fields = parse_json(to_text(tree))
        named = [pair for pair in tree if pair[0] == "sha256"]
        named[0][1] = digest(fields)
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
        pass
    return encoded(to_text(tree))


def check_meaning(manifest: Manifest, content: bytes) -> None:
    """A manifest says what Python's own reader finds in its text, and the same when it is written and read again."""
    fields = json.loads(content)
    says = json.loads(json.dumps(dataclasses.asdict(manifest)))
    fields["gate"].setdefault("points", {})
    for name in ("architecture", "gate", "quantization"):
        for field, value in says[name].items():
            assert same(value, fields[name].get(field)), (name, field)
    assert all(same(value, fields.get(name)) for name, value in says.items() if not isinstance(value, dict))
    for name in ("weight_bytes", "provenance", "verification"):
        assert same(says[name], fields.get(name)), name
    assert says["files"].keys() == fields["files"].keys()


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@cases(1000)
@given(content=st.one_of(signed(), signed(), contents(FIELDS)))
def test_a_changed_manifest_is_refused_or_says_what_it_says(folder: Path, content: bytes) -> None:
    path = folder / "manifest.json"
    path.write_bytes(content)
    try:
        manifest = Manifest.read(folder)
        check_meaning(manifest, content)
        manifest.check_sizes(folder)
        check_declared(folder, manifest)
        check_tokenizer(folder, manifest, TOKENIZER)
    except BundleError as error:
        check_message(str(error), folder)
    else:
        assert declaration(manifest) == declaration(WHOLE)
        if json.loads(content)["sha256"] == FIELDS["sha256"]:
            assert manifest == WHOLE
        manifest.write(folder)
        assert Manifest.read(folder) == manifest
    look_at(folder).facts()


@cases(100)
@given(bit=st.integers(0, len(PLAIN) * 8 - 1))
def test_a_changed_bit_changes_nothing_unnoticed(folder: Path, bit: int) -> None:
    content = bytearray(PLAIN)
    content[bit // 8] ^= 1 << bit % 8
    (folder / "manifest.json").write_bytes(content)
    try:
        assert Manifest.read(folder) == WHOLE
    except BundleError as error:
        check_message(str(error), folder)
