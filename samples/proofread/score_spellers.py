"""What codespell and hunspell make of the texts of a set, scored as a model's answers are.

    pip install codespell==2.4.3 && apt install hunspell hunspell-en-us
    python samples/proofread/score_spellers.py build/proofread/heldout.jsonl

codespell makes each correction of which it is sure. hunspell only lists words that it does not know; each is replaced
by its first suggestion, but for those that begin with a capital, which are mostly names.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pairs
import scoring

DICTIONARY = "en_US"


def codespell(texts: Sequence[str]) -> list[str]:
    """The texts, a line each, as `codespell --write-changes` leaves them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.txt")
        file.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        command = ["codespell", "--write-changes", "--quiet-level", "3", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 65):  # 65: words were left that it is not sure of
            raise SystemExit(f"codespell failed: {done.stderr.strip()}")
        return file.read_text("utf-8").split("\n")[:-1]


def hunspell(texts: Sequence[str]) -> list[str]:
    """The texts with the first suggestion for each word that is not known."""
    command = ["hunspell", "-a", "-d", DICTIONARY, "-i", "utf-8"]
    asked = "".join(f"^{text}\n" for text in texts)
    done = subprocess.run(command, input=asked, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"hunspell failed: {done.stderr.strip()}")
    answers = [block.split("\n") for block in done.stdout.partition("\n")[2].split("\n\n")]
    return [_suggested(text, lines) for text, lines in zip(texts, answers, strict=False)]


def _suggested(text: str, lines: Sequence[str]) -> str:
    """A text with the suggestions in ispell's form: `& word count offset: first, second`; `^` counts as the first
    letter."""
    for line in reversed([line for line in lines if line.startswith("& ")]):
        head, _, suggestions = line.partition(": ")
        _, word, _, offset = head.split(" ")
        start = int(offset) - 1
        if text[start : start + len(word)] == word and not word[:1].isupper():
            text = text[:start] + suggestions.split(", ")[0] + text[start + len(word) :]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    arguments = parser.parse_args()
    chosen = pairs.read_pairs(arguments.texts)
    texts, right = [text for text, _ in chosen], [target for _, target in chosen]
    for name, correct in (("codespell", codespell), ("hunspell", hunspell)):
        if shutil.which(name) is None:
            print(f"{name} is not installed", file=sys.stderr)
            continue
        answers = correct(texts)
        print(json.dumps({"program": name, **scoring.score(texts, right, answers).as_record()}))


if __name__ == "__main__":
    main()
