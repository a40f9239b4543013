"""What is no character is told, with the place."""

from __future__ import annotations

import re

import pytest

from rrt_edge.runtime import BadInputError
from rrt_edge.runtime.system.whole_text import check_text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"a caf\xe9 au lait".decode("utf-8", "surrogateescape"), "byte 0xe9, behind 'a caf'"),
        (b"\xff".decode("utf-8", "surrogateescape"), "byte 0xff, at the beginning"),
        ("so \ud83d", "half a character, U+D83D alone, behind 'so '"),
        ("\ude00", "half a character, U+DE00 alone, at the beginning"),
    ],
)
def test_what_is_no_character_is_told(text: str, complaint: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(f"the text is not valid UTF-8: {complaint}; convert it")):
        check_text(text)


def test_texts_of_any_language_pass() -> None:
    check_text("Grüße, 日本 🙂\0\ufffd")
