"""Templates in the formats that families of models have, rendered by us and by transformers."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer, models

from rrt_edge.runtime import BadInputError
from rrt_edge.runtime.bundle.chat_template import ChatTemplate

FILES = {path.stem: path for path in sorted(Path(__file__).with_name("templates").glob("*.jinja"))}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
WITH_PARTS = {  # the roles whose content a template takes in parts, by its own text
    "gemma3": {"user", "assistant", "tool"},
    "llava": {"system", "user", "assistant", "tool"},
}
WITHOUT_TEXTS = {"llava"}
WITHOUT_TOOLS = {"chatml", "mistral", "gemma2", "gemma3", "phi3", "phi4_mini", "olmo2", "smollm2", "deepseek", "llava"}
OF_OBJECTS = {"llama3.1", "llama3.2", "mistral_tools", "qwen2.5", "granite3"}  # that quote arguments which are a text


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def call(name: str, arguments: Any, number: int = 0) -> dict[str, Any]:
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(content: Any, number: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": "weather", "content": content}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


SYSTEM = {"role": "system", "content": " Be <brief> & kind.\n"}
LISBON = {"city": "Lisboa", "days": 2, "unit": None, "far": ["é", 1.5, {"a": True}]}
CHATS: dict[str, list[dict[str, Any]]] = {
    "plain": [user("Hi <b> 'é'")],
    "system": [SYSTEM, user("Hi", name="Ann")],
    "turns": [SYSTEM, user(" One? "), assistant("Yes, \n"), user("\nTwo?"), assistant("No"), user("Why?")],
    "unicode": [user("日本語 🙂 \u200b café ½ <|im_end|> {{ messages }} {% raw %}")],
    "ends with the assistant": [user("Hi"), assistant("Hello")],
    "does not alternate": [user("Hi"), user("Hi again")],
    "begins with the assistant": [assistant("Hello"), user("Hi")],
    "another role": [user("Hi"), {"role": "critic", "content": "Well."}],
    "silence": [user("Hi"), assistant(None), user("?")],
    "silence to the end": [user("Hi"), {"role": "assistant"}],
    "call": [user("How is it?"), assistant(None, tool_calls=[call("weather", LISBON)]), answer('{"sun": 9}')],
    "call and more": [
        SYSTEM, user("How is it?"), assistant("I look.", tool_calls=[call("weather", {})], refusal=None),
        answer("sun"), assistant("Sunny."), user("Sure?"), assistant("", tool_calls=[call("weather", LISBON)]),
    ],
    "two calls": [
        user("?"), {"role": "assistant", "tool_calls": [call("weather", LISBON), call("weather", {"city": "Rio"}, 1)]},
        answer("sun"), answer("rain", 1),
    ],
    "a call as text": [user("?"), assistant(None, tool_calls=[call("weather", '{"city": "Lisboa"}')]), answer("sun")],
    "a call with a short id": [user("?"), assistant("", tool_calls=[{**call("f", {}), "id": "1"}]), answer("sun")],
    "no calls": [user("?"), assistant("None.", tool_calls=None, function_call=None), user("!")],
    "thoughts": [user("2 + 2?"), assistant("4", reasoning_content="\nEasy.\n"), user("3 + 3?")],
    "thoughts at the end": [user("2 + 2?"), assistant("\n4", reasoning_content="\nEasy.\n")],
    "thoughts by another name": [user("2 + 2?"), assistant("4", reasoning="Easy."), assistant("5", thinking="No.")],
    "thoughts in the text": [user("2 + 2?"), assistant("<think>\nEasy.\n</think>\n\n4"), user("<think>3</think>?")],
    "tools of a message": [{**SYSTEM, "tools": '[{"name": "weather"}]'}, user("Hi")],
    "further fields": [user("Hi", at={"time": [1, 2.5, None]}), assistant("Yes", audio=None, score=0.5), user("?")],
}  # fmt: skip
IN_PARTS: dict[str, list[dict[str, Any]]] = {
    "user": [user(parts(" One", "and two. "))],
    "everybody": [
        {"role": "system", "content": parts("Be brief.", " Be kind.")}, user(parts("Hi <b>")),
        assistant(parts("Yes, ", " yes")), user("No"),
    ],
    "nothing": [user([]), assistant(parts(""))],
    "answer": [user("?"), assistant(None, tool_calls=[call("weather", {})]), answer(parts("sun", "shine"))],
}  # fmt: skip
DOCUMENTS = [{"title": "Trees", "text": "Oaks & <elms>", "doc_id": 7}, {"title": "Kü", "text": "é"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says <how> it is & 'will be'; é",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "return": {"type": "string"},
    },
}
TIDES = {"type": "function", "function": {"name": "tides", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, TIDES]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": False},
    {"tools": TOOLS},
    {"date_string": "1 May 2026", "enable_thinking": False, "thinking": True, "bos_token": "<begin>"},
    {
        "tools": TOOLS, "documents": DOCUMENTS, "controls": {"citations": True}, "tools_in_user_message": False,
        "enable_thinking": True,
    },
    {"tools": TOOLS, "builtin_tools": ["code_interpreter", "weather"], "add_generation_prompt": False},
]  # fmt: skip


class Both:
    """A template in our hands and in transformers'."""

    def __init__(self, name: str) -> None:
        from transformers import PreTrainedTokenizerFast

        source = FILES[name].read_text("utf-8")
        self.ours = ChatTemplate(source, SPECIAL)
        self._theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
        self._theirs.chat_template = source

    def theirs(self, chat: list[dict[str, Any]], **variables: Any) -> str | Exception:
        try:
            return str(self._theirs.apply_chat_template(chat, tokenize=False, **variables))
        except Exception as error:  # of Jinja, or of Python where a template adds what cannot be added
            return error

    def check(self, chat: list[dict[str, Any]], as_theirs: list[dict[str, Any]], **variables: Any) -> None:
        """Ours, of a conversation, is theirs of the same in the form that the template takes."""
        before, after = self.theirs(as_theirs, **variables), None
        if isinstance(before, Exception):
            reason = re.escape(str(before)) if isinstance(before, TemplateError) else "refuses this conversation"
            with pytest.raises(BadInputError, match=reason):
                self.ours.render(chat, **variables)
        else:
            rendered = self.ours.render(chat, **variables)
            after = self.theirs(as_theirs, **variables)
            assert rendered in (before, after)  # midnight may be between them


@pytest.fixture
def both(request: pytest.FixtureRequest, checkpoints: Any) -> Both:
    return Both(request.param)


every = pytest.mark.parametrize("both", FILES, indirect=True)


def name_of(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["both"])


def fitting(name: str, message: dict[str, Any]) -> dict[str, Any]:
    """A message as somebody who has read the template would give it to transformers."""
    content = message.get("content")
    if isinstance(content, str) and name in WITHOUT_TEXTS:
        return {**message, "content": parts(content)}
    if isinstance(content, list) and message["role"] not in WITH_PARTS.get(name, set()):
        return {**message, "content": "".join(part["text"] for part in content)}
    return message


@every
def test_a_conversation_is_rendered_as_by_transformers(both: Both, request: pytest.FixtureRequest) -> None:
    for chat, options in product([*CHATS.values(), *IN_PARTS.values()], OPTIONS):
        options = {"add_generation_prompt": True, **options}
        seen = [fitting(name_of(request), message) for message in chat]
        silent = any(message.get("content") is None for message in chat)
        if silent and isinstance(both.theirs(seen, **options), Exception):  # ours makes do with an empty text
            seen = [message if message.get("content") is not None else {**message, "content": ""} for message in seen]
        both.check(chat, seen, **options)


@every
def test_what_a_template_takes_is_found_out(both: Both, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    assert both.ours.loss() == ("texts" if name in WITHOUT_TEXTS else None)
    assert both.ours.takes_tools == (name not in WITHOUT_TOOLS)
    assert both.ours.takes_objects(None) == (name in OF_OBJECTS)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("dict", "{{ dict(a=1, **{'b': 2}) }}{{ dict.fromkeys(['a'], 1) }}"),
        ("methods of dict", "{{ dict.update(messages[0], {'role': 'system'}) }}"),
        ("namespace", "{% set n = namespace({'a': 1}, b=2) %}{% set n.c = 3 %}{{ n.a }}{{ n.b }}{{ n.c }}"),
        ("underscores", "{% set n = namespace(_a=1) %}"),
        ("JSON", "{{ [1.0, none, 'é<>&', {'b': 1, 'a': 2}] | tojson }}{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}"),
        ("JSON in order", "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}"),
        ("tokens", "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token is defined }}"),
        ("none", "{{ none }}{{ messages[0].nothing }}{{ messages[0].none is none }}"),
        ("a break", "{% for i in range(9) %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% continue %}x{% endfor %}"),
        ("a scope", "{% for m in [1] %}{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}"),
        ("blank", "  {% if true %}  \n\nx\n  {% endif %}\n  y\n\n"),
        ("variables", "{{ messages }}{{ self is defined }}{{ tools }}{{ documents }}{{ add_generation_prompt }}"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("checkpoints")
def test_names_and_filters_are_those_of_transformers(
    name: str, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.jinja").write_text(template)
    monkeypatch.setitem(FILES, name, tmp_path / "x.jinja")
    both = Both(name)
    chat = [user("Hi", none=None)]
    expected = both.theirs(chat)
    if isinstance(expected, Exception):
        with pytest.raises(BadInputError, match="refuses this conversation"):
            both.ours.render(chat)
    else:
        assert both.ours.render(chat, add_generation_prompt=False) == expected
