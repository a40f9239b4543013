"""Errors are one line that any terminal can show, whatever they repeat."""

from __future__ import annotations

import pytest

from rrt_edge.runtime import BadInputError, RRTEdgeError
from rrt_edge.runtime.errors import LONGEST, in_words, one_line

TEXTS = ["two\nlines", "\x1b[2J", "\u202eabc", "\ud800", "a\0b", "x" * 100_000, "\r", "\x85 \u2028"]


@pytest.mark.parametrize("kind", [RRTEdgeError, BadInputError])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_an_error_is_one_line_that_can_be_shown(kind: type[RRTEdgeError], text: str) -> None:
    message = str(kind(f"model.onnx: {text}: damaged"))
    assert message.isprintable() and message.startswith("model.onnx: ") and len(message) <= LONGEST + 3
    assert in_words(ValueError(text)).isprintable()


@pytest.mark.parametrize("text", ["", "/a  b/\u00e9\u65e5.zip: no such file", "x" * 300])
def test_what_can_be_shown_stays_as_it_is(text: str) -> None:
    assert str(BadInputError(text)) == text == one_line(text)
