"""What a request says reaches the chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime import BadInputError, Model
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.protocol import read_chat
from rrt_edge.runtime.server.server_options import ServerOptions

TEMPLATES = Path(__file__).parents[1] / "bundle" / "templates"
Read = Callable[..., str]
SERVED = ServerOptions("here", most_tokens=100)
PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
FIELDS = "{{ messages[-1] | tojson }}"
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "age", "arguments": '{"of": "Ann"}'}}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "9"}
TOOL = {"type": "function", "function": {"name": "age", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Iterator[Model]:
    with Model.load(bundle) as model:
        yield model


@pytest.fixture
def read(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> Read:
    """The text of a request's prompt, in a template."""

    def text(template: str | None, *messages: dict[str, Any], **fields: Any) -> str:
        special = {"bos_token": "", "eos_token": ""}
        monkeypatch.setattr(loaded._loaded, "template", template and ChatTemplate(template, special))
        ask = read_chat({"messages": list(messages), **fields}, loaded, SERVED)
        return str(loaded.tokenizer.decode(ask.prompts[0], skip_special_tokens=False))

    return text


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text("utf-8")


def test_messages_reach_the_template_whole(read: Read) -> None:
    answer = {"role": "tool", "tool_call_id": "c1", "name": "age", "content": [{"type": "text", "text": "9"}]}
    assert read(FIELDS, USER, answer) == '{"role": "tool", "tool_call_id": "c1", "name": "age", "content": "9"}'
    silent = {"role": "assistant", "content": None, "refusal": None, "reasoning": "Hm", "x": [1, {"y": True}]}
    expected = '{"thinking": "Hm", "role": "assistant", "reasoning": "Hm", "x": [1, {"y": true}], "reasoning_content": '
    assert read(FIELDS.replace("-1", "-2"), USER, silent, USER) == expected + '"Hm"}'
    assert read(PLAIN, {"role": "developer", "content": "Be brief"}, USER) == "system:Be brief;user:Hi;"


def test_a_call_and_its_answer_reach_templates_that_join_texts(read: Read) -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    joined = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + ';' }}{% endfor %}"
    assert read(joined, USER, calling, ANSWER) == "user:Hi;assistant:;tool:9;"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen2.5", '{"name": "age", "arguments": {"of": "Ann"}}'),
        ("llama3.1", '{"name": "age", "parameters": {"of": "Ann"}}'),
        ("deepseek", 'age\n```json\n{"of": "Ann"}\n```'),
        ("qwen3", '{"name": "age", "arguments": {"of": "Ann"}}'),
    ],
)
def test_arguments_are_written_as_json_once(read: Read, name: str, written: str) -> None:
    """Clients send them as a text; some templates take that, others would quote it."""
    assert written in read(template(name), USER, {"role": "assistant", "tool_calls": [CALL]}, ANSWER)


@pytest.mark.parametrize("calls", [5, [5], [{"function": 5}], [{"function": {"name": "f", "arguments": "{"}}], [{}]])
def test_calls_of_any_form_reach_the_template(read: Read, calls: Any) -> None:
    calling = {"role": "assistant", "tool_calls": calls}
    read_back = read("{{ messages[-2].tool_calls | tojson }}", USER, calling, ANSWER)
    assert json.loads(read_back) == calls


def test_tools_reach_templates_that_write_them(read: Read) -> None:
    source = "{{ tools | tojson }}"
    written = '[{"type": "function", "function": {"name": "age", "parameters": {"type": "object"}}}]'
    assert read(source, USER, tools=[TOOL]) == read(source, USER, tools=[TOOL], tool_choice="auto") == written
    assert read(source, USER, tools=[TOOL], tool_choice="none") == read(source, USER, tools=[]) == "null"


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_no_tools(read: Read, tools: Any) -> None:
    assert read(PLAIN, USER, tools=tools, tool_choice="auto") == "user:Hi;"


def test_further_variables_reach_the_template(read: Read) -> None:
    thinking = read(template("qwen3"), USER, chat_template_kwargs={"enable_thinking": False})
    assert thinking.endswith("<think>\n\n</think>\n\n")
    documents = [{"title": "Trees"}]
    assert read("{{ documents[0].title }}", USER, documents=documents) == "Trees"
    assert read("{{ documents[0].title }}", USER, chat_template_kwargs={"documents": documents}) == "Trees"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": "age"}, "tools"),
        ({"tools": [5]}, "tools"),
        ({"documents": {}}, "documents"),
        ({"documents": ["Trees"]}, "documents"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"messages": [USER, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [USER, {"content": "Hi"}]}, "messages[1].role"),
        ({"messages": [USER, "Hi"]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_is_wrong_is_named(read: Read, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(PLAIN, USER, **fields)
    assert caught.value.status == 400 and caught.value.param == param and param.split("[")[0] in str(caught.value)


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_variables_of_their_own_are_not_among_the_further_ones(read: Read, name: str) -> None:
    with pytest.raises(BadInputError, match=f"chat_template_kwargs: {name}"):
        read(PLAIN, USER, chat_template_kwargs={name: []})


CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
OPENED = CHATML + "{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.mark.parametrize(
    ("source", "said", "prompt"),
    [
        (OPENED, "Two h", "<|user|>Hi<|end|><|assistant|>Two h"),
        (OPENED, "Two ", "<|user|>Hi<|end|><|assistant|>Two "),
        (OPENED.replace("m.content", "m.content | trim"), " Two ", "<|user|>Hi<|end|><|assistant|>Two"),
        (OPENED, "", "<|user|>Hi<|end|><|assistant|>"),
        (OPENED, [{"type": "text", "text": "Two"}, {"type": "refusal", "refusal": " h"}], None),
    ],
)
def test_what_the_assistant_said_last_goes_on(read: Read, source: str, said: Any, prompt: str | None) -> None:
    found = read(source, USER, {"role": "assistant", "content": said})
    assert found == (prompt or "<|user|>Hi<|end|><|assistant|>Two h")


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3.1", "deepseek", "mistral"])
@pytest.mark.parametrize("said", ["Two hens and", "Two hens ", "Line\n"])
def test_it_goes_on_as_in_transformers(name: str, said: str) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    chat = [USER, {"role": "assistant", "content": said}]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **special)
    theirs.chat_template = template(name)
    expected = theirs.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert ChatTemplate(template(name), special).prompt(chat) == expected


@pytest.mark.parametrize(
    ("source", "last", "param"),
    [
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", {}, ".content"),
        (CHATML.replace("m.content", "m.content | upper"), {}, ".content"),
        (CHATML, {"tool_calls": [CALL]}, ".tool_calls"),
    ],
)
def test_what_cannot_go_on_is_refused(read: Read, source: str, last: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(source, USER, {"role": "assistant", "content": "Two", **last})
    assert caught.value.status == 400 and caught.value.param == f"messages[1]{param}"
