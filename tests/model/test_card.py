"""What a model card says of its model stays true through convert and train; read back by huggingface_hub."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters.examples import examples_of
from rrt_edge.model.card import read_metadata
from rrt_edge.training.options import TrainOptions

HEADER = """\
license: other
license_name: hens
license_link: LICENSE
language: [en, no]
base_model: someone/base
datasets: [someone/texts]
tags: [chat, gguf, recursive-transformer]
widget:
- text: "What: is it?"
- messages: [{role: user, content: "Who?"}]
library_name: llama.cpp
pipeline_tag: text2text-generation
model-index: [{name: x, results: []}]
metrics: [accuracy]
quantized_by: someone
"""


def copied(folder: Path, to: Path, card: bytes | None) -> Path:
    to = Path(shutil.copytree(folder, to))
    (to / "README.md").unlink(missing_ok=True)
    if card is not None:
        (to / "README.md").write_bytes(card)
    return to


def check(folder: Path) -> None:
    """The card of a folder keeps what is true of what was made of the source, and says the rest anew."""
    data = ModelCard.load(folder / "README.md").data.to_dict()
    kept = {"license": "other", "license_name": "hens", "license_link": "LICENSE", "language": ["en", "no"]}
    kept |= {"base_model": "someone/base", "datasets": ["someone/texts"]}
    kept |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    assert {name: data[name] for name in kept} == kept
    assert data["tags"] == ["rrt-edge", "recursive-transformer", "early-exit", "chat"]
    assert data.keys() == {*kept, "tags", "widget"}
    assert examples_of(folder) == ("What: is it?", "Who?")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_is_still_true_is_kept(source: Path, tmp_path: Path, newline: str) -> None:
    card = f"---\n{HEADER}---\n\n# A model\n---\nMore.\n".replace("\n", newline).encode()
    folder = copied(source, tmp_path / "source", card)
    rrt_edge.convert(folder, tmp_path / "converted", loops=3)
    check(tmp_path / "converted")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    model.config.gate_trained = True
    model.save_pretrained(tmp_path / "saved")
    check(tmp_path / "saved")
    assert "| exit gate | trained |" in (tmp_path / "saved" / "README.md").read_text("utf-8")
    model.config.source = "someone/model"
    model.save_pretrained(tmp_path / "saved")
    assert ModelCard.load(tmp_path / "saved" / "README.md").data.base_model == "someone/model"


@pytest.mark.train
def test_training_keeps_it_through_its_stages(recursive: Path, tmp_path: Path) -> None:
    folder = copied(recursive, tmp_path / "recursive", f"---\n{HEADER}---\n".encode())
    (tmp_path / "text.txt").write_text("The cat eats the hen. " * 20, "utf-8")
    options = TrainOptions(stages=("uptrain", "early-exit"), max_steps=1, batch=1, max_length=32)
    rrt_edge.train(folder, tmp_path / "trained", data=tmp_path / "text.txt", options=options)
    check(tmp_path / "trained")


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (None, ""),
        (b"", ""),
        (b"# Hello\n---\nlicense: mit\n---\n", ""),
        (b"---\n---\n# Hello\n---\n", ""),
        (b"---\nlicense: mit\n", ""),
        (b"---\n- license\n---\n", ""),
        (b"---\nlicense: [\n---\n", "no YAML"),
        (b"---\ndate: 2024-13-45\n---\n", "no YAML"),
        (b"---\nlicense: " + b"[" * 5000 + b"\n---\n", "no YAML"),
        (b"---\nlicense: \xff\n---\n", "cannot be read"),
        (b"---\nlicense: null\ntags: 3\nwidget: []\nlanguage: false\ndatasets: {a: 1}\n---\n", "tags"),
    ],
)
def test_odd_cards_cost_what_they_say_alone(
    source: Path, tmp_path: Path, card: bytes | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(source, tmp_path / "source", card)
    with caplog.at_level(logging.WARNING):
        assert told == "tags" or read_metadata(folder) == {}
    assert (told in caplog.text) if told != "tags" else not caplog.text
    rrt_edge.convert(folder, tmp_path / "converted", loops=3)
    data = ModelCard.load(tmp_path / "converted" / "README.md").data
    assert data.tags == ["rrt-edge", "recursive-transformer", "early-exit"] and data.license is None
    assert data.language == ("no" if told == "tags" else None)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("\ufeff---\nlicense: mit\n--- \nlanguage: en\n", "utf-8")
    assert read_metadata(tmp_path) == {"license": "mit"}
