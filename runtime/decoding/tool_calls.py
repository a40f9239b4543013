"""Calls of functions as models write them, told from the words beside them, and grammars that force them.

Two styles are known: Hermes's, of ChatML models (`<tool_call>` around a JSON object with `name` and `arguments`), and
Llama 3's (a reply that is such an object, with `parameters`). Models with another style are forced to the second one.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rrt_edge.runtime.decoding.constraint import JSON_STYLE
from rrt_edge.runtime.decoding.detokenizer import overlap
from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.system.json_text import parse_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
ID_LETTERS = 9  # as Mistral's templates want them
Style = Literal["hermes", "llama3"]
KEYS: dict[Style, str] = {"hermes": "arguments", "llama3": "parameters"}


def style_in(written: str) -> Style | None:
    """The style of a conversation with a call in it, as a chat template writes it."""
    if OPEN in written and re.search(r'\{\s*"name":\s*"[^"]*",\s*"arguments":', written):
        return "hermes"
    return "llama3" if re.search(r'\{\s*"name":\s*"[^"]*",\s*"parameters":', written) else None


def call_grammar(
    functions: Sequence[Mapping[str, Any]],
    style: Style,
    several: bool,
    otherwise: Mapping[str, Any] | None = None,
    tokens: Collection[str] = (),
) -> Grammar:
    """What a reply must be that calls functions.

    Args:
        functions: each with a `name`, and a JSON schema of its arguments as `parameters`.
        several: whether there may be more calls than one, which Llama 3's style has not.
        otherwise: the schema of an answer that calls none, where that is allowed.
        tokens: the names of added tokens, which llguidance takes for no text.
    """
    schemas: list[Any] = [function.get("parameters") or {} for function in functions]
    places = {f"f{number}": _moved(schema, number) for number, schema in enumerate(schemas)}
    bodies: list[dict[str, Any]] = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, KEYS[style]: {"$ref": f"#/$defs/{place}"}},
            "required": ["name", KEYS[style]],
            "additionalProperties": False,
        }
        for function, place in zip(functions, places, strict=True)
    ]
    if style == "llama3":
        if otherwise is not None:
            places["answer"] = _moved(dict(otherwise), "answer")
            bodies.append({"$ref": "#/$defs/answer"})
        return Grammar.json_schema({"anyOf": bodies, "$defs": places})
    body = json.dumps({"anyOf": bodies, "$defs": places, "x-guidance": JSON_STYLE})
    start = r'call ("\n" call)*' if several else "call"
    opening, closing = (mark if mark in tokens else f'"{mark}"' for mark in (OPEN, CLOSE))
    rules = [f"start: {start}", rf'call: {opening} "\n" body "\n" {closing}', f"body: %json {body}"]
    if otherwise is not None:
        rules[0] = f"start: {start} | answer"
        rules.append(f"answer: %json {json.dumps({**otherwise, 'x-guidance': JSON_STYLE})}")
    return Grammar.lark("\n".join(rules))


def _moved(schema: Any, place: int | str) -> Any:
    """A schema of an object as it is among a larger one's definitions: what it refers to in itself has moved."""
    here = f"#/$defs/{place if isinstance(place, str) else f'f{place}'}"

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(part) for part in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        parts = {name: moved(part) for name, part in value.items() if name != "$schema"}
        if isinstance(reference, str) and reference.startswith("#"):
            parts["$ref"] = here + reference[1:]
        return parts

    return {"type": "object", **moved(schema)} if isinstance(schema, dict) else schema


@dataclass(frozen=True)
class CallPiece:
    """What a piece of text adds to call number `index`; its first piece has the function's name and an id."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


@dataclass
class Said:
    """What a piece of text adds to the words of a reply, and to the calls in it."""

    content: str = ""
    calls: list[CallPiece] = field(default_factory=list)


class CallReader:
    """Tells calls from words, piece by piece, as the text of a reply comes.

    What is not the beginning of a call is words, and what turns out to be none too: all of the text is told.
    """

    def __init__(self, style: Style, names: Collection[str], most: int | None = None) -> None:
        """
        Args:
            names: of the functions; in Llama 3's style an object that names none of them is no call.
            most: calls that are told; further ones are left out.
        """
        self.count = 0
        self._style, self._names, self._most = style, names, most
        self._text = ""  # whose meaning is not known yet
        self._inside = ""  # where: "" in words, "head", "arguments", "tail" of a call
        self._plain = False  # no call can come any more
        self._braces = _Braces()

    def push(self, text: str) -> Said:
        """What the text that comes next adds."""
        self._text += text
        return self._read(last=False)

    def end(self) -> Said:
        """What was held back, at the end of the reply."""
        return self._read(last=True)

    def _read(self, last: bool) -> Said:
        said = Said()
        read = {"": self._words, "head": self._head, "arguments": self._arguments, "tail": self._tail}
        while read[self._inside](said, last):
            pass
        return said

    def _words(self, said: Said, last: bool) -> bool:
        """Words up to a call; whether one begins."""
        if self._most is not None and self.count >= self._most:
            self._text = ""
            return False
        if self._style == "llama3":
            return self._bare(said, last)
        words, marker, rest = self._text.partition(OPEN)
        if marker:
            self._text, self._inside = rest, "head"
        else:
            kept = 0 if last else overlap(words, OPEN)
            ready = words[: len(words) - kept].rstrip() if not last or self.count else words
            self._text, words = ("" if last else words[len(ready) :]), ready
        said.content += words.rstrip() if marker else words
        return bool(marker)

    def _bare(self, said: Said, last: bool) -> bool:
        """As `_words`, where a reply is a call from its first letter on, or none."""
        start = self._text.lstrip("; \n\t") if self.count else self._text.lstrip()
        if not self._plain and start.startswith("{"):
            self._text, self._inside = start, "head"
            return True
        self._plain = self._plain or bool(start)
        if self._plain or last:
            said.content += "" if self.count and not start else self._text
            self._text = ""
        return False

    def _head(self, said: Said, last: bool) -> bool:
        """The name of the function, or a whole call that has it elsewhere."""
        head = HEAD.match(self._text)
        name = "" if head is None else str(json.loads(head[1], strict=False))
        if head is not None and self._is_call(name):
            self._text, self._inside, self._braces = self._text[head.end() :], "arguments", _Braces()
            said.calls.append(self._begun(name, ""))
            return True
        if self._style == "hermes":
            body, marker, rest = self._text.partition(CLOSE)
            whole = bool(marker)
        else:
            end = _Braces().end(self._text)
            body, marker, rest = self._text[:end], "", "" if end is None else self._text[end:]
            whole = end is not None
        if not whole and not last:
            return False
        call = _whole_call(body)
        self._text, self._inside = rest, ""
        if call is not None and self._is_call(call[0]):
            said.calls.append(self._begun(*call))
        else:
            said.content += (OPEN if self._style == "hermes" else "") + body + marker
            self._plain = True
        return True

    def _is_call(self, name: str) -> bool:
        return self._style == "hermes" or name in self._names

    def _begun(self, name: str, arguments: str) -> CallPiece:
        self.count += 1
        return CallPiece(self.count - 1, arguments, name, uuid.uuid4().hex[:ID_LETTERS])

    def _arguments(self, said: Said, last: bool) -> bool:
        end = self._braces.end(self._text)
        piece = self._text if end is None else self._text[:end]
        if piece:
            said.calls.append(CallPiece(self.count - 1, piece))
        self._text = self._text[len(piece) :]
        self._inside = "arguments" if end is None else "tail"
        return end is not None

    def _tail(self, said: Said, last: bool) -> bool:
        """What closes a call."""
        mark = CLOSE if self._style == "hermes" else "}"
        _, marker, rest = self._text.partition(mark)
        if marker:
            self._text, self._inside = rest, ""
        return bool(marker)


class _Braces:
    """Finds where a JSON object ends whose text comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._in_text, self._escaped = 0, False, False

    def end(self, text: str) -> int | None:
        """Where in the next piece the object has ended; None where it goes on."""
        for at, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = letter == "\\"
                self._in_text = letter != '"'
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None


def _whole_call(text: str) -> tuple[str, str] | None:
    """The name of the function and the arguments, as JSON, of a call; None where it is none."""
    try:
        call = parse_json(text)
    except ValueError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        return call["name"], arguments
    return call["name"], json.dumps({} if arguments is None else arguments, ensure_ascii=False)
