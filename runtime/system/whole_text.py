"""Texts that hold what is no character: half an emoji, or a byte of another encoding than UTF-8."""

from __future__ import annotations

from rrt_edge.runtime.errors import BadInputError

BEFORE = 20  # characters that an error repeats
BYTES = range(0xDC80, 0xDD00)  # what stands for a byte that Python could not read


def check_text(text: str) -> None:
    """
    Raises:
        BadInputError: a character of the text is none; says where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = ord(text[error.start])
        before = text[max(0, error.start - BEFORE) : error.start]
        what = f"byte 0x{wrong - 0xDC00:02x}" if wrong in BYTES else f"half a character, U+{wrong:04X} alone"
        where = f"behind {before!r}" if before else "at the beginning"
        raise BadInputError(f"the text is not valid UTF-8: {what}, {where}; convert it to UTF-8") from error
