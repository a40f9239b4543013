"""When a reply ends: whatever a checkpoint's files name as an end, and what ends a turn of its chats."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

import rrt_edge
from rrt_edge.exporters import export
from rrt_edge.exporters.ends import reply_ends
from rrt_edge.runtime import Model, Sampling

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<|end|>", "</s>"]


@pytest.fixture
def folder(recursive: Path, tmp_path: Path) -> Path:
    """A checkpoint whose files name no end, and whose last tokens are `MARKS`."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(recursive, folder)
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    vocabulary = fields["model"]["vocab"]
    for token in [token for token, number in vocabulary.items() if number >= size - len(MARKS)]:
        del vocabulary[token]
    fields["model"]["merges"] = []
    path.write_text(json.dumps(fields))
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(mark) for mark in MARKS])
    tokenizer.save(str(path))
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def number(folder: Path, token: str) -> int:
    found = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)
    assert found is not None
    return found


def write(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(fields))


def test_every_file_may_name_an_end(folder: Path) -> None:
    write(folder / "generation_config.json", eos_token_id=[5, number(folder, "</s>")])
    write(folder / "tokenizer_config.json", eos_token="<|end|>")
    (folder / "chat_template.jinja").write_text(CHATML)
    expected = [5, number(folder, "</s>"), 7, number(folder, "<|end|>"), number(folder, "<|im_end|>")]
    assert list(reply_ends(folder, folder, [7], 300)) == expected


@pytest.mark.parametrize("token", ["<|end|>", {"content": "<|end|>", "special": True}])
def test_the_tokenizers_end_counts_however_it_is_written(folder: Path, token: Any) -> None:
    write(folder / "tokenizer_config.json", eos_token=token)
    assert reply_ends(folder, folder, [], 300) == (number(folder, "<|end|>"),)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        ("{% for m in messages %}{{ m['content'] | trim }} </s>{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}", "<|end|>"),
    ],
)
def test_what_ends_a_turn_is_an_end(folder: Path, template: str, end: str) -> None:
    write(folder / "tokenizer_config.json", eos_token="<|end|>")
    (folder / "chat_template.jinja").write_text(template)
    assert number(folder, end) in reply_ends(folder, folder, [], 300)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "writes no token"),
        ("{% for m in messages %}{{ m['content'] }}\n### {% endfor %}", "writes no token.*'### '"),
        ("{{ messages[0]['content'] }}<|im_end|>", "leaves out what the assistant says"),
        ("{{ raise_exception('no assistants') }}", "no assistants"),
    ],
)
def test_chats_that_do_not_end_are_told_of(
    folder: Path, template: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with caplog.at_level(logging.WARNING):
        assert reply_ends(folder, folder, [3], 300) == (3,)
    assert re.search(message, caplog.text)


@pytest.mark.parametrize("value", [-1, "2", [[0]], 300, True, 1.5, [None]])
def test_an_id_that_is_no_token_is_refused(folder: Path, value: Any) -> None:
    write(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(rrt_edge.BadInputError, match=r"generation_config.json: eos_token_id"):
        reply_ends(folder, folder, [], 300)


def test_a_chat_ends_where_its_turn_does(folder: Path, tmp_path: Path) -> None:
    """generation_config.json names another end than the template writes: the model's turn ends all the same."""
    write(folder / "generation_config.json", eos_token_id=5)
    (folder / "chat_template.jinja").write_text(CHATML)
    export(folder, tmp_path / "bundle", bits=32)
    end = number(folder, "<|im_end|>")
    with Model.load(tmp_path / "bundle") as model:
        assert set(model.manifest.eos_token_ids) >= {5, end}
        session = model.session()
        session.generate([3, 4], Sampling(max_tokens=9, logit_bias={end: 100.0}))
        assert session.finish_reason == "stop"


def test_a_bundle_that_does_not_run_takes_nobodys_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rrt_edge.exporters import bundle as module

    export(folder, tmp_path / "bundle", bits=32)
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    emit = module.emit

    def damaged(*arguments: Any) -> Any:
        done = emit(*arguments)
        (folder,) = (argument for argument in arguments if isinstance(argument, Path))
        (folder / "model.onnx").write_bytes(b"no graph")
        return done

    monkeypatch.setattr(module, "emit", damaged)
    with pytest.raises(rrt_edge.RRTEdgeError, match="does not run, and was not written"):
        export(folder, tmp_path / "bundle", bits=8)
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before
