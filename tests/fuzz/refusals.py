"""What every refusal must be, whatever was refused."""

from __future__ import annotations

LONGEST = 1000  # characters of a message beyond the names of files in it


def check_message(message: str, *known: object) -> None:
    """One line of a bounded length that any terminal can show; `known` are the paths that it may repeat."""
    for text in known:
        message = message.replace(str(text), "")
    assert 0 < len(message) <= LONGEST, f"{len(message)} characters: {message[:200]!r}"
    assert message.isprintable(), repr(message)  # no end of a line, no control characters, no half characters
