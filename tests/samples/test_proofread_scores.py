"""The scores of a proofreader's bundle by exit policy, and those of spell checkers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from tests.samples.proofreader import CORRECTIONS, LOOP, write_proofreader

SAMPLE = Path(__file__).parents[2] / "samples" / "proofread"


@pytest.fixture(scope="module")
def sample(programs: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return programs("score_bundle", "score_spellers")


def run(script: str, *arguments: object) -> list[dict[str, object]]:
    command = [sys.executable, str(SAMPLE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def write_pairs(path: Path, pairs: dict[str, str]) -> Path:
    chats = (
        [{"role": "user", "content": text}, {"role": "assistant", "content": right}] for text, right in pairs.items()
    )
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), "utf-8")
    return path


def test_a_bundle_is_scored_at_each_policy(make_once: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_once("proofreader", write_proofreader)
    texts = write_pairs(tmp_path / "texts.jsonl", {**CORRECTIONS, LOOP: "This text has an end."})
    full, one, balanced = run("score_bundle.py", bundle, texts, "full", "depth=1", "balanced")
    assert [scores["policy"] for scores in (full, one, balanced)] == ["full", "depth=1", "balanced"]
    assert full["exact"] == round(len(CORRECTIONS) / (len(CORRECTIONS) + 1), 4) and full["clean"] == 2
    assert full["mean_depth"] == full["copied_depth"] == full["changed_depth"] == 2
    assert one["mean_depth"] == 1 and full["as_full_depth"] == 1
    assert 1 < balanced["mean_depth"] < 2 and 1 <= balanced["changed_depth"] <= 2
    assert all(scores["tokens_per_second"] > 0 for scores in (full, one, balanced))
    assert len(run("score_bundle.py", bundle, texts, "full", "--first", 3, "--threads", 1)) == 1
    every, none = run("score_bundle.py", bundle, texts, "full", "--sure", 0, 1.0)
    assert (every["sure"], none["sure"]) == (0, 1) and every["clean"] == none["clean"] == 2
    assert none["exact"] < every["exact"] < full["exact"]  # a line without an end is a title, and stays


def test_tokens_are_told_apart_by_what_was_changed(sample: SimpleNamespace) -> None:
    pieces = ["He", " goes", " to", " school", ".", ""]
    tokens = tuple(SimpleNamespace(text=piece, depth=depth) for depth, piece in enumerate(pieces, 1))
    depths = sample.score_bundle.Depths()
    depths.add("He go to to school.", SimpleNamespace(text="He goes to school.", tokens=tokens))
    assert depths.changed == [2, 4] and depths.copied == [1, 3, 5]


def test_hunspells_suggestions_are_made_from_behind(sample: SimpleNamespace) -> None:
    text = "A wrod and a naem of Jhon."
    lines = ["*", "& wrod 2 3: word, rod", "*", "& naem 3 14: name, neam", "& Jhon 1 22: John", "# xyz 30"]
    assert sample.score_spellers._suggested(text, lines) == "A word and a name of Jhon."


@pytest.mark.skipif(shutil.which("hunspell") is None, reason="hunspell is not installed")
def test_hunspell_mends_a_word(tmp_path: Path) -> None:
    texts = write_pairs(tmp_path / "texts.jsonl", {"She recieve it.": "She receive it.", "It is fine.": "It is fine."})
    (scores,) = [scores for scores in run("score_spellers.py", texts) if scores["program"] == "hunspell"]
    assert scores["exact"] == 1
