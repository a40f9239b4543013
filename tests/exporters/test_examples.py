"""The examples of a bundle, from the widget of its checkpoint's model card."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from rrt_edge.exporters import export
from rrt_edge.exporters.examples import examples_of
from rrt_edge.runtime import Manifest
from rrt_edge.runtime.bundle.manifest import LONGEST_EXAMPLE, MOST_EXAMPLES
from rrt_edge.runtime.errors import BundleError
from tests.manifests import edit_manifest


def write(folder: Path, widget: object) -> None:
    """A card as huggingface_hub writes it."""
    ModelCard(f"---\n{ModelCardData(widget=widget).to_yaml()}\n---\n\n# A model\n").save(folder / "README.md")


def test_examples_are_the_texts_of_the_widget_and_what_users_say_first(tmp_path: Path) -> None:
    assert examples_of(tmp_path) == ()
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    write(tmp_path, [{"text": "What: is it?", "example_title": "It"}, {"messages": chat}, {"text": "What: is it?"}])
    assert examples_of(tmp_path) == ("What: is it?", "Who?")


@pytest.mark.parametrize(
    "widget",
    ["x", [], [3, None, {}], [{"text": 3}, {"text": " "}, {"text": "x" * (LONGEST_EXAMPLE + 1)}], [{"messages": [{}]}]],
)
def test_a_widget_of_something_else_has_none(tmp_path: Path, widget: object) -> None:
    write(tmp_path, widget)
    assert examples_of(tmp_path) == ()


@pytest.mark.parametrize(
    "card", ["# No header\n---\nwidget: []\n---\n", "---\nwidget: [\n---\n", "---\n- a\n---\n", ""]
)
def test_a_card_without_a_readable_header_has_none(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card, "utf-8")
    assert examples_of(tmp_path) == ()


def test_there_are_no_more_than_a_manifest_takes(tmp_path: Path) -> None:
    write(tmp_path, [{"text": f"Question {number}"} for number in range(MOST_EXAMPLES + 5)])
    assert len(examples_of(tmp_path)) == MOST_EXAMPLES


def test_a_bundle_has_its_checkpoints_examples(recursive: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(recursive, tmp_path / "source"))
    write(source, [{"text": "What?"}])
    export(source, tmp_path / "bundle", bits=32)
    assert Manifest.read(tmp_path / "bundle").examples == ("What?",)
    edit_manifest(tmp_path / "bundle", lambda fields: fields.update(examples=["x"] * (MOST_EXAMPLES + 1)))
    with pytest.raises(BundleError, match="examples must be up to 20 texts"):
        Manifest.read(tmp_path / "bundle")
