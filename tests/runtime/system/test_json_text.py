"""JSON that Python's reader takes and nobody should, or chokes on."""

from __future__ import annotations

import json
import math

import pytest

from rrt_edge.runtime.system.json_text import parse_json

REFUSED = {
    "nested": ("[" * 100_000, "nested too deep"),
    "nested objects": ('{"a":' * 100_000, "nested too deep"),
    "digits": ("1" * 5000, "digits"),
    "infinite": ("[1e999]", "1e999 is no finite number"),
    "constant": ('{"a": NaN}', "NaN is no finite number"),
    "minus": ("-Infinity", "is no finite number"),
    "twice": ('{"a": {"b": 1, "c": 2, "b": 3}}', "'b' stands twice"),
    "long name": (json.dumps({"n" * 256: 1}), "more than 255 letters"),
    "half": (r'["\ud83d"]', "half a character"),
    "half of a name": (r'{"\uDE00": 1}', "half a character"),
    "turned round": (r'"\ude00\ud83d"', "half a character"),
    "cut": ('{"a": 1', "Expecting"),
    "empty": ("", "Expecting value"),
    "two": ("1 2", "Extra data"),
}


@pytest.mark.parametrize("form", [str, str.encode])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_json_is_a_value_error(case: str, form: type) -> None:
    text, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        parse_json(form(text))


def test_bytes_that_are_no_utf_8_are_refused() -> None:
    for content in (b'"\xff"', '{"a": "\\ud800"}'.encode("utf-16"), '"a"'.encode("utf-32")):
        with pytest.raises(ValueError, match="utf-8"):
            parse_json(content)
    with pytest.raises(ValueError, match="Expecting"):
        parse_json('{"a": "\\ud800"}'.encode("utf-16-le"))
    assert parse_json(b'\xef\xbb\xbf"a"') == "a"  # as some editors write it


def test_a_name_that_stands_twice_among_very_many_is_told_at_once() -> None:
    """Looked for among all others from each name on, it took minutes."""
    names = [f'"{number}": 0' for number in range(300_000)]
    with pytest.raises(ValueError, match="'299999' stands twice"):
        parse_json("{" + ", ".join([*names, names[-1]]) + "}")


@pytest.mark.parametrize(
    "text", [r'"😀"', '{"a": [1, -2.5e3, true, null, "\\\\ud83d"], "b": {}}', "1e-400", '"\u00e9"', " [ ] "]
)
def test_json_is_what_it_says(text: str) -> None:
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_long_numbers_and_names_up_to_the_bounds() -> None:
    assert parse_json(json.dumps({"n" * 255: int("9" * 4300)})) == {"n" * 255: int("9" * 4300)}
    assert math.isfinite(parse_json("1.7976931348623157e308"))
