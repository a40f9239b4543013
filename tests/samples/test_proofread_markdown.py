"""The proofreader's Markdown: only prose is sent, and whatever a model replies, the structure stays."""

from __future__ import annotations

import random
import re
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.conftest import ROOT

DOCUMENT = """\
---
title: teh title
---
# How to *start* #

See the [second page](https://example.org/a_(b) "teh title"), `teh code` and ![teh picture](teh.png) here.
A line that goes on\\
with <kbd>teh</kbd> key, <b>bold</b> text and https://example.org/teh_page?q=1 too.

Setext heading
--------------

> Quoted words
that go on lazily,
> - [x] an item of a list
>   with a second line

1. snake_case and 2 * 3 are \\*words\\* &amp; more
2. A [reference][teh] that is defined, teh@example.org and $x_1 * x_2$.

| teh | table |
|-----|-------|
| teh | cell  |

<div>
teh html
</div>

    teh indented code

~~~teh
teh fence
~~~

{% teh liquid %}

::: teh directive

[teh]: https://example.org/teh "teh"
"""
PROSE = [
    "How to start",
    "See the second page, this and this here. A line that goes on with teh key, bold text and this too.",
    "Setext heading",
    "Quoted words that go on lazily,",
    "this an item of a list with a second line",
    "snake_case and 2 * 3 are *words* & more",
    "A reference that is defined, this and this.",
]
DOCUMENTS = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("samples/**/*.md")))


def test_only_prose_is_found_and_each_letter_where_it_stands(package: ModuleType) -> None:
    from proofread.markdown import find_prose

    found = list(find_prose(DOCUMENT))
    assert [prose.text for prose in found] == PROSE
    for prose in found:
        for at, letter in enumerate(prose.text):
            if not prose.fixed[at] and letter != " ":
                assert DOCUMENT[prose.starts[at] : prose.ends[at]] == letter


def test_code_targets_and_the_like_are_fixed(package: ModuleType) -> None:
    from proofread.markdown import find_prose

    loose = "".join(
        letter
        for prose in find_prose(DOCUMENT)
        for letter, fixed in zip(prose.text, prose.fixed, strict=True)
        if not fixed
    )
    assert "teh" not in loose and "Howtostart" in loose.replace(" ", "")
    for word in ("second page", "bold", "Setext heading", "Quoted words", "an item of a list", "reference", "table"):
        assert (word in loose) == (word != "table"), word


def replies(text: str, rng: random.Random) -> str:
    """What a bad model might say: words, marks and line ends changed anywhere."""
    words = text.split(" ")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(words))
        spoilt = [
            "",
            "#",
            "- x",
            "1. a",
            "*b*",
            "`",
            "](",
            "<i>",
            "|",
            "> q",
            "![",
            "word",
            "it's",
            words[at].upper(),
            "---",
        ]
        words[at : at + rng.randint(0, 2)] = [rng.choice(spoilt)]
    return " ".join(words).strip()


def correct_badly(text: str, seed: int) -> str:
    """Correct a document with such replies, through all that real replies go through."""
    from proofread.comparing import compare
    from proofread.corrected import apply
    from proofread.corrections import corrections, keep_structure, without_overlaps
    from proofread.markdown import find_prose
    from proofread.pieces import cut
    from proofread.replies import Reply

    rng, edits = random.Random(seed), []
    for prose in find_prose(text):
        for piece in cut(prose):
            answer = replies(piece.text, rng)
            edits += corrections(piece, Reply(answer, (), tuple(compare(piece.text, answer)), None), 0, False)[0]
    return apply(text, keep_structure(text, without_overlaps(edits)))


def skeleton(text: str) -> str:
    """A document as HTML without its words, from a parser with other options; code and targets stay."""
    html = MarkdownIt("js-default").render(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))
    html = re.sub(r"(?s)(<pre>.*?</pre>|<code>.*?</code>|<[^>]*>)|[^<]+", lambda match: match[1] or "", html)
    return re.sub(r' alt="[^"]*"', "", html)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_reply_changes_a_documents_structure(package: ModuleType, path: Path) -> None:
    text, seeds = path.read_text("utf-8")[:20_000], iter(range(1, 20))
    spoilt = text
    while spoilt == text:  # short pages have few words that may change
        spoilt = correct_badly(text, next(seeds))
    assert skeleton(spoilt) == skeleton(text)
    assert spoilt.count("\n") == text.count("\n")


def test_no_reply_changes_the_structure_of_one_that_has_everything(package: ModuleType) -> None:
    changed = 0
    for seed in range(60):
        for text in (DOCUMENT, DOCUMENT.replace("\n", "\r\n")):
            spoilt = correct_badly(text, seed)
            changed += spoilt != text
            for line in (
                "title: teh title",
                "| teh | cell  |",
                "teh html",
                "    teh indented code",
                "teh fence",
                "[teh]: ",
            ):
                assert line in spoilt
            assert skeleton(spoilt.replace("\r\n", "\n")) == skeleton(DOCUMENT)
    assert changed > 60


MARKS = (
    r"a word|\*\*|```\n|``|\]\(x\)|!\[|    |> |- |1\. |# |---|<b>|</b>|<!-- x -->|"
    r"&amp;|http://x\.y|\. It is\. |\[a\]: b\n|[*_`[\t\\!|\n\r\xa0\u3000\0]"
)
PARTS = st.lists(st.from_regex(MARKS, fullmatch=True), max_size=30).map("".join)


@settings(max_examples=150, deadline=None)
@given(PARTS, st.integers(0, 99))
def test_no_reply_changes_the_structure_of_odd_documents(package: ModuleType, text: str, seed: int) -> None:
    from proofread.markdown import find_prose, structure

    assert structure(correct_badly(text, seed)) == structure(text)
    for prose in find_prose(text):
        for at, letter in enumerate(prose.text):
            stands = text[prose.starts[at] : prose.ends[at]]
            assert prose.fixed[at] or stands == letter or (letter == " " and stands.isspace())
