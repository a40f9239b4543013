"""Chat templates render as transformers renders them, in a sandbox."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer, models

from rrt_edge.runtime import BadInputError, BundleError
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.messages import fitted
from rrt_edge.runtime.bundle.template_probes import Probes
from rrt_edge.runtime.system.memory import peak_memory_bytes

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama 3": "{{- bos_token }}\n{%- for m in messages %}\n    {{- '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
    "zephyr": "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% else %}\n{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
    "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "generation tag": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content | tojson }}{% endif %}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "llama 3 with tools": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("a day, 100 %%") %}
{%- endif %}
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) + "\n" }}
    {%- endfor %}
{%- endif %}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" ~ message.role ~ "<|end_header_id|>\n\n" ~ message.content | trim ~ "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
{%- endif %}
""",
    "qwen": """{%- if documents is none and tools %}
    {{- "<|im_start|>system\nTools:" }}
    {%- for tool in tools %}
        {{- "\n" ~ tool | tojson(separators=(",", ":"), sort_keys=true) }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
{%- elif messages[0].role != "system" %}
    {{- "<|im_start|>system\nYou help.<|im_end|>\n" }}
{%- endif %}
{%- set state = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- set state.last = loop.index0 %}
    {%- endif %}
    {{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\n" ~ state.last ~ ("" if thinking | default(true) else "<think></think>") }}
{%- endif %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}
{% endif %}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    "mistral with system": """{%- if messages[0].role == "system" -%}
    {%- set system, turns = messages[0].content, messages[1:] -%}
{%- else -%}
    {%- set system, turns = none, messages -%}
{%- endif -%}
{{- bos_token }}
{%- for turn in turns %}
    {%- if (turn.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate") }}
    {%- endif %}
    {%- if turn.role == "user" and loop.last and system %}
        {{- "[INST] " + system + "\n\n" + turn.content + "[/INST]" }}
    {%- elif turn.role == "user" %}
        {{- "[INST] " + turn.content + "[/INST]" }}
    {%- else %}
        {{- " " + turn.content + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "tinyllama": """{% for message in messages %}
    {% if message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'assistant' %}
{% generation %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endgeneration %}

    {% endif %}
    {% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
    {% endif %}
{% endfor %}
""",
    "no tokens": "[{{ pad_token }}{{ unk_token is defined }}{{ tools is none }}{{ documents is none }}]",
}
HI = {"type": "text", "text": "Hi"}
TOOLS = [{"type": "function", "function": {"name": "say", "description": "says <é> & 'more'"}}]
CHATS = [
    [{"role": "user", "content": "Hi <b> é"}],
    [
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "\nNo"},
    ],
    [{"role": "system", "content": " Be <brief> "}, {"role": "user", "content": "Hi", "name": "Ann"}],
    [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi again"}],
    [{"role": "assistant", "content": "{{ messages }}"}],
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.usefixtures("checkpoints")
def test_templates_render_as_in_transformers(name: str, prompt: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
    theirs.chat_template = TEMPLATES[name]
    ours = ChatTemplate(TEMPLATES[name], SPECIAL)
    extras: list[dict[str, Any]] = [{}, {"tools": TOOLS}, {"date_string": "1 May", "thinking": False, "bos_token": "!"}]
    for chat, extra in product(CHATS, extras):
        try:
            expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt, **extra)
        except TemplateError as refusal:
            with pytest.raises(BadInputError, match=re.escape(str(refusal))):
                ours.render(chat, add_generation_prompt=prompt, **extra)
        else:
            assert ours.render(chat, add_generation_prompt=prompt, **extra) == expected


def test_a_templates_refusal_is_one_line() -> None:
    with pytest.raises(BadInputError, match="roles must alternate"):
        ChatTemplate(TEMPLATES["mistral"], SPECIAL).render([{"role": "assistant", "content": "Hi"}])


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace(__call__=1) }}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
    ],
)
def test_templates_run_in_a_sandbox(attack: str) -> None:
    with pytest.raises(BadInputError, match="refuses"):
        ChatTemplate(attack, {}).render(CHATS[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}",
        "{% for a in messages[0].content %}{% for b in range(10**5) %}{% for c in range(10**5) %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' * (2 * 10**9) }}",
        "{% set n = 'a' * (2 * 10**9) %}",
        "{{ ('a' * 2000000000) | length }}",
        "{{ [0] * 10**10 }}",
        "{{ 'a' | center(2 * 10**9) }}",
        "{{ '%2000000000d' % 1 }}",
        "{{ '{:>2000000000}'.format(1) }}",
        "{{ 'a'.ljust(2 * 10**9) }}",
        "{{ ('a' * 10**5).replace('a', 'b' * 10**5) }}",
        "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% for i in range(10**5) %}{{ 'a' * 500 }}{% endfor %}",
        "{{ range(10**5) | map('string') | join('a' * 10**5) }}",
        "{{ lipsum(n=10**7) }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ (1).to_bytes(3 * 10**9, 'big') | length }}",
        "{% for i in messages | slice(10**10) %}{% endfor %}",
    ],
)
def test_templates_that_take_too_much_are_refused_and_the_next_renders(source: str) -> None:
    """Their time, their memory and their output are bounded, the compiler's included."""
    before = peak_memory_bytes()
    with pytest.raises(BadInputError, match=r"^the chat template [^\n]+$"):
        ChatTemplate(source, {}).render(CHATS[0])
    assert peak_memory_bytes() - before < 256 << 20  # none of it was in this process
    assert ChatTemplate("{{ messages[0].content }}", {}).render(CHATS[0]) == CHATS[0][0]["content"]


def test_a_template_that_is_too_long_is_refused() -> None:
    with pytest.raises(BadInputError, match="more than 262,144 characters"):
        ChatTemplate("a" * 300_000, {})


def test_a_variable_that_is_no_json_is_refused() -> None:
    with pytest.raises(BadInputError, match="refuses this conversation"):
        ChatTemplate("{{ x }}", {}).render(CHATS[0], x=object())


def test_a_template_cannot_change_the_callers_messages() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(BadInputError, match="refuses"):
        ChatTemplate("{{ dict.update(messages[0], {'role': 'system'}) }}", {}).render(messages)
    assert messages == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('one\ntwo') }}",
        "{{ messages[9].role.name }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ strftime_now(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ('%c' * 3) % () }}",
    ],
)
def test_whatever_a_template_raises_is_one_line(source: str) -> None:
    with pytest.raises(BadInputError, match=r"^the chat template refuses this conversation: [^\n]+$"):
        ChatTemplate(source, {}).render(CHATS[0])


@pytest.mark.parametrize("source", ["{% for %}\n\nx", "{{ 1 | nothing }}", "{% break %}", "{% generation %}", "{{"])
def test_a_template_that_is_no_jinja_is_one_line(source: str) -> None:
    with pytest.raises(BadInputError, match=r"^the chat template is not valid: [^\n]+$"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({"role": "user"}, "content is missing"),
        ({"content": "Hi"}, "role is missing"),
        ({"role": "user", "content": None}, "content is missing"),
        ({"role": "user", "content": 5}, "content must be a text, or a list of text parts"),
        ({"role": "user", "content": ["Hi"]}, "content: part 1 must be an object"),
        (
            {"role": "user", "content": [HI, {"type": "image_url", "image_url": {"url": "x"}}]},
            "content: part 2 is of the type 'image_url'; only text",
        ),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "content: part 1: text is missing"),
        ("Hi", "must be a mapping"),
    ],
)
def test_wrong_messages_are_named(message: Any, wrong: str) -> None:
    with pytest.raises(BadInputError, match=f"message 2: {wrong}"):
        ChatTemplate("x", {}).render([*CHATS[0], message])


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize(("value", "wrong"), [("x", "must be a list"), ([{}, 5], r"\[1\]: must be an object, not 5")])
def test_tools_and_documents_are_lists_of_objects(name: str, value: Any, wrong: str) -> None:
    with pytest.raises(BadInputError, match=f"^{name}.*{wrong}"):
        ChatTemplate("x", {}).render(CHATS[0], **{name: value})


@pytest.mark.parametrize(
    ("source", "loss"),
    [
        (TEMPLATES["chatml"], None),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", None),
        ("{{ raise_exception('never') }}", None),
        ("{% for m in messages %}{{ m.text }}{% endfor %}", "everything"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", "texts"),
        ("{% for m in messages %}{{ m.content[0]['text'] }}{% endfor %}", "texts"),
        ("{{ messages[-1].content }}", "earlier turns"),
        ("{{ messages[0].content }}", "earlier turns"),
        ("{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content }}", None),
    ],
)
def test_a_template_that_loses_words_is_found_out(source: str, loss: str | None) -> None:
    assert ChatTemplate(source, {}).loss() == loss


def test_a_template_that_takes_one_part_gets_one() -> None:
    template = ChatTemplate("{% for m in messages %}<{{ m.content[0]['text'] }}>{% endfor %}", {})
    assert template.render([{"role": "user", "content": "Hi"}, {"role": "user", "content": [HI, HI]}]) == "<Hi><HiHi>"


def test_parts_are_not_shown_as_python_shows_them() -> None:
    """A template that writes whatever a content is gets the text of the parts, not the parts."""
    template = ChatTemplate("{% for m in messages %}{{ m.content | trim }}{{ m.content | tojson }}{% endfor %}", {})
    assert template.render([{"role": "user", "content": [HI, HI]}]) == 'HiHi"HiHi"'


def test_a_client_that_sends_many_roles_does_not_keep_the_template_busy() -> None:
    rendered: list[Any] = []

    def render(chat: Any, tools: Any) -> str:
        rendered.append(chat)
        return ""

    probes = Probes(render)
    for number in range(1000):
        fitted({"role": f"role {number}", "content": "Hi"}, probes.keeps)
        fitted({"role": ("user", "system", "assistant", "tool")[number % 4], "content": [HI]}, probes.keeps)
    assert len(rendered) == 4 * 3  # a text, a part, and several, for each role that there is


@pytest.mark.parametrize("in_a_list", [True, False])
def test_conversations_with_tools_have_a_template_of_their_own(tmp_path: Path, in_a_list: bool) -> None:
    named: Any = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}", "rag": "no"}
    if in_a_list:
        named = [{"name": name, "template": template} for name, template in named.items()]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None and template.takes_tools
    assert template.render(CHATS[0]) == CHATS[0][0]["content"]
    assert template.render(CHATS[0], tools=[]) == "[]"


def test_variables_may_have_any_name() -> None:
    assert ChatTemplate("{{ x }}", {"x": "a"}).render(CHATS[0], **{"x": "b", "self": 1, "context": 2, "": 3}) == "b"


def test_a_folder_may_hold_its_template_in_three_ways(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one {{ eos_token }}", "eos_token": {"content": "</s>"}}))
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None and template.render(CHATS[0]) == "one </s>"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None and template.render(CHATS[0]) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None and template.render(CHATS[0]) == "three"
    config.write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer_config\.json: not valid JSON"):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("tokenizer_config.json", b"\xff", "cannot be read"),
        ("tokenizer_config.json", b"[" * 10**6, "not valid JSON"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template must be"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default", "template": 5}]}', "chat_template must be"),
        ("tokenizer_config.json", b'{"chat_template": "{{"}', "the chat template is not valid"),
        ("chat_template.jinja", b"\xff", "cannot be read"),
        ("chat_template.jinja", b"{{", "the chat template is not valid"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, contents: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(BundleError, match=f"{re.escape(str(tmp_path / name))}: {message}"):
        ChatTemplate.from_folder(tmp_path)


def test_templates_without_a_default_are_none_and_only_texts_are_special_tokens(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": [{"name": "rag", "template": "x"}, {}, 5]}))
    assert ChatTemplate.from_folder(tmp_path) is None
    source = "{{ bos_token }}{{ add_bos_token is defined }}{{ pad_token is defined }}{{ audio }}{{ video is defined }}"
    own = {"extra_special_tokens": {"audio": "<audio>", "video": 5}}
    config.write_text(
        json.dumps({"chat_template": source, "bos_token": "<s>", "add_bos_token": True, "pad_token": None, **own})
    )
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    assert template.render(CHATS[0]) == "<s>FalseFalse<audio>False"
