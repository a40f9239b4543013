"""manifest.json: no bit of it changes what it means unnoticed, and its numbers are the graph's and the tokenizer's."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime import BadInputError, BundleError, ExitPolicy, Model
from rrt_edge.runtime.bundle.manifest import Manifest, digest
from rrt_edge.runtime.check import check
from tests.conftest import PREBUILT
from tests.manifests import edit_manifest


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PREBUILT, tmp_path / "bundle"))


def changed_bits(folder: Path, bits: list[int]) -> list[int]:
    """Those bits of the manifest that change what it means without being noticed."""
    path = folder / "manifest.json"
    content, whole, unnoticed = path.read_bytes(), Manifest.read(folder), []
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            if Manifest.read(folder) != whole:
                unnoticed.append(bit)
        except BundleError:
            pass
    return unnoticed


def test_no_changed_bit_changes_the_meaning_unnoticed(copied: Path) -> None:
    bits = len((copied / "manifest.json").read_bytes()) * 8
    assert changed_bits(copied, random.Random(0).sample(range(bits), 1500)) == []


@pytest.mark.slow
def test_none_of_all_its_bits_does(copied: Path) -> None:
    assert changed_bits(copied, list(range(len((copied / "manifest.json").read_bytes()) * 8))) == []


def test_version_1_loads_without_any_newer_field_only(copied: Path) -> None:
    path = copied / "manifest.json"
    fields = json.loads(path.read_text("utf-8"))
    newer = {"cost": None, "examples": [], "shared_weight_bytes": None}
    assert {name: fields.pop(name) for name in newer} == newer
    path.write_text(json.dumps({**fields, "format_version": 1}), "utf-8")
    with pytest.raises(BundleError, match="format_version 1 does not go with the field 'sha256'"):
        Manifest.read(copied)
    del fields["sha256"]
    path.write_text(json.dumps({**fields, "format_version": 1}), "utf-8")
    with Model.load(copied, device="cpu") as model:
        assert model.manifest == Manifest.read(PREBUILT)
    path.write_text(json.dumps(fields), "utf-8")
    with pytest.raises(BundleError, match="sha256 is not that of the other fields"):
        Manifest.read(copied)
    path.write_text(json.dumps({**fields, "format_version": 1, "extra": 1}), "utf-8")
    with pytest.raises(BundleError, match="format_version 1 does not go with the field 'extra'"):
        Manifest.read(copied)


def numbers(fields: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The places of all numbers and truth values."""
    if isinstance(fields, dict):
        return [place for key, value in fields.items() for place in numbers(value, (*path, key))]
    return [path] if isinstance(fields, (int, bool)) else []


DECLARED = [
    place
    for place in numbers(json.loads((PREBUILT / "manifest.json").read_text("utf-8")))
    if place[0] not in ("format_version", "files")  # what files have is compared with the files
]


@pytest.mark.parametrize("place", DECLARED, ids="/".join)
@pytest.mark.parametrize("more", [1, -1])
def test_a_declared_number_that_is_not_the_graphs_is_refused(copied: Path, place: tuple[str, ...], more: int) -> None:
    def change(fields: dict[str, Any]) -> None:
        for key in place[:-1]:
            fields = fields[key]
        value = fields[place[-1]]
        fields[place[-1]] = not value if isinstance(value, bool) else value + more

    edit_manifest(copied, change)
    with pytest.raises(BundleError, match=r"not the graph its manifest describes|manifest\.json: "):
        Model.load(copied, device="cpu")
    with contextlib.suppress(BundleError):  # already the manifest cannot be
        assert not check(copied).ok


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(eos_token_ids=[300]), "eos_token_ids 300 is none of the 300 tokens"),
        (lambda fields: fields.update(kv_rule="skip"), "kv_rule"),
        (lambda fields: fields["architecture"].update(windows=[[None]] * 3), "windows"),
        (lambda fields: fields["architecture"].update(short_context=64), "short_context"),
        (lambda fields: fields["architecture"].update(family="other"), "family"),
        (lambda fields: fields["gate"].update(kind="linear"), r"gate\.kind"),
        (lambda fields: fields["gate"].update(threshold=True), r"gate\.threshold True"),
        (lambda fields: fields["gate"].update(points={"a": False}), r"gate\.points"),
        (lambda fields: fields["architecture"].update(short_context=0), "short_context is 0"),
        (lambda fields: fields["architecture"].update(short_context=False), "short_context is False"),
        (lambda fields: fields["files"].update({"a\nb": {"bytes": 1, "sha256": ""}}), "is no name of a file"),
        (lambda fields: fields["files"].update({"é" * 200: {"bytes": 1, "sha256": ""}}), "is no name of a file"),
    ],
)
def test_what_else_is_declared_is_compared(
    copied: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(copied, change)
    with pytest.raises(BadInputError, match=message):
        Model.load(copied, device="cpu")


@pytest.mark.parametrize(
    "text",
    [
        '{"format": "rrt-edge bundle", "format": "rrt-edge bundle"}',
        "[" * 100_000,
        '{"format_version": ' + "1" * 5000 + "}",
        '{"gate": {"threshold": NaN}}',
        '{"gate": {"threshold": 1e400}}',
        '"\\ud800"',
    ],
    ids=["a name twice", "nested", "digits", "NaN", "infinite", "a lone surrogate"],
)
def test_odd_json_is_one_sentence(copied: Path, text: str) -> None:
    (copied / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(BundleError, match=re.escape(str(copied / "manifest.json"))):
        Manifest.read(copied)


@pytest.mark.parametrize("field", ["format_version", "kv_rule", "architecture", "gate", "weight_bytes"])
@pytest.mark.parametrize(
    "value", [[0] * 3000, json.loads("[" * 800 + "]" * 800), "\x1b[2J\n" * 2000], ids=["long", "deep", "text"]
)
def test_an_odd_value_is_told_on_one_short_line(copied: Path, field: str, value: Any) -> None:
    tables = {"architecture": {"loops": value}, "gate": {"kind": str(value)[:2000]}, "weight_bytes": {"a\nb": value}}
    edit_manifest(copied, lambda fields: fields.update({field: tables.get(field, value)}))
    with pytest.raises(BundleError) as caught:
        Manifest.read(copied)
    message = str(caught.value)
    assert message.isprintable() and len(message.removeprefix(str(copied))) < 600


def test_the_hash_is_of_the_meaning_not_of_the_spelling(copied: Path) -> None:
    fields = json.loads((copied / "manifest.json").read_text("utf-8"))
    (copied / "manifest.json").write_text(json.dumps(dict(reversed(fields.items()))), "utf-8")
    assert Manifest.read(copied) == Manifest.read(PREBUILT)
    assert digest(fields) == fields["sha256"]


def test_a_bundle_replaced_meanwhile_is_not_changed(copied: Path) -> None:
    manifest = Manifest.read(copied)
    edit_manifest(copied, lambda fields: fields["files"]["model.onnx"].update(sha256="0" * 64))
    before = (copied / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="was replaced meanwhile"):
        manifest.update(copied, lambda now: now)
    assert (copied / "manifest.json").read_bytes() == before


def test_a_manifest_lists_no_more_files_than_bundles_have(copied: Path) -> None:
    entry = {"bytes": 0, "sha256": ""}
    edit_manifest(copied, lambda fields: fields["files"].update({f"file{at}": entry for at in range(100)}))
    with pytest.raises(BundleError, match="files lists 108 files; 100 are the most of a bundle"):
        Manifest.read(copied)


def test_an_operating_point_takes_no_policys_place(copied: Path) -> None:
    points = {"full": 0.1, "depth=1": 0.2, "lossless": 0.3, "own=1": 0.4}
    edit_manifest(copied, lambda fields: fields["gate"].update(points=points))
    with Model.load(copied, device="cpu") as model:
        assert model.policy("full") == ExitPolicy() and model.policy("depth=1") == ExitPolicy(depth=1)
        assert model.policy("lossless") == ExitPolicy()
        assert model.policy("own=1") == ExitPolicy(threshold=0.4)
