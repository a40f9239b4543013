"""Pairs of a text with errors and the right text, from right sentences, as chats that `--data` reads."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import corpus_text
from error_model import ErrorModel, Pair

SEED = 20260
SENTENCES_A_TEXT = {1: 0.6, 2: 0.25, 3: 0.15}
# How many texts come from the held-out lines for what. The test has one sentence a text, the others are like training.
HELD_OUT, DEVELOPMENT, GATE, CALIBRATION = 1_000, 300, 1_000, 600


@dataclass(frozen=True)
class Sets:
    """Right sentences, each in one set alone; no near-duplicate of training text in the others."""

    training: list[str]
    held_out: list[str]
    others: list[str]
    known: frozenset[str]


def divide(lines: Sequence[str], seed: int = SEED) -> Sets:
    """The sentences of a corpus by what they serve for."""
    training = [one for one in corpus_text.lines_between(lines, corpus_text.TRAINING_LINES) if corpus_text.is_fit(one)]
    apart = [one for one in corpus_text.lines_between(lines, corpus_text.HELD_OUT_LINES) if corpus_text.is_fit(one)]
    random.Random(seed).shuffle(apart)
    apart = corpus_text.without_near_duplicates(apart, training)
    return Sets(training, apart[:HELD_OUT], apart[HELD_OUT:], corpus_text.known_words(training))


def texts_of(sentences: Iterable[str], rng: random.Random) -> Iterator[list[str]]:
    """The sentences in order, one to three a text."""
    waiting = list(sentences)[::-1]
    while waiting:
        count = rng.choices(list(SENTENCES_A_TEXT), list(SENTENCES_A_TEXT.values()))[0]
        yield [waiting.pop() for _ in range(min(count, len(waiting)))]


def make_sets(sets: Sets, seed: int = SEED) -> dict[str, list[Pair]]:
    """File name -> pairs: all of it follows from the sentences and the seed."""
    model = ErrorModel(sets.known)
    rngs = {name: random.Random(f"{seed}/{name}") for name in ("train", "heldout", "others")}
    others = texts_of(sets.others, rngs["others"])
    made = {
        "train.jsonl": [model.spoil(text, rngs["train"]) for text in texts_of(sets.training, rngs["train"])],
        "heldout.jsonl": [model.spoil([sentence], rngs["heldout"]) for sentence in sets.held_out],
    }
    for name, count in (("development", DEVELOPMENT), ("gate", GATE), ("calibrate", CALIBRATION)):
        texts = [text for text, _ in zip(others, range(count), strict=False)]
        made[f"{name}.jsonl"] = [model.spoil(text, rngs["others"]) for text in texts]
    return made


def chat(text: str, right: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": right}]}


def write_pairs(path: Path, some: Iterable[tuple[str, str]]) -> None:
    """Write each text and right text as a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(chat(text, right)) + "\n" for text, right in some)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Text and right text of each line, of a set made here or of one with `text` and `correct`."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        if "messages" in record:
            found.append((record["messages"][0]["content"], record["messages"][1]["content"]))
        else:
            found.append((record["text"], record["correct"]))
    return found


def kinds_of(made: Iterable[Pair]) -> Counter[str]:
    return Counter(kind for pair in made for kind in pair.kinds)
