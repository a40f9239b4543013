"""The prose of a Markdown document, as CommonMark's parser sees it, and whether edits keep the document's structure."""

from __future__ import annotations

import html
import itertools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import (
    StateInline,
    autolink,
    backtick,
    emphasis,
    entity,
    escape,
    html_inline,
    image,
    newline,
)  # fmt: skip
from markdown_it.rules_inline import (
    text as text_rule,
)
from markdown_it.token import Token

from proofread.prose import OPAQUE, Builder, Prose

FRONT_MATTER = re.compile(r"\ufeff?(---|\+\+\+)[ \t]*\r?\n(?:.*?\r?\n)??\1[ \t]*(?:\r?\n|\Z)", re.DOTALL)
LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
DIRECTIVE = re.compile(r"(?:[ \t>]*)(?::::|!!!|\?\?\?|\{%|\{\{|%|import |export |\[[ xX]\]$|\|)")  # of dialects
CODE_TAGS = ("code", "kbd", "pre", "samp", "var", "script", "style", "math", "svg")
Rule = Callable[[StateInline, bool], bool]
Span = tuple[int, int, str]  # of the content: start, end, and "text", "space" or "fixed"


def find_prose(text: str) -> Iterator[Prose]:
    """The passages to read, in order: paragraphs, headings and items of lists; no code, tables, HTML, front matter."""
    front = FRONT_MATTER.match(text)
    offset = front.end() if front else len(text) - len(text.removeprefix("\ufeff"))
    lines = [match.span() for match in LINES.finditer(text, offset)]
    environment: dict[str, Any] = {}
    tables = items = 0
    for token in _BLOCKS.parse(text[offset:], environment):
        tables += token.nesting if token.type in ("table_open", "table_close") else 0
        items += token.nesting if token.type in ("list_item_open", "list_item_close") else 0
        places = [] if tables or token.type != "inline" else _places(token, text, lines)
        if places:
            is_title = bool(items or token.meta.get("heading"))
            ends = token.content.rstrip("*_\"') ")[-1:] in (".", "?", "!")
            yield _read(token.content, places, environment).build(sentence=ends or not is_title)


def _places(token: Token, text: str, lines: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where each line of a block's content begins, in the content and in the document; empty where that is unclear."""
    places, at = [], 0
    first, last = token.map or (0, 0)
    for number, line in enumerate(token.content.split("\n"), first):
        if number >= last:
            return []
        start, end = lines[number]
        source, words = text[start:end].rstrip(), line.rstrip()
        if DIRECTIVE.match(source):
            return []
        column = len(source) - len(words)
        if token.meta.get("heading") == "#":
            column = source.find(words, source.index("#"))
        if column < 0 or source[column : column + len(words)] != words:
            return []
        places.append((at, start + column))
        at += len(line) + 1
    return places


def _read(content: str, places: Sequence[tuple[int, int]], environment: dict[str, Any]) -> Builder:
    spans: list[Span] = []
    _INLINE.inline.parse(content, _INLINE, {**environment, "spans": spans}, [])
    line_starts = [line for line, _ in places]

    def where(at: int) -> int:
        line, start = places[bisect_right(line_starts, at) - 1]
        return start + at - line

    builder = Builder()
    for start, end, kind in _with_opaque(content, spans):
        if kind == "text":
            builder.words(content[start:end], where(start))
        elif kind == "space" or "\n" in content[start:end]:
            builder.space(where(start), where(end), fixed=True)
        else:
            passage = html.unescape(content[start:end].strip("`").removeprefix("\\"))
            builder.passage(passage, where(start), where(end - 1) + 1)
    return builder


def _with_opaque(content: str, spans: Iterable[Span]) -> Iterator[Span]:
    """The spans in order, with addresses and the like as fixed ones wherever a span begins, ends or lies in them."""
    passages = [match.span() for match in OPAQUE.finditer(content)]
    done = next_passage = 0
    for first, end, kind in sorted(spans):
        start = max(first, done)
        while start < end:
            while next_passage < len(passages) and passages[next_passage][1] <= start:
                next_passage += 1
            opaque = passages[next_passage] if next_passage < len(passages) else (end, end)
            if opaque[0] > start:
                yield start, min(end, opaque[0]), kind
                start = min(end, opaque[0])
            else:
                yield *opaque, "fixed"
                start = opaque[1]
        done = max(done, start)


# ---- The parser of inlines, which says where in the content each stands


def _recording(rule: Rule, kind: str) -> Rule:
    def record(state: StateInline, silent: bool) -> bool:
        start = state.pos
        done = rule(state, silent)
        if done and not silent:
            state.env["spans"].append((start, state.pos, "fixed" if state.env.get("code") else kind))
        return done

    return record


def _marks(state: StateInline, silent: bool) -> bool:
    """Emphasis is left out; stars and underscores that cannot be any are fixed."""
    start = state.pos
    done = emphasis.tokenize(state, silent)
    if done and not (state.delimiters[-1].open or state.delimiters[-1].close):
        state.env["spans"].append((start, state.pos, "fixed"))
    return done


def _picture(state: StateInline, silent: bool) -> bool:
    """Its text is parsed as a content of its own."""
    start, spans = state.pos, state.env["spans"]
    state.env["spans"] = []
    done = image(state, silent)
    state.env["spans"] = spans
    if done and not silent:
        spans.append((start, state.pos, "fixed"))
    return done


def _tag(state: StateInline, silent: bool) -> bool:
    """Tags are left out; what stands in one for code is fixed."""
    start = state.pos
    done = html_inline(state, silent)
    if done and not silent:
        tag = re.match(r"<(/?)(\w+)", state.src[start:])
        if tag and tag[2].lower() in CODE_TAGS:
            state.env["code"] = max(0, state.env.get("code", 0) + (-1 if tag[1] else 1))
    return done


def _letter(state: StateInline, silent: bool) -> bool:
    """Behind all rules: a letter that begins nothing."""
    if not silent:
        state.pending += state.src[state.pos]
    state.pos += 1
    return True


def _inline_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable("strikethrough")
    rules: dict[str, Rule] = {
        "text": _recording(text_rule, "text"),
        "newline": _recording(newline, "space"),
        "escape": _recording(escape, "fixed"),
        "backticks": _recording(backtick, "fixed"),
        "autolink": _recording(autolink, "fixed"),
        "entity": _recording(entity, "fixed"),
        "emphasis": _marks,
        "image": _picture,
        "html_inline": _tag,
    }
    for name, rule in rules.items():
        parser.inline.ruler.at(name, rule)
    parser.inline.ruler.push("letter", _recording(_letter, "text"))
    return parser


def _mark_headings(state: StateCore) -> None:
    for before, token in itertools.pairwise(state.tokens):
        if before.type == "heading_open":
            token.meta["heading"] = before.markup[0]  # "#", or what underlines it


def _block_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable("table").disable("inline")
    parser.core.ruler.after("block", "mark_headings", _mark_headings)
    return parser


_BLOCKS, _INLINE = _block_parser(), _inline_parser()
_WHOLE = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def structure(text: str) -> list[tuple[Any, ...]]:
    """All of a document but its prose: blocks, marks, targets, code, HTML."""
    front = FRONT_MATTER.match(text)
    parts: list[tuple[Any, ...]] = [(front.group(),) if front else ()]
    for token in _WHOLE.parse(text[front.end() :] if front else text.removeprefix("\ufeff")):
        parts += [_part(child) for child in (token.children or [token]) if child.type != "text"]
        if token.children:
            parts.append((token.type, token.level))
    return parts


def _part(token: Token) -> tuple[Any, ...]:
    content = "" if token.type in ("inline", "image") else token.content
    return (token.type, token.tag, token.markup, token.info, tuple(sorted(token.attrs.items())), content)
