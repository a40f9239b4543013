"""Calls in replies: told from words however the text is cut, and forced by grammars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.decoding.tool_calls import CallReader, Style, call_grammar, style_in

TEMPLATES = Path(__file__).parents[1] / "bundle" / "templates"
NAMES = ("age", "time")
ANN = '{"of": "Ann {\\"}"}'
HERMES = f'<tool_call>\n{{"name": "age", "arguments": {ANN}}}\n</tool_call>'
LLAMA = f'{{"name": "age", "parameters": {ANN}}}'
CASES: list[tuple[Style, str, str, list[tuple[str, str]]]] = [
    ("hermes", "Hello there.\n", "Hello there.\n", []),
    ("hermes", HERMES, "", [("age", ANN)]),
    ("hermes", f"Let me see.\n{HERMES}", "Let me see.", [("age", ANN)]),
    ("hermes", f'{HERMES}\n<tool_call>{{"name":"time","arguments":{{}}}}</tool_call>\n', "",
     [("age", ANN), ("time", "{}")]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "age"}</tool_call>', "", [("age", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "age"}</tool_call>', "", [("age", "{}")]),
    ("hermes", '<tool_call>{"name": "age", "arguments": "{}"}</tool_call>', "", [("age", "{}")]),
    ("hermes", '<tool_call>{"name": "age", "arguments": {"of": "An', "", [("age", '{"of": "An')]),
    ("hermes", "a <tool_call>no call</tool_call> b", "a<tool_call>no call</tool_call> b", []),
    ("hermes", "1 < 2 <tool", "1 < 2 <tool", []),
    ("llama3", LLAMA, "", [("age", ANN)]),
    ("llama3", f' {LLAMA}; {{"name": "time", "parameters": {{}}}}', "", [("age", ANN), ("time", "{}")]),
    ("llama3", '{"type": "function", "name": "age", "parameters": {"a": 1}}', "", [("age", '{"a": 1}')]),
    ("llama3", '{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
    ("llama3", '{"name": 5', '{"name": 5', []),
    ("llama3", "Use {} here", "Use {} here", []),
    ("llama3", '{"answer": 4} or {"name": "age", "parameters": {}}',
     '{"answer": 4} or {"name": "age", "parameters": {}}', []),
]  # fmt: skip


def read(style: Style, pieces: list[str], most: int | None = None) -> tuple[str, list[tuple[str, str]], list[str]]:
    """The words, the calls, and their ids."""
    reader = CallReader(style, NAMES, most)
    content, calls, ids = "", [], []
    for said in [*map(reader.push, pieces), reader.end()]:
        content += said.content
        for piece in said.calls:
            if piece.name is not None:
                assert piece.index == len(calls) and piece.id is not None
                calls.append([piece.name, ""])
                ids.append(piece.id)
            calls[piece.index][1] += piece.arguments
    return content, [(name, arguments) for name, arguments in calls], ids


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1][:30]!r}")
@settings(deadline=None)
@given(data=st.data())
def test_calls_are_told_from_words_however_the_text_is_cut(
    case: tuple[Style, str, str, list[tuple[str, str]]], data: st.DataObject
) -> None:
    style, text, content, calls = case
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    said, found, ids = read(style, pieces)
    assert (said, found) == (content, calls)
    assert len(set(ids)) == len(ids) and all(len(id) == 9 and id.isalnum() for id in ids)


def test_no_more_calls_are_told_than_may_be() -> None:
    assert read("hermes", [HERMES, HERMES], most=1)[:2] == ("", [("age", ANN)])
    assert read("llama3", [LLAMA, "; ", LLAMA], most=1)[:2] == ("", [("age", ANN)])


def test_arguments_come_as_they_are_written() -> None:
    reader = CallReader("hermes", NAMES)
    pieces = [reader.push(piece).calls for piece in ('<tool_call>{"name": "age", "arguments": {', '"of": ', '"Ann"}')]
    assert [[piece.arguments for piece in piece_of] for piece_of in pieces] == [["", "{"], ['"of": '], ['"Ann"}']]


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("qwen2.5", "hermes"), ("qwen3", "hermes"), ("llama3.1", "llama3"),
        ("llama3.2", "llama3"), ("mistral_tools", None), ("deepseek", None), ("granite3", None), ("chatml", None),
        ("smollm3", None),
    ],
)  # fmt: skip
def test_templates_show_the_style(name: str, style: Style | None) -> None:
    source = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    assert style_in(ChatTemplate(source, {"bos_token": "", "eos_token": ""}).written_call) == style


PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "$comment": "a person"}
FUNCTIONS: list[dict[str, Any]] = [
    {
        "name": "age",
        "parameters": {
            "properties": {"of": {"$ref": "#/$defs/person"}},
            "required": ["of"],
            "additionalProperties": False,
            "$defs": {"person": {**PERSON, "additionalProperties": False}},
        },
    },
    {"name": "time"},
]


@pytest.mark.parametrize("style", ["hermes", "llama3"])
@pytest.mark.parametrize(
    ("calls", "followed"),
    [
        ([("age", '{"of": {"name": "Ann"}}')], True),
        ([("time", "{}")], True),
        ([("age", "{}")], False),
        ([("age", '{"of": {"name": 5}}')], False),
        ([("other", "{}")], False),
        ([("time", "{}"), ("time", "{}")], None),
        ([], False),
    ],
)
def test_grammars_allow_calls_of_the_functions_alone(
    style: Style, calls: list[tuple[str, str]], followed: bool | None
) -> None:
    llguidance = pytest.importorskip("llguidance")
    pytest.importorskip("torch")
    from tests.thinker import END, make_tokenizer

    tokenizer = make_tokenizer()
    ends = [tokenizer.token_to_id(END)]
    taken = llguidance.LLTokenizer(tokenizer.to_str(), n_vocab=tokenizer.get_vocab_size(), eos_token=ends)
    key = {"hermes": "arguments", "llama3": "parameters"}[style]
    bodies = [f'{{"name": {json.dumps(name)}, "{key}": {arguments}}}' for name, arguments in calls]
    text = (
        "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies) if style == "hermes" else "; ".join(bodies)
    )
    for several in (True, False):
        grammar = call_grammar(FUNCTIONS, style, several)
        make = {"lark": "grammar_from_lark", "json-schema": "grammar_from_json_schema"}[grammar.kind]
        defaults = {"defaults": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
        more = defaults if grammar.kind == "json-schema" else {}
        matcher = llguidance.LLMatcher(taken, getattr(llguidance.LLMatcher, make)(grammar.text, **more))
        assert not matcher.is_error(), matcher.get_error()
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ok = matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()
        assert bool(ok) is (several and style == "hermes" if followed is None else followed)
    answer = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    either = call_grammar(FUNCTIONS, style, True, answer)
    make = "grammar_from_lark" if either.kind == "lark" else "grammar_from_json_schema"
    for words in ('{"sure": true}', text):
        matcher = llguidance.LLMatcher(taken, getattr(llguidance.LLMatcher, make)(either.text))
        ids = tokenizer.encode(words, add_special_tokens=False).ids
        ok = matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()
        assert bool(ok) is (words != text or (style == "hermes" if followed is None else followed))


def test_a_style_is_seen_where_a_call_is_written() -> None:
    assert style_in('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>') == "hermes"
    assert style_in('{"name": "f", "parameters": {}}') == "llama3"
    assert style_in('[TOOL_CALLS][{"name": "f", "arguments": {}}]') is None


def test_markers_that_are_tokens_are_those_tokens() -> None:
    """llguidance does not take an added token for the text that it stands for."""
    text = call_grammar(FUNCTIONS, "hermes", True, tokens=["<tool_call>", "</tool_call>"]).text
    assert 'call: <tool_call> "\\n" body "\\n" </tool_call>' in text
    assert 'call: "<tool_call>" "\\n" body "\\n" "</tool_call>"' in call_grammar(FUNCTIONS, "hermes", True).text
