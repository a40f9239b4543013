"""Make the file of right sentences from the Markdown of public repositories.

git clone https://github.com/GSA/digitalgov.gov && git -C digitalgov.gov checkout 4979583206
git clone https://github.com/18F/18f.gsa.gov && git -C 18f.gsa.gov checkout 0a55c75e6
git clone https://github.com/18F/handbook && git -C handbook checkout 1e495563
python samples/proofread/sentences.py plain-english.txt.gz digitalgov.gov 18f.gsa.gov handbook
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
from collections.abc import Iterator
from pathlib import Path

PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\xa0": " "}
)
REMOVED = [
    (r"\A---\n.*?\n---\n", ""),  # front matter
    (r"(?s)```.*?```|~~~.*?~~~|<!--.*?-->|\{\{.*?\}\}|\{%.*?%\}|<(script|style)\b.*?</\1>", " "),
    (r"<[^>\n]+>", " "),
    (r"!\[[^\]]*\]\([^)]*\)|!\[[^\]]*\]\[[^\]]*\]", " "),
    (r"\[([^\]]*)\]\([^)]*\)|\[([^\]]*)\]\[[^\]]*\]", r"\1\2"),  # a link leaves its text
    (r"(?m)^\s*(?:#+|[-*+>]|\d+\.)\s+", ""),
    (r"(?m)^\[[^\]]+\]:.*$|^\|.*$", ""),
    (r"\*\*|__|(?<!\w)[*_]|[*_](?!\w)|`", ""),
    (r"&[a-z]+;|\\", " "),
]
KEPT = re.compile(r"[A-Z][A-Za-z0-9 ,.;:?!'\"()&%$/-]*[.?!]")
SHORTEST, LONGEST = 5, 40  # words


def sentences_of(markdown: str) -> Iterator[str]:
    """The sentences of a page that hold nothing but plain text."""
    text = markdown.translate(PLAIN).replace("\r\n", "\n")
    for pattern, instead in REMOVED:
        flags = re.DOTALL if pattern.startswith(r"\A") else 0
        text = re.sub(pattern, instead, text, flags=flags)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*+]\s)", text):
        for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(paragraph.split())):
            if is_plain(sentence):
                yield sentence


def is_plain(sentence: str) -> bool:
    letters = sum(letter.isalpha() for letter in sentence)
    return (
        SHORTEST <= len(sentence.split()) <= LONGEST
        and KEPT.fullmatch(sentence) is not None
        and not re.search(r"https?:|www\.|@|\.(?:gov|com|org)\b", sentence)
        and sum(letter.isdigit() for letter in sentence) <= 0.1 * len(sentence)
        and sum(letter.isupper() for letter in sentence) <= 0.2 * letters
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("repositories", type=Path, nargs="+")
    arguments = parser.parse_args()

    found: dict[str, None] = {}
    for repository in arguments.repositories:
        for page in sorted(repository.rglob("*.md")):
            found.update(dict.fromkeys(sentences_of(page.read_text("utf-8", errors="replace"))))
    sentences = list(found)
    random.Random(0).shuffle(sentences)
    with gzip.open(arguments.out, "wt", encoding="utf-8") as file:
        file.writelines(f"{sentence}\n" for sentence in sentences)
    print(f"{arguments.out}: {len(sentences)} sentences")


if __name__ == "__main__":
    main()
