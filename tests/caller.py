"""A bundle that calls functions and, once they have answered, says what they did; scripted as in tests/thinker.py."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tokenizers import Tokenizer

from tests.thinker import END, tokenizer_of, write_scripted

WORDS, ANSWER = "Let me see.", "She is nine."
ARGUMENTS = '{"of": "Ann"}', '{"of": "Bob", "exact": true}'
HERMES = [
    "<hermes>", "Let me", " see.", "\n<tool_", "call>\n{", '"name": "', "age", '", "arguments": ', '{"of": "', "Ann",
    '"}', "}\n</tool_call>", "\n<tool_call>", '\n{"name":', ' "age"', ', "arguments"', ": ", '{"of"', ': "Bob"',
    ', "exact": true}', "}\n", "</tool_call>", END,
]  # fmt: skip
LLAMA = ["<llama>", '{"name"', ': "age"', ', "param', 'eters": {', '"of"', ': "', 'Ann"', "}}", END]
ANSWERING = ["<answer>", "She", " is", " nine.", END]
SCRIPTS = HERMES, LLAMA, ANSWERING
BEGINNING = "{{ tools | tojson }}{% for m in messages %}<user>{{ m.content }}{% for call in m.tool_calls or [] %}"
ENDING = (
    "{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<answer>' if messages[-1].role == 'tool' else START }}{% endif %}"
)
OBJECT = '{"name": "{{ call.function.name }}", "KEY": {{ call.function.arguments | tojson }}}'
HERMES_CALL = "<tool_call>\n" + OBJECT.replace("KEY", "arguments") + "\n</tool_call>"
LLAMA_CALL = OBJECT.replace("KEY", "parameters")
HERMES_TEMPLATE = BEGINNING + HERMES_CALL + ENDING.replace("START", "'<hermes>'")
LLAMA_TEMPLATE = BEGINNING + LLAMA_CALL + ENDING.replace("START", "'<llama>'")


def write_caller(folder: Path) -> None:
    """The bundle, with the template of Hermes's style."""
    write_scripted(folder, make_tokenizer(), SCRIPTS, HERMES_TEMPLATE)


def make_tokenizer(special: Collection[str] = ()) -> Tokenizer:
    """Some of its tokens are special."""
    said = list(dict.fromkeys(text for script in SCRIPTS for text in script[1:-1]))
    assert len(said) == sum(len(script) - 2 for script in SCRIPTS)
    return tokenizer_of([END, "<user>", *(script[0] for script in SCRIPTS)], said, special)
