"""JSON documents for tests: valid ones, changed by type and as bytes, with values that no writer of JSON writes.

A document is changed as a tree, so that most of what comes out is still JSON: a field goes, stands twice or has another
name, a value becomes one of another type or at its bounds, two values change places.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Raw(str):
    """JSON, or what is none, that stands for itself."""


class Object(list[list[Any]]):
    """An object as a list of names and values, for a name may stand in it twice."""


WHOLE = [0, 1, 2, 7, 8, 16, 255, 256, 1000]
WHOLE += [2**bits + more for bits in (16, 31, 32, 53, 63, 64) for more in (-1, 0, 1)]
NUMBERS = [
    "-0", "-0.0", "1.0", "0.5", "1.5", "1e0", "1E3", "1e-400", "1e308", "1e400", "-1e400", "NaN",
    "Infinity", "-Infinity", "1" + "0" * 400, "-1" + "0" * 400, "1" + "0" * 4290, "1" + "0" * 5000, "0." + "3" * 5000,
    "01", "+1", "1_000", "0x10",
]  # fmt: skip
TEXTS = [
    "", " ", "\0", "\n", "a\nb", "\x1b[2J", "\ud800", "\udc00\ud800", "\U0001f600", "\u202e", "e\u0301", "1", "-1",
    "nan", "true", "null", "../x", "/etc/passwd", "C:\\x", "con", "%s{}", "x" * 256, "y" * 20_000, "\u00e9" * 300,
    "\0" * 300,
]  # fmt: skip
NESTED = [
    "[]", "{}", "[[]]", '{"": {}}', "[" + "0," * 3000 + "0]", '{"a": [{"b": [null]}]}',
    *("[" * depth + "]" * depth for depth in (10, 100, 300, 900, 990, 3000, 100_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (50, 300, 900, 985, 3000, 50_000)),
]  # fmt: skip
NO_JSON = ["", ",", "nul", "'a'", "[1,]", "{1: 2}", "//", "\\u0031", '"\t"', "undefined"]

whole_numbers = st.sampled_from([*WHOLE, *(-number for number in WHOLE)]) | st.integers()
odd_numbers = st.sampled_from([Raw(number) for number in NUMBERS])
texts = st.sampled_from(TEXTS) | st.text(max_size=20)
odd_values = st.one_of(
    whole_numbers,
    odd_numbers,
    st.booleans() | st.none(),
    st.floats(),
    texts,
    st.sampled_from([Raw(nested) for nested in NESTED]),
    st.sampled_from([Raw(text) for text in NO_JSON]),
    st.lists(whole_numbers | texts, max_size=4),
)


def as_tree(value: Any) -> Any:
    """A copy of what JSON holds, its objects as `Object`."""
    if isinstance(value, Object):
        return Object([name, as_tree(inner)] for name, inner in value)
    if isinstance(value, dict):
        return Object([name, as_tree(inner)] for name, inner in value.items())
    return [as_tree(inner) for inner in value] if isinstance(value, list) else value


def to_text(tree: Any) -> str:
    """A document as JSON."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, dict):
        tree = as_tree(tree)
    if isinstance(tree, Object):
        return "{" + ", ".join(f"{to_text(name)}: {to_text(value)}" for name, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(to_text, tree)) + "]"
    return json.dumps(tree)


def _places(tree: Any, holder: list[Any], at: int) -> list[tuple[list[Any], int]]:
    """Where the values of a tree stand: the list, or the object, that holds each, and the number in it."""
    places, inner = [(holder, at)], tree if isinstance(tree, list) else []
    for number, value in enumerate(inner):
        places += _places(value[1] if isinstance(inner, Object) else value, inner, number)
    return places


def _get(holder: list[Any], at: int) -> Any:
    return holder[at][1] if isinstance(holder, Object) else holder[at]


def _put(holder: list[Any], at: int, value: Any) -> None:
    holder[at] = [holder[at][0], value] if isinstance(holder, Object) else value


def _nudged(draw: Draw, value: Any) -> Any:
    """A value next to another: of the same type and a little more, or of another and the same."""
    if isinstance(value, bool) or value is None:
        return draw(st.sampled_from([not value, int(value or 0), "", "true", "null"]))
    if isinstance(value, int | float):
        near = [value + 1, value - 1, -value, value * 2, float(value) if abs(value) < 1e300 else 0, str(value), [value]]
        return draw(
            st.sampled_from(
                [*near, bool(value), value ^ 1 << draw(st.integers(0, 40)) if isinstance(value, int) else 0]
            )
        )
    if isinstance(value, str):
        at = draw(st.integers(0, len(value)))
        return value[:at] + draw(texts) + value[at + draw(st.integers(0, 2)) :]
    return draw(st.sampled_from([[value], value[:1], value + value]))


def change(draw: Draw, tree: Any, odd: st.SearchStrategy[Any] = odd_values) -> Any:
    """Change one thing in a tree, which is not used any further."""
    root = [tree]
    places = _places(tree, root, 0)
    number = draw(st.integers(0, len(places) - 1))
    holder, at = places[number]
    match draw(
        st.sampled_from(["odd", "odd", "odd", "near", "near", "near", "gone", "twice", "other", "name", "inside"])
    ):
        case "near":
            _put(holder, at, _nudged(draw, _get(holder, at)))
        case "gone" if holder is not root:
            del holder[at]
        case "twice" if holder is not root:
            again = draw(st.sampled_from([_get(holder, at), Raw("1"), None]))
            holder.insert(
                draw(st.integers(0, len(holder))), [holder[at][0], again] if isinstance(holder, Object) else again
            )
        case "other":
            other = places[draw(st.integers(0, len(places) - 1))]
            _put(holder, at, as_tree(_get(*other)))
        case "name" if isinstance(holder, Object):
            names = [name for pairs, index in places if isinstance(pairs, Object) for name in [pairs[index][0]]]
            holder[at] = [draw(texts | st.sampled_from(names)), holder[at][1]]
        case "inside":
            _put(holder, at, draw(st.sampled_from([[_get(holder, at)], Object([["a", _get(holder, at)]])])))
        case _:
            _put(holder, at, draw(odd))
    return root[0]


@st.composite
def changed(draw: Draw, document: Any, most: int = 3) -> Any:
    """A tree of a document in which one to `most` things are changed."""
    tree = as_tree(document)
    for _ in range(draw(st.integers(1, most))):
        tree = change(draw, tree)
    return tree


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw: Draw, content: bytes, most: int = 4) -> bytes:
    """Content in which one to `most` times a bit or a byte is another, or a part is gone, new, twice or zero."""
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), at + draw(st.sampled_from([1, 1, 2, 4, 8, 64, 4096])))
        before, part, after = content[:at], content[at:end], content[end:]
        match draw(st.sampled_from(["bit", "bit", "byte", "gone", "new", "twice", "zero", "cut"])):
            case "bit":
                part = bytes([part[0] ^ 1 << draw(st.integers(0, 7)), *part[1:]]) if part else b"\1"
            case "byte":
                part = bytes([draw(st.integers(0, 255)), *part[1:]])
            case "gone":
                part = b""
            case "new":
                part = draw(st.binary(min_size=1, max_size=8)) + part
            case "twice":
                part += part
            case "zero":
                part = bytes(len(part))
            case "cut":
                part, after = b"", b""
        content = before + part + after
    return content


def contents(document: Any) -> st.SearchStrategy[bytes]:
    """A document in files: changed as a tree, as bytes, or both, and in other encodings."""
    plain = encoded(to_text(document))
    as_trees = changed(document).map(lambda tree: encoded(to_text(tree)))
    coded = st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "cp037"]).map(lambda name: to_text(document).encode(name))
    return st.one_of(
        as_trees, as_trees, as_trees, changed_bytes(plain), as_trees.flatmap(lambda text: changed_bytes(text, 1)), coded
    )
