"""Chat templates render as transformers renders them, in a sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rrt_edge.runtime import BadInputError, BundleError
from rrt_edge.runtime.chat import ChatTemplate

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
}
CHATS = [
    [{"role": "user", "content": "Hi <b> é"}],
    [
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "\nNo"},
    ],
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_templates_render_as_in_transformers(name: str, prompt: bool) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
    theirs.chat_template = TEMPLATES[name]
    ours = ChatTemplate(TEMPLATES[name], SPECIAL)
    for chat in CHATS:
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
        assert ours.render(chat, add_generation_prompt=prompt) == expected


def test_a_templates_refusal_is_one_line() -> None:
    with pytest.raises(BadInputError, match="roles must alternate"):
        ChatTemplate(TEMPLATES["mistral"], SPECIAL).render([{"role": "assistant", "content": "Hi"}])


@pytest.mark.parametrize(
    "attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"]
)
def test_templates_run_in_a_sandbox(attack: str) -> None:
    with pytest.raises(BadInputError, match="refuses"):
        ChatTemplate(attack, {}).render(CHATS[0])


def test_wrong_messages_and_wrong_templates() -> None:
    with pytest.raises(BadInputError, match="message 1: content is missing"):
        ChatTemplate("x", {}).render([{"role": "user"}])
    with pytest.raises(BadInputError, match="not valid"):
        ChatTemplate("{% for %}", {})


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
