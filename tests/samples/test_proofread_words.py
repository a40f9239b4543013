"""Words that the proofreader's texts never use: what changes of a pair, and what does not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e '.[dev]'")

from tests.checkpoints import save_tokenizer

SAMPLE = Path(__file__).parents[2] / "samples" / "proofread"
TEXT = "In March the team meet Susan Miller at an hotel. They was walking slowly, and Peter said nothing."
RIGHT = "In March the team meets Susan Miller at a hotel. They were walking slowly, and Peter said nothing."
TOKENS = [
    "Ġtable",
    "Ġapple",
    "Ġeating",
    "Ġrunning",
    "Ġwalls",
    "Ġquickly",
    "Ġended",
    "ĠBerlin",
    "berg",
    "eira",
    "Ġx9",
    "er",
]


@pytest.fixture(scope="module")
def strange_words(programs: Callable[..., SimpleNamespace]) -> ModuleType:
    return programs("strange_words").strange_words


def differing(text: str, right: str) -> list[tuple[int, str, str]]:
    pairs = zip(text.split(" "), right.split(" "), strict=True)
    return [(at, before, behind) for at, (before, behind) in enumerate(pairs) if before != behind]


def test_errors_stay_and_other_words_give_way_in_both(strange_words: ModuleType) -> None:
    words, seen = strange_words.Words(TOKENS), set()
    for seed in range(200):
        text, right = strange_words.with_strange_words(TEXT, RIGHT, words, random.Random(seed))
        assert differing(text, right) == differing(TEXT, RIGHT)
        changed = differing(TEXT, text)
        assert 1 <= len(changed) <= strange_words.MOST
        seen |= {(before, behind) for _, before, behind in changed}
    instead = {before: {behind for other, behind in seen if other == before} for before, _ in seen}
    assert set(instead) == {"March", "Miller", "Peter", "said"}  # within a sentence, beside nothing wrong
    assert instead["said"] == {"table"}  # no other ends alike and begins with a consonant
    names = instead["March"] | instead["Miller"] | instead["Peter"]
    assert {"Berlin", "Berlinberg", "Berlineira"} < names and all(name.startswith("Berlin") for name in names)


def test_texts_without_room_stay(strange_words: ModuleType) -> None:
    words = strange_words.Words(TOKENS)
    for pair in (("He go.", "He goes."), ("", ""), ("Table", "Table"), ("one  two", "one  two")):
        assert strange_words.with_strange_words(*pair, words, random.Random(0)) == pair


def test_a_share_of_a_file_is_changed_and_the_same_with_the_same_seed(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": RIGHT}]
    (tmp_path / "texts.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 200, "utf-8")
    save_tokenizer(tmp_path / "model", 400)
    program = [sys.executable, str(SAMPLE / "strange_words.py"), str(tmp_path / "texts.jsonl"), str(tmp_path / "model")]
    for name in ("one", "two"):
        subprocess.run([*program, str(tmp_path / name)], check=True, capture_output=True)
    made = (tmp_path / "one").read_text("utf-8")
    assert made == (tmp_path / "two").read_text("utf-8")
    texts = [json.loads(line)["messages"] for line in made.splitlines()]
    assert len(texts) == 200 and 50 < sum(turns[0]["content"] != TEXT for turns in texts) < 110
    for own, other in texts:
        assert differing(own["content"], other["content"]) == differing(TEXT, RIGHT)
