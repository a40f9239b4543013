"""JSON from outside: files and requests that somebody else wrote.

Python's reader takes more than JSON is, and raises more than it says: both end here.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

LONGEST_NAME = 255  # letters of a field's name; most systems have the same bound for a file's
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # a surrogate's escape: two of them are a character, one alone is none


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is not JSON in UTF-8; it is nested too deep; a field stands twice, or its name has more than 255
            letters; a number is infinite or has thousands of digits; a text holds half a character.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")  # `json.loads` would take UTF-16 and UTF-32 as well
        value = json.loads(text, object_pairs_hook=_fields, parse_float=_number, parse_constant=_number)
        if HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character, a surrogate alone") from None
    return value


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the field {_short(name)!r} stands twice")
            seen.add(name)
    for name in fields:
        if len(name) > LONGEST_NAME:
            raise ValueError(f"the name of the field {_short(name)!r} has more than {LONGEST_NAME} letters")
    return fields


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{_short(text)} is no finite number")
    return number


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}.."
