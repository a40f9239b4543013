"""The other files of bundles and checkpoints, changed: each is refused, or what is read of it is what it says."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_edge.runtime import BadInputError, BundleError, Sampling
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.declared import check_declared
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.decoding.default_sampling import default_sampling
from tests.conftest import PREBUILT
from tests.fuzz.budget import cases
from tests.fuzz.documents import changed_bytes, contents, whole_numbers
from tests.fuzz.refusals import check_message

TOKENIZER = json.loads((PREBUILT / "tokenizer.json").read_text("utf-8"))
TOKENIZER_CONFIG = {
    "bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "model_max_length": 512,
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}{{ bos_token }}"}, {"name": "x"}],
}  # fmt: skip
GENERATION = {
    "do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9,
    "repetition_penalty": 1.1, "eos_token_id": [1], "transformers_version": "5.0.0",
}  # fmt: skip
GRAPH = (PREBUILT / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = Path(shutil.copytree(PREBUILT, tmp_path_factory.mktemp("fuzz") / "bundle"))
    (copied / "chat_template.jinja").unlink()
    return copied


@contextmanager
def listening(name: str) -> Iterator[list[str]]:
    """What is logged under a name inside the block."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(name).addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger(name).removeHandler(handler)


def short_tokenizer() -> dict[str, object]:
    """The prebuilt tokenizer with the start of its vocabulary."""
    model = TOKENIZER["model"]
    vocabulary = {token: number for token, number in model["vocab"].items() if number < 40}
    return {**TOKENIZER, "model": {**model, "vocab": vocabulary, "merges": []}}


@cases(100)
@given(content=contents(short_tokenizer()))
def test_a_changed_tokenizer_is_refused_or_reads_texts(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    try:
        tokenizer = read_tokenizer(folder)
    except BundleError as error:
        check_message(str(error), folder)
        return
    assert tokenizer.padding is None and tokenizer.truncation is None
    assert tokenizer.get_vocab_size() < 100


@cases(100)
@given(content=contents(GENERATION))
def test_changed_defaults_are_what_they_say_or_told_of(folder: Path, content: bytes) -> None:
    (folder / "generation_config.json").write_bytes(content)
    with listening("rrt_edge.runtime.decoding.default_sampling") as messages:
        fields = default_sampling(folder)
    for message in messages:
        check_message(message, folder)
    assert len(messages) <= 1
    sampling = replace(Sampling(max_tokens=(1 << 31) - 1), **fields) if fields else Sampling()
    if messages and "cannot be read" in messages[0]:
        assert fields == {}
        return
    config = json.loads(content)
    drawn = {"temperature", "top_k", "top_p", "min_p", "typical_p"} if config.get("do_sample") is True else set()
    assert fields.keys() <= {*drawn, "repetition_penalty", "max_tokens", "max_length", "min_tokens", "stop"}
    for name in {*drawn, "repetition_penalty"} & config.keys():
        if config[name] is not None and f"{name} " not in "".join(messages):
            assert getattr(sampling, name) == (config[name] or fields[name]) and type(config[name]) is not bool


@cases(50)
@given(content=contents(TOKENIZER_CONFIG))
def test_a_changed_tokenizer_config_is_refused_or_renders(folder: Path, content: bytes) -> None:
    (folder / "tokenizer_config.json").write_bytes(content)
    try:
        template = ChatTemplate.from_folder(folder)
        text = template.render([{"role": "user", "content": "Hi"}]) if template is not None else "Hi"
    except BadInputError as error:
        check_message(str(error), folder)
    else:
        assert isinstance(text, str)


def in_sevens(number: int) -> bytes:
    """A number as protobuf has it."""
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + in_sevens(number >> 7)


fields = st.lists(st.tuples(st.integers(1, 15), st.integers(0, 7), whole_numbers.map(abs), st.binary(max_size=9)))
messages = fields.map(
    lambda parts: b"".join(in_sevens(name << 3 | kind) + in_sevens(size) + text for name, kind, size, text in parts)
)


@cases(50)
@given(content=st.one_of(changed_bytes(GRAPH[:4000]), changed_bytes(GRAPH[-4000:]), messages))
def test_what_a_changed_graph_says_of_itself_is_refused_or_the_manifests(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    try:
        check_declared(folder, Manifest.read(PREBUILT))
    except BundleError as error:
        check_message(str(error), folder)
